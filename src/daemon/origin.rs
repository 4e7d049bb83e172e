//! The database that this daemon began with: every session must be one of that database.
//!
//! Refuses a copy, a database of another site, and any other database than the first one. What this process has in hand
//! belongs to the first one. Waits for nothing.

use std::cell::OnceCell;

use crate::error::{Error, Result};
use crate::outbox::Store;
use crate::outbox::installation::Identity;

/// What the sessions of a daemon have in common.
pub struct Origin {
    site: Option<String>,
    /// The first session writes it.
    first: OnceCell<Identity>,
}

impl Origin {
    /// Knows no database yet. `site` is the daemon's.
    pub fn new(site: Option<String>) -> Origin {
        Origin { site, first: OnceCell::new() }
    }

    /// Succeeds when the session may claim and record here.
    ///
    /// # Errors
    ///
    /// [`Error::Installation`], with the way out; what the question itself fails with.
    pub async fn require(&self, session: &Store) -> Result<()> {
        let installation = session.installation().await?;
        installation.require_original()?;
        installation.require_site(self.site.as_deref())?;
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
}
