//! Writes the licences and copyright notices of what is linked into the program, as its licences ask for:
//! `cargo run --example notices -- target/manual/third-party-notices`. Made for packages. Reads the lock file and the
//! sources that the build has anyway, and needs no network.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

/// Beginnings of the names of files with a licence or a notice, in lower case.
const NAMES: [&str; 6] = ["licen", "copying", "copyright", "notice", "unlicense", "authors"];

const HEAD: &str = "\
promptpal-relay is linked with the libraries below. Each is named with its licence; the texts that come with it follow.
Where several libraries have the same text, it stands once. Parts of Rust's standard library are linked in, too:
copyright The Rust Project contributors, Apache-2.0 OR MIT.
";

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("give the file to write")?;
    let crates = linked()?;
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut list = String::new();
    for package in &crates {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        let name = format!("{} {}", text("name"), text("version"));
        let license = package["license"].as_str().ok_or_else(|| format!("{name} names no licence"))?;
        list.push_str(&format!("{name}\n    {license}\n"));
        let folder = Path::new(text("manifest_path")).parent().ok_or("a manifest has a folder")?;
        let mut found = false;
        for file in files(folder)? {
            let content = String::from_utf8_lossy(&fs::read(&file)?).trim().replace("\r\n", "\n");
            texts.entry(content).or_default().insert(name.clone());
            found = true;
        }
        if !found {
            // Then who made it is all that is known.
            let authors: Vec<&str> =
                package["authors"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let source = text("repository");
            if authors.is_empty() && source.is_empty() {
                return Err(format!("{name} has no licence's text, no authors and no repository").into());
            }
            list.push_str(&format!("    without a text of its own; by {}; {source}\n", authors.join(", ")));
        }
    }
    let mut whole = format!("{HEAD}\n{list}");
    for (text, names) in &texts {
        let names = names.iter().cloned().collect::<Vec<_>>().join(", ");
        whole.push_str(&format!("\n{}\n{names}\n\n{text}\n", "-".repeat(100)));
    }
    if let Some(folder) = Path::new(&path).parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&path, whole)?;
    println!("{path}: {} libraries, {} texts", crates.len(), texts.len());
    Ok(())
}

/// The packages that the program is linked with, by name: those that can be reached without build and test dependencies.
fn linked() -> Result<Vec<Value>, Box<dyn Error>> {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let metadata = ["metadata", "--format-version", "1", "--locked", "--offline"];
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let output = Command::new(cargo).args(metadata).args(["--filter-platform", &target]).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let id = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let nodes: BTreeMap<String, Value> =
        list(&metadata["resolve"]["nodes"]).into_iter().map(|node| (id(&node["id"]), node)).collect();
    let root = id(&metadata["resolve"]["root"]);
    let (mut reached, mut next) = (BTreeSet::new(), vec![root.clone()]);
    while let Some(package) = next.pop() {
        let node = nodes.get(&package).ok_or("a dependency is in the graph")?;
        let is_linked =
            |dependency: &Value| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        let dependencies = list(&node["deps"]);
        let linked = dependencies.iter().filter(|dependency| is_linked(dependency)).map(|it| id(&it["pkg"]));
        if reached.insert(package) {
            next.extend(linked);
        }
    }
    reached.remove(&root);
    let mut packages = list(&metadata["packages"]);
    packages.retain(|package| reached.contains(&id(&package["id"])));
    packages.sort_by_key(|package| id(&package["id"]));
    if packages.is_empty() {
        return Err("no library was found".into());
    }
    Ok(packages)
}

/// The files with licences and notices at the top of a crate, by name.
fn files(folder: &Path) -> Result<Vec<std::path::PathBuf>, Box<dyn Error>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if path.is_file() && NAMES.iter().any(|start| name.starts_with(start)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
