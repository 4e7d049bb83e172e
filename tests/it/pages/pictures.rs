//! The pictures are what their sources say: the table, and the program.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use super::all;
use crate::support::{outcome, program, repository_file};

/// A page with a larger picture is slow to load.
const BYTES_MAX: usize = 24 * 1024;

#[test]
fn each_picture_is_small_is_in_a_page_and_follows_the_colours_of_the_reader() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pictures");
    let text: String = all().iter().map(|page| repository_file(&page.path)).collect();
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let picture = repository_file(&format!("docs/pictures/{name}"));
        assert!(name.ends_with(".svg") && picture.len() < BYTES_MAX, "{name}: {} bytes", picture.len());
        assert!(text.contains(&format!("pictures/{name})")), "{name} is in no page");
        assert!(picture.contains("prefers-color-scheme: dark"), "{name}");
        count += 1;
    }
    assert!(count >= 4, "{count}");
}

/// Skipped where there is no Python.
#[test]
fn the_pictures_are_as_the_script_draws_them() {
    let mut command = Command::new("python3");
    command.args([concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/pictures"), "check"]);
    if Command::new("python3").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: there is no python3");
        return;
    }
    let (code, out, err) = outcome(command);
    assert_eq!(code, 0, "{out}{err}");
}

/// The lines of a picture of a terminal.
fn lines(picture: &str) -> Vec<String> {
    let mut lines: BTreeMap<u32, String> = BTreeMap::new();
    for element in picture.split("<text ").skip(1) {
        let y = element.split_once("y=\"").unwrap().1.split('"').next().unwrap().parse().unwrap();
        let words = element.split_once('>').unwrap().1.split("</text>").next().unwrap();
        let line = lines.entry(y).or_default();
        line.push(' ');
        line.push_str(words);
    }
    let plain = |line: String| {
        let line = line.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
        line.replace("&#x27;", "'").replace("&amp;", "&")
    };
    // The first line is the title.
    lines.into_values().skip(1).map(plain).collect()
}

/// The lines without what differs from one run to the next: numbers, the name of the folder, and who is first.
fn bare<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let word = |word: &str| {
        let word = word.split("-pg-").next().unwrap();
        let mut bare: String = word.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        while bare.contains("00") {
            bare = bare.replace("00", "0");
        }
        // The columns of the table are as wide as what is in them.
        if bare.contains("---+-") { "-+-".to_owned() } else { bare }
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    let mut bare: Vec<String> = lines.map(line).filter(|line| !line.is_empty()).collect();
    bare.sort();
    bare
}

#[test]
fn the_picture_of_the_demo_has_what_the_demo_prints() {
    let (code, out, err) = outcome(program(&["demo"], ""));
    assert_eq!(code, 0, "{out}{err}");
    let drawn = lines(&repository_file("docs/pictures/demo.svg"));
    assert!(drawn.len() > 30, "{drawn:#?}");
    let (drawn, printed) = (bare(drawn.iter().map(String::as_str)), bare(out.lines()));
    assert_eq!(drawn, printed, "run scripts/pictures");
}
