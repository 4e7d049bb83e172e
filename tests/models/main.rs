//! The two protocols that keep the promise, as models whose every state is visited: the sleep lock, and claim, death,
//! takeover and late finish. Variants that are known to be wrong stand beside them and must fail, or the models would
//! prove nothing.

#![allow(missing_docs, reason = "tests are named by sentences")]

mod sleep_lock;
mod takeover;
