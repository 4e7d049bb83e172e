//! What the folders of `src/` promise: a room imports only what stands below it.

use std::collections::BTreeSet;
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
    ("ureq::unversioned", &["delivery/transport/", "delivery/client.rs", "delivery/tls.rs"]),
    ("ureq::", &["delivery/"]),
    // Elsewhere than beside SQL only to decide by an SQLSTATE, and for the demo's own queries.
    (
        "tokio_postgres",
        &["outbox/", "postgres/", "error.rs", "daemon/outage.rs", "daemon/retention.rs", "command/demo/"],
    ),
];

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
            assert!(may || !text.contains(kept), "src/{name} has {kept}");
        }
    }
}
