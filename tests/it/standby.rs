//! A server that follows another one, for tests of a failover and of what can be seen at a standby.

use std::fs;
use std::process::Command;

use promptpal_relay::inside::demo::{Cluster, Stop};

use crate::support::server_program;

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

/// A second server, made from a base backup of this one: it has the same identifiers, and follows no server.
pub fn base_backup_of(primary: &Cluster) -> Cluster {
    let mut second = Cluster::start(&[]).unwrap();
    second.halt(Stop::Fast);
    let data = second.socket_dir().join("data");
    fs::remove_dir_all(&data).unwrap();
    let source = format!("host={} port={} user=postgres", primary.socket_dir().display(), primary.port());
    let mut backup = server_program("pg_basebackup");
    backup.args(["--checkpoint=fast", "--no-sync", "--dbname", &source, "--pgdata"]).arg(&data);
    // Postgres does not run as root.
    let mut owner = Command::new("chown");
    owner.args(["-R", "--reference"]).arg(second.socket_dir()).arg(&data);
    for mut command in [backup, owner] {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    second.boot().unwrap();
    second
}
