//! A private Postgres for one test binary, with a folder, a port and certificates of its own. It is gone on drop.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Weak};

use nix::unistd::{User, geteuid};
use promptpal_relay::inside::postgres::{Session, Settings};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::sync::Mutex;

/// What TLS the server speaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tls {
    /// None.
    Off,
    /// With a certificate for `localhost`, signed by the authority in `ca.crt`; trusts that authority's clients.
    Signed,
    /// With a self-signed certificate made like Postgres' documentation makes it: CA:TRUE, a common name only.
    SelfSigned,
}

/// One server per kind, shared by the tests that run at the same time; the last one stops it.
pub struct Shared(Mutex<Weak<Server>>, Tls);

pub static PLAIN: Shared = Shared(Mutex::const_new(Weak::new()), Tls::Off);
pub static SIGNED: Shared = Shared(Mutex::const_new(Weak::new()), Tls::Signed);
pub static SELF_SIGNED: Shared = Shared(Mutex::const_new(Weak::new()), Tls::SelfSigned);

impl Shared {
    /// The running server; starts it if none runs.
    pub async fn server(&self) -> Arc<Server> {
        let mut place = self.0.lock().await;
        if let Some(server) = place.upgrade() {
            return server;
        }
        let server = Arc::new(Server::start(self.1));
        server.fill().await;
        *place = Arc::downgrade(&server);
        server
    }
}

/// A running Postgres.
pub struct Server {
    folder: tempfile::TempDir,
    owner: User,
    pub port: u16,
}

/// The rules of pg_hba.conf; the first one that fits counts.
const RULES: &str = "
local     all all                     trust
hostnossl all plain_only 127.0.0.1/32 trust
host      all plain_only 127.0.0.1/32 reject
hostssl   all cert_user  127.0.0.1/32 cert
host      all all        127.0.0.1/32 scram-sha-256
";

const ROLES: &str = "
CREATE ROLE relay LOGIN PASSWORD 'right:pass';
CREATE ROLE plain_only LOGIN;
CREATE ROLE cert_user LOGIN;
CREATE ROLE reader LOGIN PASSWORD 'right:pass';
ALTER ROLE reader SET default_transaction_read_only = on;
CREATE DATABASE app;
";

impl Server {
    fn start(tls: Tls) -> Server {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // Postgres refuses to run as root.
        let owner = if geteuid().is_root() {
            ["postgres", "nobody"].map(User::from_name)
        } else {
            [User::from_uid(geteuid()), Ok(None)]
        };
        let owner = owner.into_iter().find_map(|user| user.ok().flatten()).expect("an ordinary user");
        let mut server = Server { folder, owner, port: 0 };
        server.give(server.folder.path());
        server.write_certificates(tls);
        server.run(
            "initdb",
            &["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "-D", "data"],
        );
        fs::write(server.path("data/pg_hba.conf"), RULES).expect("pg_hba.conf written");
        // The port is free when it is drawn. When another program takes it before Postgres does, one more is drawn.
        for _ in 0..5 {
            server.port = free_port();
            if server
                .try_run("pg_ctl", &["start", "-w", "-D", "data", "-l", "log", "-o", &server.options(tls)])
            {
                return server;
            }
        }
        panic!("Postgres does not start: {}", fs::read_to_string(server.path("log")).unwrap_or_default());
    }

    fn options(&self, tls: Tls) -> String {
        let folder = self.folder.path().display();
        let mut options = format!(
            "-c listen_addresses=127.0.0.1 -p {} -c unix_socket_directories={folder} -c fsync=off",
            self.port
        );
        if tls != Tls::Off {
            options += &format!(
                " -c ssl=on -c ssl_cert_file={folder}/server.crt -c ssl_key_file={folder}/server.key \
                 -c ssl_ca_file={folder}/ca.crt"
            );
        }
        options
    }

    /// The server's certificate, an authority (`ca`), a stranger (`wrong`) and a client's certificate.
    fn write_certificates(&self, tls: Tls) {
        let (ours, wrong) = (authority("ours"), authority("wrong"));
        self.write("ca.crt", &ours.pem());
        self.write("wrong.crt", &wrong.pem());
        let key = KeyPair::generate().expect("a key");
        let mut server = named("localhost", &["localhost"]);
        let certificate = if tls == Tls::SelfSigned {
            server.subject_alt_names.clear();
            server.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            server.self_signed(&key)
        } else {
            server.signed_by(&key, &ours)
        };
        self.write("server.crt", &certificate.expect("the server's certificate").pem());
        self.write("server.key", &key.serialize_pem());
        let key = KeyPair::generate().expect("a key");
        for (name, authority) in [("client", &ours), ("stranger", &wrong)] {
            let certificate =
                named("cert_user", &[]).signed_by(&key, authority).expect("a client's certificate");
            self.write(&format!("{name}.crt"), &certificate.pem());
        }
        self.write("client.key", &key.serialize_pem());
    }

    async fn fill(&self) {
        let admin = self.admin().await;
        for statement in ROLES.trim().lines() {
            admin.batch_execute(statement).await.expect(statement);
        }
    }

    /// A superuser's session over the socket.
    pub async fn admin(&self) -> Session {
        let socket = format!("host={} port={} user=postgres", self.folder.path().display(), self.port);
        settings(&socket, &[]).connect("test", "").await.expect("the socket lets everybody in")
    }

    /// A file or folder of this server.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file that is as private as Postgres and libpq want keys and passwords.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode set");
        self.give(&path);
    }

    fn give(&self, path: &Path) {
        chown(path, Some(self.owner.uid.as_raw()), Some(self.owner.gid.as_raw()))
            .expect("given to the owner");
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        assert!(self.try_run(program, arguments), "{program} failed");
    }

    fn try_run(&self, program: &str, arguments: &[&str]) -> bool {
        let mut command = Command::new(binaries().join(program));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
        // Postgres keeps what it inherits open for as long as it runs, and a test's reader would wait for it.
        command.stderr(Stdio::null());
        if geteuid().is_root() {
            command.uid(self.owner.uid.as_raw()).gid(self.owner.gid.as_raw());
        }
        command.status().expect(program).success()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.try_run("pg_ctl", &["stop", "-w", "-m", "immediate", "-D", "data"]);
    }
}

/// Settings from this text and these variables, in a home without files.
pub fn settings(text: &str, variables: &[(&str, &str)]) -> Settings {
    let env = |name: &str| {
        let found =
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned());
        found.or((name == "HOME").then(|| "/nonexistent".to_owned()))
    };
    Settings::parse(Some(text), &env).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A port of 127.0.0.1 that no server listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = named(name, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

fn named(common: &str, alternatives: &[&str]) -> CertificateParams {
    let names: Vec<String> = alternatives.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    params
}

/// The newest Postgres under /usr/lib/postgresql, else the one of PATH.
fn binaries() -> PathBuf {
    let version = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let installed =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    match installed.filter(|path| path.join("bin/pg_ctl").exists()).max_by_key(version) {
        Some(newest) => newest.join("bin"),
        None => std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .find(|folder| folder.join("pg_ctl").exists())
            .expect("Postgres' server programs; install the package postgresql"),
    }
}
