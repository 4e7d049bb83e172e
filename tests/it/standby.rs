//! A server that follows another one, for tests of a failover and of what can be seen at a standby.

use std::fs;
use std::process::Command;

use promptpal_relay::command::demo::postgres::{Cluster, Stop};

/// A standby of this server, made from a copy of its data; the server is restarted for that. `SELECT pg_promote()` makes
/// the standby a primary.
pub fn standby_of(primary: &mut Cluster) -> Cluster {
    let source = format!("host={} port={} user=postgres", primary.socket_dir().display(), primary.port());
    let mut standby = Cluster::start(&[&format!("primary_conninfo={source}")]).unwrap();
    standby.halt(Stop::Fast);
    primary.halt(Stop::Fast);
    let data = standby.socket_dir().join("data");
    fs::remove_dir_all(&data).unwrap();
    // Keeps the owner: Postgres does not run as root.
    let copied =
        Command::new("cp").arg("-a").arg(primary.socket_dir().join("data")).arg(&data).output().unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    fs::write(data.join("standby.signal"), "").unwrap();
    primary.boot().unwrap();
    standby.boot().unwrap();
    standby
}
