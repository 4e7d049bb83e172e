//! What the folders of `src/` promise: a room imports only what stands below it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The rooms, the highest first; those of a line know nothing of each other.
const FLOORS: &[&[&str]] = &[
    &["command"],
    &["daemon"],
    &["config", "outbox"],
    &["dispatch", "delivery", "postgres", "telemetry"],
    &["cli", "process", "tls"],
    &["error", "model"],
];

/// What else a room keeps to itself: a text, and the only paths below `src/` that may have it.
const KEPT: &[(&str, &[&str])] = &[
    // The traits of the HTTP client that may change with any release of it.
    ("ureq::unversioned", &["delivery/transport/"]),
    ("ureq::", &["delivery/"]),
    // System calls: sockets and their limits, the kernel's routes, users and processes, the host's name, whose journal it is.
    (
        "nix::",
        &[
            "delivery/transport/",
            "delivery/fd_budget.rs",
            "delivery/machine.rs",
            "command/demo/",
            "postgres/settings.rs",
            "daemon/instance.rs",
            "telemetry/logging.rs",
            "process.rs",
        ],
    ),
    // Elsewhere than beside SQL only to decide by an SQLSTATE, and for the demo's own queries.
    (
        "tokio_postgres",
        &["outbox/", "postgres/", "error.rs", "daemon/outage.rs", "daemon/retention.rs", "command/demo/"],
    ),
];

/// The rooms of each floor as a document has them, the lowest floor first: lines that begin with the floor's number.
fn told(document: &str, rooms: impl Fn(&str, usize) -> Option<String>) -> Vec<BTreeSet<String>> {
    let text = fs::read_to_string(document).unwrap();
    let floor = |number| {
        let lines = text.lines().filter_map(|line| rooms(line, number));
        lines.flat_map(|rooms| rooms.split(", ").map(str::to_owned).collect::<Vec<_>>()).collect()
    };
    (1..=FLOORS.len()).map(floor).collect()
}

#[test]
fn the_documents_tell_the_same_floors() {
    let floors: Vec<BTreeSet<String>> =
        FLOORS.iter().rev().map(|rooms| rooms.iter().map(|room| (*room).to_owned()).collect()).collect();
    let table = told("docs/architecture.md", |line, number| {
        let rest = line.strip_prefix(&format!("| {number} | `"))?;
        Some(rest.split(" |").next().unwrap().replace('`', ""))
    });
    assert_eq!(table, floors, "docs/architecture.md");
    let list = told("src/lib.rs", |line, number| {
        let rest = line.strip_prefix(&format!("//! {number}  "))?;
        Some(rest.split("  ").next().unwrap().to_owned())
    });
    assert_eq!(list, floors, "src/lib.rs");
}

fn floor(room: &str) -> usize {
    let found = FLOORS.iter().position(|rooms| rooms.contains(&room));
    found.unwrap_or_else(|| panic!("{room} is on no floor: give it a place in FLOORS"))
}

/// All files below a folder, each with what it has.
fn files(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix("src").unwrap().to_str().unwrap().to_owned();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    files(Path::new("src"), &mut found);
    found.retain(|(name, _)| name != "lib.rs" && name != "main.rs");
    assert!(found.len() > 30, "{}", found.len());
    found
}

/// The rooms that a file names.
fn named(text: &str) -> BTreeSet<&str> {
    let after = text.split("crate::").skip(1);
    after.map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap()).collect()
}

#[test]
fn a_room_imports_only_what_stands_below_it() {
    for (name, text) in sources() {
        let room = name.split(['/', '.']).next().unwrap();
        for other in named(&text).into_iter().filter(|other| *other != room) {
            assert!(
                floor(other) > floor(room),
                "src/{name} names crate::{other}, which does not stand below it"
            );
        }
    }
}

#[test]
fn what_a_room_keeps_to_itself_no_other_has() {
    for (name, text) in sources() {
        for (kept, rooms) in KEPT {
            let may = rooms.iter().any(|room| name.starts_with(room));
            assert!(may || !has(&text, kept), "src/{name} has {kept}");
        }
    }
}

/// Whether a text has a path: `nix::` is not in `unix::`.
fn has(text: &str, path: &str) -> bool {
    text.match_indices(path).any(|(at, _)| !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// The files of a room that each of its files imports, by their paths below the room. What a file's tests import, and what
/// its documentation mentions, does not count; nor does a folder's `mod.rs`, which has the list of its files.
fn imports(room: &str) -> BTreeMap<String, BTreeSet<String>> {
    let module = |name: &str| name.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
    let inside: Vec<_> = sources()
        .into_iter()
        .filter(|(name, _)| name.starts_with(&format!("{room}/")) && !name.ends_with("/tests.rs"))
        .collect();
    let modules: BTreeSet<_> = inside.iter().map(|(name, _)| module(name)).collect();
    let list = format!("crate::{room}::{{");
    let imported = |text: &str| {
        let code =
            text.split("#[cfg(test)]").next().unwrap().lines().filter(|line| !line.trim().starts_with("//"));
        let code = code.collect::<Vec<_>>().join("\n");
        assert!(
            !code.contains("super::"),
            "src/{room} has a path with super::, which this test does not follow"
        );
        let paths = code.split("crate::").skip(1).map(|rest| {
            rest.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').next().unwrap().to_owned()
        });
        let lists = code.split(&list).skip(1).flat_map(|rest| {
            let list = rest.split('}').next().unwrap().split(',');
            list.map(|one| format!("{room}::{}", one.trim())).collect::<Vec<_>>()
        });
        let longest =
            |path: String| modules.iter().filter(|known| path.starts_with(known.as_str())).max().cloned();
        paths.chain(lists).filter_map(longest).collect::<BTreeSet<_>>()
    };
    inside.iter().map(|(name, text)| (module(name), imported(text))).collect()
}

#[test]
fn no_file_imports_one_that_imports_it() {
    for room in ["delivery", "postgres"] {
        let mut left = imports(room);
        // Takes away, again and again, what imports nothing that is still there.
        loop {
            let there: BTreeSet<_> = left.keys().cloned().collect();
            left.retain(|name, imported| imported.iter().any(|other| other != name && there.contains(other)));
            if left.len() == there.len() {
                break;
            }
        }
        assert!(left.is_empty(), "files of src/{room} that import each other, or such files: {left:?}");
    }
}
