//! The classes of the advisory locks, in one table; never takes a lock. The SQL files take them, and a test compares the
//! numbers there with these.
//!
//! Postgres knows an advisory lock of a class by two integers, the class and an object. The relay has one lock of each
//! class, so the object is 0. A liveness lock has no class: its one bigint is random (`instances/draw_lock.sql`), and
//! Postgres keeps the two forms apart.

/// A class of advisory locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LockClass {
    /// The first of the two integers.
    pub class: i32,
    /// What `check` and `status` call the lock.
    pub name: &'static str,
}

/// The first class; the others follow it. All programs on a database share the numbers of advisory locks, and most take
/// small ones. Four letters make a number that another program is not likely to take.
const FIRST: i32 = i32::from_be_bytes(*b"ppls");

/// The sleeping relay holds it exclusively; each inserting transaction tries it shared.
pub(crate) const SLEEP: LockClass = LockClass { class: FIRST, name: "sleep" };

/// `migrate` holds it exclusively: one at a time.
pub(crate) const MIGRATE: LockClass = LockClass { class: FIRST + 1, name: "migrate" };

/// The instance that throws old rows away holds it exclusively: one at a time.
#[cfg_attr(not(test), expect(dead_code, reason = "only SQL takes it; the table says which number it has"))]
pub(crate) const RETENTION: LockClass = LockClass { class: FIRST + 2, name: "retention" };

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::path::Path;

    use super::*;

    /// The SQL files that name a class, and which.
    const USED: &[(&str, &[LockClass])] = &[
        ("sql/migrations/0007_wake_up.sql", &[SLEEP]),
        ("sql/queries/check/lock_holders.sql", &[SLEEP, MIGRATE, RETENTION]),
        ("sql/queries/migrations/try_lock.sql", &[MIGRATE]),
        ("sql/queries/retention/try_lock.sql", &[RETENTION]),
        ("sql/queries/sleep_lock/try_sleep.sql", &[SLEEP]),
        ("sql/queries/sleep_lock/wake_up.sql", &[SLEEP]),
    ];

    /// What stands before a class: in a call, in a condition, in the head of a file.
    const BEFORE: &[&str] =
        &["lock(", "lock_shared(", "class = ", "classid = ", "classid IN (", "advisory ("];

    /// The classes that a text names. The object 0 is none.
    fn classes(text: &str) -> BTreeSet<i32> {
        let lists = BEFORE.iter().flat_map(|before| text.split(before).skip(1));
        let numbers = lists.flat_map(|list| {
            let end = list.find(|c: char| !c.is_ascii_digit() && c != ',' && c != ' ');
            list[..end.unwrap_or(list.len())].split(',')
        });
        numbers.filter_map(|number| number.trim().parse().ok()).filter(|class| *class != 0).collect()
    }

    fn read(folder: &Path, found: &mut BTreeMap<String, BTreeSet<i32>>) {
        for entry in fs::read_dir(folder).expect("the folder is in the repository") {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() {
                read(&path, found);
                continue;
            }
            let classes = classes(&fs::read_to_string(&path).expect("SQL is UTF-8"));
            if !classes.is_empty() {
                found.insert(path.to_str().expect("names are ASCII").to_owned(), classes);
            }
        }
    }

    #[test]
    fn the_sql_files_name_the_classes_of_the_table_and_no_others() {
        let mut found = BTreeMap::new();
        read(Path::new("sql"), &mut found);
        let used = USED.iter().map(|(file, classes)| {
            ((*file).to_owned(), classes.iter().map(|class| class.class).collect::<BTreeSet<i32>>())
        });
        assert_eq!(found, used.collect());
    }

    #[test]
    fn the_query_for_holders_calls_the_locks_what_the_table_calls_them() {
        let sql = include_str!("../../sql/queries/check/lock_holders.sql");
        for LockClass { class, name } in [SLEEP, MIGRATE] {
            assert!(sql.contains(&format!("WHEN l.classid = {class} THEN '{name}'")), "{name}");
        }
        assert!(sql.contains(&format!("ELSE '{}' END AS lock", RETENTION.name)));
    }
}
