//! The database that this daemon began with: every session must be one of that database.
//!
//! Refuses a copy, a database of another site, and any other database than the first one. What this process has in hand
//! belongs to the first one. Waits for nothing.

use std::cell::{Cell, OnceCell};

use crate::error::{Error, Result};
use crate::outbox::Store;
use crate::outbox::installation::Identity;

/// What the sessions of a daemon have in common.
pub(super) struct Origin {
    site: Option<String>,
    /// The first session writes it.
    first: OnceCell<Identity>,
    /// Each session writes it.
    last: Cell<Option<Identity>>,
}

impl Origin {
    /// Knows no database yet. `site` is the daemon's.
    pub(super) fn new(site: Option<String>) -> Origin {
        Origin { site, first: OnceCell::new(), last: Cell::new(None) }
    }

    /// Whether the last session that was asked is one of the database that this daemon began with.
    pub(super) fn is_the_first(&self) -> bool {
        self.last.get().as_ref() == self.first.get()
    }

    /// Succeeds when the session may claim and record here.
    ///
    /// # Errors
    ///
    /// [`Error::Installation`], with the way out; what the question itself fails with.
    pub(super) async fn require(&self, session: &Store) -> Result<()> {
        let installation = session.installation().await?;
        self.last.set(Some(installation.identity));
        installation.require_original()?;
        installation.require_site(self.site.as_deref()).map_err(|error| self.say_renamed(error))?;
        let first = self.first.get_or_init(|| installation.identity);
        if *first == installation.identity {
            return Ok(());
        }
        Err(Error::Installation(format!(
            "database {} is not the one that this daemon began with (system identifier {}, oid {}; now {}, {}): see that \
             the connection settings lead to the right one, and start the daemon again",
            installation.database,
            first.system_identifier,
            first.database_oid,
            installation.identity.system_identifier,
            installation.identity.database_oid
        )))
    }

    /// The daemon began here under the site of then, so an operator has changed the site since.
    fn say_renamed(&self, error: Error) -> Error {
        match error {
            Error::Installation(why) if self.is_the_first() => Error::Installation(format!(
                "the site of the database was changed while this daemon ran: {why}"
            )),
            error => error,
        }
    }
}
