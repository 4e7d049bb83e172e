//! Who is alive: an instance's epoch, its liveness lock, and the burial of others.
//!
//! An epoch is drawn, its advisory lock taken on this session, and only then is the instance listed; so a listed
//! epoch whose lock is free is dead, and nobody who has just registered is taken for dead. Never waits for a lock
//! inside Postgres: a waiting session would hold back vacuum.

use std::cell::RefCell;
use std::fs;

use crate::db::Settings;
use crate::error::{Error, Result};
use crate::store::{Role, Store};

/// The channel that sleeping relays listen to; `relay.wake()` notifies it.
const LISTEN: &str = "LISTEN promptpal_relay";

/// This process, registered; its session is the one that listens.
pub struct Instance {
    epoch: i32,
    store: Store,
    // Epochs whose rows may be taken over. Written by Instance::look_around, read by the claim.
    dead: RefCell<Vec<i64>>,
}

impl Instance {
    /// Connects the session, listens, takes an epoch and lists it. Does not bury anybody yet: whoever had rows in hand
    /// under an older epoch of its own takes those over first.
    pub async fn register(settings: &Settings) -> Result<Instance> {
        let store = Store::connect(settings, Role::Listen).await?;
        // A statement of its own, so committed when it returns: what is inserted from here on is heard of.
        store.batch_execute(LISTEN).await.map_err(Error::postgres("listening"))?;
        let epoch = store.draw_epoch().await?;
        if !store.lock_epoch(epoch).await? {
            return Err(Error::Failed(format!(
                "the advisory lock of the new epoch {epoch} is taken: does another program use locks of class 1886415986?"
            )));
        }
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        store.register(epoch, host.trim(), pid, env!("CARGO_PKG_VERSION")).await?;
        Ok(Instance { epoch, store, dead: RefCell::default() })
    }

    /// The epoch that stamps our claims.
    pub fn epoch(&self) -> i64 {
        i64::from(self.epoch)
    }

    /// The session that listens and keeps the liveness lock.
    pub fn session(&self) -> &Store {
        &self.store
    }

    /// Marks dead instances as such, and learns whose rows may be taken over. True when there are new ones.
    pub async fn look_around(&self) -> Result<bool> {
        let mut dead = Vec::new();
        for (epoch, just_now) in self.store.bury(self.epoch).await? {
            if just_now {
                tracing::warn!(epoch, "found a dead instance: its rows are taken over");
            }
            dead.push(i64::from(epoch));
        }
        let mut known = self.dead.borrow_mut();
        let new = dead.iter().any(|epoch| !known.contains(epoch));
        *known = dead;
        Ok(new)
    }

    /// Epochs whose rows may be taken over.
    pub fn dead(&self) -> Vec<i64> {
        self.dead.borrow().clone()
    }

    /// The end of this instance: it has nothing in hand any more.
    pub async fn retire(self) -> Result<()> {
        self.store.retire(self.epoch, true).await
    }
}
