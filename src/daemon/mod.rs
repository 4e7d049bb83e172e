//! The loops that make the daemon, what they share, and the world outside.
//!
//! [`relay`] claims, hands out and finishes. [`cursor`] and [`low_water`] say where to look, [`wakeup`] when; [`sessions`] are those of
//! one registration, [`membership`] knows which instances live, [`outage`] what the operator must do about a Postgres that refuses
//! them; [`retention`] throws away; [`stall`] says when nothing moves; [`signals`] and [`systemd`] are the world outside.

pub mod cursor;
pub mod low_water;
pub mod membership;
pub mod outage;
pub mod relay;
pub mod retention;
pub mod sessions;
pub mod signals;
pub mod stall;
pub mod systemd;
pub mod wakeup;
