//! The programs of two releases, one after the other: the older one, and the newer one whose migrations come after it.
//!
//! **At each release with a migration** set `PREVIOUS_RELEASE` to the tag of the release before, and run these tests:
//! `PREVIOUS_RELEASE=v0.1.0 cargo test --test it upgrade`. The older program is built from that tag then, and the newer one is
//! this source with its own migrations. A migration among them without a mark makes no rolling upgrade, and the tests say so:
//! then the changelog says that the daemons must be stopped.
//!
//! Without the variable there is no release before, so the tests play the next one. The older program is this source. The newer
//! one is a copy of it with one migration more (`compatible.sql`).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use promptpal_relay::inside::outbox::MIGRATIONS;

use crate::support::BINARY;

/// What the copy needs besides what is edited. Cargo wants the files of all targets that the manifest names.
const COPIED: &[&str] = &["rust-toolchain.toml", "benches", "packaging", "sql", "src", "tests/support"];
/// Where the package has its name, and the program.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "Cargo.lock"];
/// Where the migrations are listed.
const LIST: &str = "src/outbox/migrations.rs";
/// That name. The other release has another one, because cargo would take two packages of one name and version for the same:
/// each build would take parts of the other.
const NAME: &str = "name = \"promptpal-relay\"\n";

/// Two releases, one after the other.
pub struct Releases {
    pub old: PathBuf,
    pub new: PathBuf,
}

/// The two programs. Builds the one that is not there.
pub fn releases() -> &'static Releases {
    static RELEASES: OnceLock<Releases> = OnceLock::new();
    RELEASES.get_or_init(|| match env::var("PREVIOUS_RELEASE") {
        Ok(tag) => Releases { old: build("previous", |folder| extract(&tag, folder)), new: BINARY.into() },
        Err(_) => Releases { old: BINARY.into(), new: next_release().clone() },
    })
}

/// This source with one migration more.
pub fn next_release() -> &'static PathBuf {
    static NEXT: OnceLock<PathBuf> = OnceLock::new();
    NEXT.get_or_init(|| build("next", add_migration))
}

/// The text of the next migration.
pub fn compatible(oldest_daemon: i32) -> String {
    include_str!("compatible.sql").replace("{before}", &oldest_daemon.to_string())
}

/// Builds the program of another release beside ours, with the dependencies that are built already. `fill` makes its source
/// in a folder, all but the manifests, and returns where these are.
fn build(name: &str, fill: impl FnOnce(&Path) -> PathBuf) -> PathBuf {
    let ours = Path::new(BINARY);
    let profile = ours.parent().unwrap();
    let target = profile.parent().unwrap();
    let folder = target.join("releases").join(name);
    let program = format!("promptpal-relay-{name}");
    fs::create_dir_all(&folder).unwrap();
    let manifests = fill(&folder);
    for file in MANIFESTS {
        let renamed = NAME.replace("promptpal-relay", &program);
        edit(&manifests.join(file), &folder.join(file), NAME, &renamed);
    }
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--locked", "--bin", &program, "--target-dir"]).arg(target);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    // Cargo tells the tests of what package they are. Dependencies whose build looks at that would be built again, now and by the
    // next command of the developer.
    let of_the_tests = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_"];
    for (variable, _) in env::vars_os() {
        let name = variable.to_string_lossy();
        if of_the_tests.iter().any(|prefix| name.starts_with(prefix)) {
            cargo.env_remove(&variable);
        }
    }
    let built = cargo.current_dir(&folder).stdin(Stdio::null()).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    profile.join(program)
}

/// Takes the source of a tag.
fn extract(tag: &str, folder: &Path) -> PathBuf {
    let archive = folder.with_extension("tar");
    let mut git = Command::new("git");
    git.args(["archive", "--format=tar", "--output"]).arg(&archive).arg(tag);
    assert!(git.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success(), "there is no {tag}");
    let mut tar = Command::new("tar");
    // With the date of now: cargo would take an older tag than the one before for built.
    tar.arg("-xmf").arg(&archive).arg("-C").arg(folder);
    assert!(tar.status().unwrap().success());
    folder.to_owned()
}

/// Takes this source, and adds a migration.
fn add_migration(folder: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in COPIED {
        copy(&root.join(name), &folder.join(name));
    }
    let newest = MIGRATIONS.last().unwrap().version;
    let file = format!("sql/migrations/{:04}_next.sql", newest + 1);
    write(&folder.join(&file), compatible(newest).as_bytes());
    let end = "];\n\nconst fn migration";
    let longer = format!("    migration({}, \"next\", include_str!(\"../../{file}\")),\n{end}", newest + 1);
    edit(&root.join(LIST), &folder.join(LIST), end, &longer);
    root.to_owned()
}

/// Copies a file or a folder, but for what is edited. A file that is gone here stays there: no build reads it.
fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        for entry in fs::read_dir(from).unwrap() {
            let name = entry.unwrap().file_name();
            copy(&from.join(&name), &to.join(&name));
        }
    } else if !from.ends_with(LIST) {
        write(to, &fs::read(from).unwrap());
    }
}

/// Writes a file with another text in the place of a part of it, wherever that stands.
fn edit(from: &Path, to: &Path, part: &str, by: &str) {
    let text = fs::read_to_string(from).unwrap();
    assert!(text.contains(part), "{}: {part}", from.display());
    write(to, text.replace(part, by).as_bytes());
}

/// Writes a file, unless it is so already: cargo builds anew what has a newer date.
fn write(path: &Path, contents: &[u8]) {
    if fs::read(path).is_ok_and(|there| there == contents) {
        return;
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, contents).unwrap();
}
