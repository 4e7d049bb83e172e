//! Which database this is, and whether it is the one that `migrate` wrote down. Never decides what to do about a copy.

use crate::error::{Error, Result};
use crate::outbox::Store;

/// What tells one database from every other one. A failover to a streaming standby keeps all three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Of the server: drawn by initdb, kept by physical copies.
    pub system_identifier: i64,
    /// Of the database.
    pub database_oid: u32,
    /// Of relay.installation: a dump that is restored over its own database makes the table anew.
    pub table_oid: u32,
}

/// Which database this is, and what relay.installation says of it.
#[derive(Clone, Debug)]
pub struct Installation {
    /// Its name.
    pub database: String,
    /// What it is.
    pub identity: Identity,
    /// What it was when `migrate` wrote that down; none when the row is gone. Another one's, when a dump was loaded.
    pub recorded: Option<Identity>,
    /// The site that a daemon must name to run here.
    pub site: Option<String>,
    /// Whether the two differ, and no operator has accepted that.
    pub is_copy: bool,
}

/// The table's oid while `migrate --accept-copy` works: it fits nowhere.
const NOBODY: u32 = 0;

/// The two ways out of a copy, for a message.
const ACCEPT: &str = "promptpal-relay migrate --accept-copy=skip (marks the pending rows done without calls) or \
                      --accept-copy=deliver (keeps them)";

impl Installation {
    /// How the database differs from the one that was written down, for people; none when it is that one.
    pub fn difference(&self) -> Option<String> {
        if !self.is_copy {
            return None;
        }
        let here = self.identity;
        Some(match self.recorded {
            None => "relay.installation has no row".into(),
            Some(was) if was.table_oid == NOBODY => {
                "migrate --accept-copy has begun on it and has not ended".into()
            }
            Some(was) if was.system_identifier != here.system_identifier => format!(
                "it comes from the server with system identifier {}, and this server has {}",
                was.system_identifier, here.system_identifier
            ),
            Some(was) if was.database_oid != here.database_oid => {
                format!(
                    "it comes from the database with oid {}, and this one has {}",
                    was.database_oid, here.database_oid
                )
            }
            Some(_) => "a dump was restored over it".into(),
        })
    }

    /// Succeeds when this database is no copy, or an operator has accepted it.
    ///
    /// # Errors
    ///
    /// [`Error::Installation`], with the two ways out.
    pub fn require_original(&self) -> Result<()> {
        match self.difference() {
            None => Ok(()),
            Some(difference) => Err(Error::Installation(format!(
                "database {} is a copy ({difference}), and nothing is sent from a copy until you say so. Afterwards new events go to \
                 the URLs of relay.webhooks: first disable in this database what is not yours. Then run {ACCEPT}, with the login that ran \
                 migrate for the original",
                self.database
            ))),
        }
    }

    /// Succeeds when a daemon of this site may run here. A database without a site wants a daemon without one.
    ///
    /// # Errors
    ///
    /// [`Error::Installation`], with both sites and what to do.
    pub fn require_site(&self, site: Option<&str>) -> Result<()> {
        let database = &self.database;
        let problem = match (self.site.as_deref(), site) {
            (known, named) if known == named => return Ok(()),
            (Some(known), None) => format!(
                "database {database} is of site \"{known}\", and this daemon has no --site: start it with --site. If \
                 this database is a copy, name its own site: promptpal-relay migrate --site NAME --accept-copy=skip (or =deliver)"
            ),
            (Some(known), Some(named)) => format!(
                "database {database} is of site \"{known}\", and this daemon is of \"{named}\": start it with the \
                 database's --site. If this database is a copy, run promptpal-relay migrate --site \"{named}\" \
                 --accept-copy=skip (or =deliver)"
            ),
            (None, named) => format!(
                "database {database} has no site, and this daemon is of \"{}\": run promptpal-relay migrate --site \
                 \"{0}\", or start the daemon without --site",
                named.unwrap_or_default()
            ),
        };
        Err(Error::Installation(problem))
    }

