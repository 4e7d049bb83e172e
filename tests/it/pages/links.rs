//! Links lead somewhere: on the disk, at a forge, and in the Debian package.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::{Page, all};
use crate::support::repository_file;

/// The targets of a page's links, with the line.
fn targets(page: &Page) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    // A text between brackets may be broken over two lines; its target is not.
    for (number, line) in page.prose() {
        let bare: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        let starts = bare.match_indices("](").map(|(at, _)| at + 2);
        found.extend(starts.map(|at| (number, bare[at..].split(')').next().unwrap().to_owned())));
    }
    found
}

/// The anchors of a page, as forges make them of its headings.
fn anchors(page: &Page) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let headings = page.prose().into_iter().filter_map(|(_, line)| {
        let text = line.trim_start_matches('#');
        (line.starts_with('#') && text.starts_with(' ')).then(|| text.trim())
    });
    headings
        .map(|heading| {
            let slug: String = heading
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect();
            let times = seen.entry(slug.clone()).and_modify(|times| *times += 1).or_insert(0);
            if *times == 0 { slug } else { format!("{slug}-{times}") }
        })
        .collect()
}

/// A path without `.` and `..`; none when it leads out.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => plain.pop().then_some(())?,
            _ => {}
        }
    }
    Some(plain)
}

/// Where the package has a file of the repository.
fn installed(path: &str) -> Option<PathBuf> {
    let manifest = repository_file("Cargo.toml");
    let assets = manifest.split_once("\nassets = [").unwrap().1.split_once("\n]").unwrap().0;
    let assets = assets.lines().filter(|line| line.trim().starts_with('['));
    assets
        .filter_map(|line| {
            let parts: Vec<&str> = line.split('"').collect();
            let (source, target) = (parts[1], parts[3]);
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
            let is_it = source == path || source.strip_suffix("/*") == Some(folder) && !folder.is_empty();
            is_it.then(|| Path::new(target).join(name))
        })
        .next()
}

#[test]
fn each_link_leads_to_a_page_and_a_heading_that_there_are() {
    let pages = all();
    let mut count = 0;
    for page in &pages {
        let folder = Path::new(&page.path).parent().unwrap();
        for (number, link) in targets(page) {
            let at = format!("{}:{number}: {link}", page.path);
            if link.starts_with("https://") {
                continue;
            }
            count += 1;
            let (path, anchor) = link.split_once('#').map_or((link.as_str(), None), |(p, a)| (p, Some(a)));
            let target = if path.is_empty() {
                page.path.clone()
            } else {
                plain(&folder.join(path)).expect(&at).to_str().unwrap().to_owned()
            };
            if target.starts_with("docs/pictures/") {
                assert!(!repository_file(&target).is_empty(), "{at}");
                continue;
            }
            let target =
                pages.iter().find(|page| page.path == target).unwrap_or_else(|| panic!("{at}: no such page"));
            if let Some(anchor) = anchor {
                assert!(anchors(target).iter().any(|known| known == anchor), "{at}: no such heading");
            }
        }
    }
    assert!(count > 60, "{count}");
}

#[test]
fn the_package_has_the_pages_where_their_links_lead() {
    let mut count = 0;
    for page in all() {
        let Some(place) = installed(&page.path) else {
            assert_eq!(
                page.path, "CHANGELOG.md",
                "it is no page of the package, and has a form of its own there"
            );
            continue;
        };
        let folder = Path::new(&page.path).parent().unwrap();
        for (number, link) in targets(&page) {
            let path = link.split('#').next().unwrap();
            if path.is_empty() || link.starts_with("https://") {
                continue;
            }
            count += 1;
            let at = format!("{}:{number}: {link}", page.path);
            let target = plain(&folder.join(path)).unwrap();
            let target =
                installed(target.to_str().unwrap()).unwrap_or_else(|| panic!("{at}: not in the package"));
            assert_eq!(plain(&place.parent().unwrap().join(path)), plain(&target), "{at}");
        }
    }
    assert!(count > 40, "{count}");
}
