//! Sessions with Postgres, by libpq's rules.
//!
//! [`Settings`] is what the user typed and what it means; `Settings::connect` opens a [`Session`]: one connection and what
//! happens beside its queries (notifications, notices, its end). This room knows no table.

mod backend;
mod connect;
mod conninfo;
mod hosts;
mod keywords;
mod passfile;
mod race;
mod session;
mod settings;
mod timeline;
mod tls;

pub(crate) use connect::OLDEST_SERVER;
pub use session::Session;
pub use settings::Settings;
pub(crate) use settings::has_password;
pub(crate) use timeline::Timeline;