    /// Succeeds when `migrate` may name this site, or none, without a word about the pending rows.
    ///
    /// # Errors
    ///
    /// [`Error::Installation`] when the database has another site already: it may be a copy.
    pub fn require_same_site(&self, site: Option<&str>) -> Result<()> {
        match (self.site.as_deref(), site) {
            (Some(known), Some(named)) if known != named => Err(Error::Installation(format!(
                "database {} is of site \"{known}\": to make it \"{named}\", stop its daemons and say what becomes of the \
                 pending rows: --accept-copy=skip marks them done without calls, --accept-copy=deliver keeps them",
                self.database
            ))),
            _ => Ok(()),
        }
    }
}

impl Store {
    /// Which database this is, and what relay.installation says of it.
    pub async fn installation(&self) -> Result<Installation> {
        let sql = include_str!("../../sql/queries/installation/read.sql");
        let row = self.one("reading relay.installation", sql, &[]).await?;
        let identity =
            Identity { system_identifier: row.get(1), database_oid: row.get(2), table_oid: row.get(3) };
        let system_identifier: Option<i64> = row.get(4);
        let recorded = system_identifier.map(|system_identifier| Identity {
            system_identifier,
            database_oid: row.get(5),
            table_oid: row.get(6),
        });
        Ok(Installation { database: row.get(0), identity, recorded, site: row.get(7), is_copy: row.get(8) })
    }

    /// Whether the schema has relay.installation yet.
    pub async fn has_installation(&self) -> Result<bool> {
        let sql = include_str!("../../sql/queries/installation/exists.sql");
        Ok(self.one("finding relay.installation", sql, &[]).await?.get(0))
    }

    /// The last time that an operator accepted this database as a copy: its number, and how many rows were marked done
    /// without calls.
    pub async fn last_accepted(&self) -> Result<Option<(i64, i64)>> {
        let sql = include_str!("../../sql/queries/installation/last_accepted.sql");
        let rows = self.rows("reading relay.accepted_copies", sql, &[]).await?;
        Ok(rows.first().map(|row| (row.get(0), row.get(1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Identity = Identity { system_identifier: 7, database_oid: 5, table_oid: 3 };

    fn installation(recorded: Option<Identity>, site: Option<&str>) -> Installation {
        let is_copy = recorded != Some(HERE);
        Installation {
            database: "app".into(),
            identity: HERE,
            recorded,
            site: site.map(str::to_owned),
            is_copy,
        }
    }

    #[test]
    fn a_copy_says_where_it_differs() {
        assert_eq!(installation(Some(HERE), None).difference(), None);
        for (recorded, says) in [
            (None, "no row"),
            (Some(Identity { system_identifier: 8, ..HERE }), "system identifier 8"),
            (Some(Identity { database_oid: 6, ..HERE }), "oid 6"),
            (Some(Identity { table_oid: 4, ..HERE }), "restored over"),
            (Some(Identity { table_oid: 0, ..HERE }), "has not ended"),
        ] {
            let copy = installation(recorded, None);
            assert!(copy.difference().is_some_and(|text| text.contains(says)), "{recorded:?}");
            assert_eq!(copy.require_original().map_err(|error| error.exit_code()), Err(78));
        }
    }

    #[test]
    fn a_daemon_runs_only_where_both_name_the_same_site_or_neither_names_one() {
        for (known, named, may_run, may_be_named) in [
            (None, None, true, true),
            (Some("a"), Some("a"), true, true),
            (Some("a"), Some("b"), false, false),
            (Some("a"), None, false, true),
            (None, Some("a"), false, true),
        ] {
            let database = installation(Some(HERE), known);
            assert_eq!(database.require_site(named).is_ok(), may_run, "{known:?} {named:?}");
            assert_eq!(database.require_same_site(named).is_ok(), may_be_named, "{known:?} {named:?}");
        }
    }
}
