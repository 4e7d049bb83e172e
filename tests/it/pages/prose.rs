//! Pages, comments and messages are plain, and each page says who reads it.

use std::process::Command;

use super::{all, bare};
use crate::support::{outcome, repository_file};

#[test]
fn readme_is_short_and_leads_each_reader_to_a_page_that_says_who_reads_it() {
    let pages = all();
    let readme = &pages[0];
    assert!(readme.text.lines().count() <= 150, "{}", readme.text.lines().count());
    for page in pages.iter().filter(|page| page.path.starts_with("docs/")) {
        assert!(readme.text.contains(&format!("]({})", page.path)), "README leads to no {}", page.path);
        let first = page.text.split("\n\n").nth(1).unwrap();
        assert!(first.starts_with("You "), "{}: who reads it, and for what? {first}", page.path);
    }
}

/// The program python3; none where it is not installed.
fn prose(arguments: &[&str]) -> Option<(i32, String)> {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: there is no python3");
        return None;
    }
    let mut command = Command::new("python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/prose")).args(arguments);
    let (code, out, err) = outcome(command);
    Some((code, out + &err))
}

#[test]
fn pages_comments_and_messages_have_no_sentence_that_is_hard_to_read() {
    let Some(said) = prose(&[]) else { return };
    assert_eq!(said, (0, String::new()));
}

#[test]
fn the_script_finds_what_it_is_for_and_passes_over_what_has_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let long = ["word"; 31].join(" ");
    let fits = ["word"; 30].join(" ");
    write(
        "page.md",
        &format!("# A\n\n{fits}. {fits}.\n\n- {long}.\n- Nobody knows.\n\n```\n{long}. nobody\n```\n"),
    );
    write("a.sql", &format!("-- {long}.\nCOMMENT ON TABLE t IS 'What somebody''s is';\n"));
    write(
        "src/a.rs",
        &format!(
            "/// And more.\n/// But no start.\nfn f() {{ g(\"whoever reads it is told\") }}\n/// {long}.\nfn g() {{}}\n\
             #[cfg(test)]\nfn h() {{ g(\"nobody reads this one here\") }}\n"
        ),
    );
    let root = folder.path().to_str().unwrap();
    let Some((code, out)) = prose(&["--root", root]) else { return };
    let heads: Vec<String> =
        out.lines().map(|line| line.splitn(4, ':').take(3).collect::<Vec<_>>().join(":")).collect();
    let expected = [
        "a.sql:1: long",
        "a.sql:2: vague",
        "page.md:5: long",
        "page.md:6: vague",
        "src/a.rs:1: conjunction",
        "src/a.rs:4: long",
        "src/a.rs:3: vague",
    ];
    assert_eq!((code, heads.iter().map(String::as_str).collect::<Vec<_>>()), (1, expected.to_vec()), "{out}");

    let allow = expected.map(|line| line.split(':').next().unwrap());
    let parts = ["31 words", "somebody", "31 words", "Nobody", "And more", "31 words", "whoever"];
    let mut text: String =
        std::iter::zip(allow, parts).map(|(path, part)| format!("{path} | {part} | tests\n")).collect();
    write("scripts/prose.allow", &text);
    assert_eq!(prose(&["--root", root]), Some((0, String::new())));
    text.push_str("page.md | of nothing | tests\n");
    write("scripts/prose.allow", &text);
    let (code, out) = prose(&["--root", root]).unwrap();
    assert!(code == 1 && out.contains("excuses nothing in page.md"), "{code} {out}");
    write("scripts/prose.allow", "page.md | without a reason\n");
    assert_eq!(prose(&["--root", root]).unwrap().0, 1);
}

#[test]
fn the_allow_list_gives_reasons() {
    for line in repository_file("scripts/prose.allow").lines().filter(|line| !line.starts_with('#')) {
        assert_eq!(line.split(" | ").filter(|part| !bare(part).is_empty()).count(), 3, "{line}");
    }
}
