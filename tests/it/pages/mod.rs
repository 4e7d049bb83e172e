//! What the pages say is so: their links lead somewhere, their queries and commands run, and the names in them exist.

mod commands;
mod guide;
mod links;
mod names;
mod pictures;
mod prose;
mod queries;

use std::fs;

use crate::support::repository_file;

/// A page: README and its neighbours, and what is under `docs`.
pub struct Page {
    /// From the root of the repository.
    pub path: String,
    pub text: String,
}

/// A block of code in a page.
pub struct Block<'a> {
    pub language: &'a str,
    pub code: String,
    /// The page and the line of the fence.
    pub at: String,
}

impl Page {
    pub fn read(path: &str) -> Page {
        Page { path: path.to_owned(), text: repository_file(path) }
    }

    /// The lines that are no code, with their numbers.
    pub fn prose(&self) -> Vec<(usize, &str)> {
        let mut fenced = false;
        let lines = self.text.lines().enumerate().filter(|(_, line)| {
            let is_fence = line.trim_start().starts_with("```");
            fenced ^= is_fence;
            !is_fence && !fenced
        });
        lines.map(|(index, line)| (index + 1, line)).collect()
    }

    /// What stands in backticks in the prose, with a place for people.
    pub fn spans(&self) -> Vec<(String, String)> {
        let mut spans = Vec::new();
        for (number, line) in self.prose() {
            let parts: Vec<&str> = line.split('`').collect();
            assert!(parts.len() % 2 == 1, "{}:{number}: a backtick has no partner: {line}", self.path);
            let inside = parts.iter().skip(1).step_by(2);
            spans.extend(inside.map(|span| (span.replace("\\|", "|"), format!("{}:{number}", self.path))));
        }
        spans
    }

    /// The blocks of code.
    pub fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks = Vec::new();
        let mut open: Option<Block<'_>> = None;
        for (index, line) in self.text.lines().enumerate() {
            match (line.trim_start().strip_prefix("```"), &mut open) {
                (Some(language), None) => {
                    let at = format!("{}:{}", self.path, index + 1);
                    open = Some(Block { language, code: String::new(), at });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some(block)) => {
                    block.code.push_str(line);
                    block.code.push('\n');
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a block of code is not closed", self.path);
        blocks
    }

    /// The cells of the rows of a table that has this text in its head. The head and the line below it are left out.
    pub fn table(&self, head: &str) -> Vec<Vec<String>> {
        let lines: Vec<&str> = self.text.lines().collect();
        let begin = lines.iter().position(|line| line.starts_with('|') && line.contains(head));
        let begin = begin.unwrap_or_else(|| panic!("{}: no table {head:?}", self.path));
        let rows = lines[begin + 2..].iter().take_while(|line| line.starts_with('|'));
        rows.map(|row| {
            let row = row.trim().trim_start_matches('|').trim_end_matches('|').replace("\\|", "\u{1}");
            row.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect()
        })
        .collect()
    }
}

/// All pages.
pub fn all() -> Vec<Page> {
    let mut paths: Vec<String> =
        ["README.md", "CONTRIBUTING.md", "RELEASE.md", "SECURITY.md", "CHANGELOG.md"]
            .map(str::to_owned)
            .to_vec();
    let docs = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/docs")).unwrap();
    let is_page = |name: &String| name != "docs/pictures";
    let mut docs: Vec<String> = docs
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(is_page)
        .collect();
    docs.sort();
    assert!(docs.len() > 10 && docs.iter().all(|path| path.ends_with(".md")), "{docs:?}");
    paths.extend(docs);
    paths.iter().map(|path| Page::read(path)).collect()
}

/// What the code in backticks has without its backticks.
pub fn bare(cell: &str) -> &str {
    cell.trim_matches('`')
}
