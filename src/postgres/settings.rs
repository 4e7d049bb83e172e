//! Where and how to connect: what the user typed, completed by the `PG*` variables and libpq's defaults.
//!
//! Owns the meaning of every key, and checks all of it once, before the first connection. Reads no password from a file and
//! opens no connection: `connect` does both, anew for each session.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::unistd::{User, geteuid};
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, SslMode, SslNegotiation};

use crate::error::{Result, one_line};
use crate::model::database_addresses::Reached;
use crate::postgres::backend::Proved;
use crate::postgres::conninfo::{self, Params, SPACES};
use crate::postgres::hosts::{Host, Place, hosts};
use crate::postgres::keywords::{bad, fill_in, refuse_what_is_not_done};
use crate::postgres::timeline::Newest;
use crate::postgres::tls::{self, Identity, Mode, Root};

/// One address try, name resolution and handshakes included. Long enough for a slow login, short enough that the
/// next host of a cluster is tried while the operator still waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

// A half-open connection is noticed within 10 seconds. Idle: 5 s of silence, then probes at 5, 7 and 9 s, and
// silence ends the connection at 9 s. With a query in flight, TCP_USER_TIMEOUT ends it 9 s after the first byte that
// the server did not acknowledge.
const KEEPALIVES_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVES_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVES_COUNT: u32 = 2;
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(9);

/// What the server must allow the relay (`target_session_attrs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Any server: the user says so.
    Any,
    /// A server that takes writes. The default: the relay is useless where it cannot write.
    Write,
    /// A server that is no standby.
    Primary,
}

/// Where and how to connect, checked once. `Debug` and messages never show the password.
///
/// Files that hold secrets or certificates are read at every connect, so that a renewed one needs no restart. These are
/// `passfile`, `sslrootcert`, `sslcert`, `sslkey`, and the file of the URL where there is one.
#[derive(Clone)]
pub struct Settings {
    /// Everything but the host: user, database, password, keepalives.
    pub(super) config: Config,
    /// Tried in this order; never empty.
    pub(super) hosts: Vec<Host>,
    pub(super) access: Access,
    pub(super) tls: tls::Options,
    /// Asked when no password was given.
    pub(super) passfile: Option<PathBuf>,
    /// None when the user has asked for no limit.
    pub(super) connect_timeout: Option<Duration>,
    /// The addresses at which this value and its clones opened sessions. The egress policy reads them: no call may reach
    /// Postgres.
    pub reached: Reached,
    /// Which servers keep a session's backend, by this value and its clones.
    pub(super) proved: Proved,
    /// The newest timeline that this value and its clones have been on.
    pub(super) newest: Newest,
    /// Reads the URL's file again; none where the URL came from elsewhere.
    renewal: Option<Renewal>,
}

/// What the URL's file has now. Cheap to clone; all clones are one.
#[derive(Clone)]
struct Renewal {
    read: Arc<dyn Fn() -> Result<Settings> + Send + Sync>,
    // The configuration of the last reading that succeeded. Each connection writes it and reads it.
    last: Arc<Mutex<Config>>,
}

/// Whether there is a password in what the user typed.
pub(crate) fn has_password(database_url: &str) -> bool {
    conninfo::parse(database_url)
        .is_ok_and(|params| params.get("password").is_some_and(|value| !value.is_empty()))
}

impl Settings {
    /// What the user typed, a `postgres://` URL or `key=value` pairs, completed by the `PG*` variables, then by
    /// libpq's defaults; `None` is the variables and defaults alone. `env` looks a variable up.
    ///
    /// Without any host: the Unix socket in `/var/run/postgresql` or `/tmp`, else `localhost`. Without user: the
    /// operating system's; without database: the user's name. `sslmode` is `prefer` unless said otherwise; `require`
    /// with a root certificate checks like `verify-ca`. The root certificate is `sslrootcert` or
    /// `~/.postgresql/root.crt`; without either, `verify-full` trusts the system's store and `verify-ca` is refused.
    ///
    /// # Errors
    /// [`Error::Config`](crate::error::Error::Config): one line on what is wrong and what to do.
    pub fn parse(database_url: Option<&str>, env: &dyn Fn(&str) -> Option<String>) -> Result<Settings> {
        // Set but empty is not set, and some keys have no variable.
        let env =
            |name: &str| if name.is_empty() { None } else { env(name).filter(|value| !value.is_empty()) };
        let mut params = database_url.map_or_else(|| Ok(Params::new()), conninfo::parse)?;
        refuse_what_is_not_done(&params, &env)?;
        fill_in(&mut params, &env);
        // Given and empty: the default, and not what a variable says.
        params.retain(|_, value| !value.is_empty());

        let home = env("HOME").map(PathBuf::from).or_else(|| os_user().map(|user| user.dir));
        let hosts = hosts(&params)?;
        let config = config(&params)?;
        let tls = tls_options(&params, &hosts, home.as_deref())?;
        tls.connector()?;
        let passfile = match (params.get("passfile"), home) {
            (Some(path), _) => Some(PathBuf::from(path)),
            (None, home) => home.map(|home| home.join(".pgpass")),
        };
        let connect_timeout = match number::<i64>(&params, "connect_timeout")? {
            None => Some(CONNECT_TIMEOUT),
            Some(seconds) => u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs),
        };
        let (access, reached) = (access(&params)?, Reached::default());
        Ok(Settings {
            config,
            hosts,
            access,
            tls,
            passfile,
            connect_timeout,
            reached,
            proved: Proved::default(),
            newest: Newest::default(),
            renewal: None,
        })
    }

    /// These settings, read anew by `read` for each session. Servers, database and TLS stay as they were checked: the egress
    /// policy knows the servers by them.
    pub(crate) fn renewed_by(self, read: impl Fn() -> Result<Settings> + Send + Sync + 'static) -> Settings {
        let last = Arc::new(Mutex::new(self.config.clone()));
        Settings { renewal: Some(Renewal { read: Arc::new(read), last }), ..self }
    }

    /// The settings of the session that is opened now. Where the file cannot be read, they are those of the last reading: the
    /// file may be about to be written.
    pub(super) fn current(&self) -> Settings {
        let mut current = self.clone();
        let Some(renewal) = &self.renewal else { return current };
        let mut last = renewal.last.lock().expect("nothing panics while holding it");
        match (renewal.read)() {
            Ok(read) => {
                let is_elsewhere = |one: &Settings| (one.hosts.clone(), one.database().to_owned());
                if is_elsewhere(&read) != is_elsewhere(self) {
                    tracing::warn!(
                        "the file with the database URL names another server or database: that takes effect at a restart; its \
                         role and password are used now"
                    );
                }
                *last = read.config;
            }
            Err(error) => {
                tracing::warn!(error = %one_line(&error), "the role and the password from before are used");
            }
        }
        current.config = last.clone();
        current.config.dbname(self.database());
        current
    }

    /// For messages: `user@host:port/database, sslmode prefer`. Never a password.
    pub fn describe(&self) -> String {
        let hosts = self.hosts.iter().map(Host::to_string).collect::<Vec<_>>().join(",");
        format!("{}@{hosts}/{}, sslmode {}", self.user(), self.database(), self.tls.mode.as_str())
    }

    /// The names and addresses under which Postgres is reached by TCP, with the port. A server behind a Unix socket is one of
    /// this machine, and mostly listens on its addresses, too. The egress policy reads them: no call may reach Postgres.
    pub fn tcp_hosts(&self) -> Vec<(String, u16)> {
        let mut found = Vec::new();
        for Host { place, port } in &self.hosts {
            let Place::Tcp { name, address } = place else {
                found.push(("localhost".to_owned(), *port));
                continue;
            };
            let address = address.map(|address| address.to_string()).filter(|address| address != name);
            found.extend([Some(name.clone()), address].into_iter().flatten().map(|host| (host, *port)));
        }
        found
    }

    /// The role that it logs in as.
    pub fn user(&self) -> &str {
        self.config.get_user().unwrap_or_default()
    }

    pub(super) fn database(&self) -> &str {
        self.config.get_dbname().unwrap_or_default()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Settings").field(&self.describe()).finish()
    }
}

fn os_user() -> Option<User> {
    User::from_uid(geteuid()).ok().flatten()
}

/// Reads a key whose whole value must be one of these words.
fn choice<T: Copy>(params: &Params, key: &str, words: &[(&str, T)]) -> Result<Option<T>> {
    let Some(value) = params.get(key) else { return Ok(None) };
    match words.iter().find(|(word, _)| word == value) {
        Some((_, meaning)) => Ok(Some(*meaning)),
        None => {
            let words = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
            bad(key, format_args!("`{value}` is not one of {words}"))
        }
    }
}

fn number<T: std::str::FromStr>(params: &Params, key: &str) -> Result<Option<T>> {
    match params.get(key).map(|value| (value, value.trim_matches(SPACES).parse())) {
        None => Ok(None),
        Some((_, Ok(number))) => Ok(Some(number)),
        Some((value, Err(_))) => bad(key, format_args!("`{value}` is not a whole number")),
    }
}

/// Reads a key in seconds. Zero leaves the system's own value, as in libpq.
fn seconds(params: &Params, key: &str, default: Duration) -> Result<Option<Duration>> {
    let seconds = number::<u64>(params, key)?.map(Duration::from_secs);
    Ok(Some(seconds.unwrap_or(default)).filter(|time| !time.is_zero()))
}

/// What tokio-postgres is told about every host alike.
fn config(params: &Params) -> Result<Config> {
    let mut config = Config::new();
    let Some(user) = params.get("user").cloned().or_else(|| os_user().map(|user| user.name)) else {
        return bad("user", "this process's user has no name; say which role to connect as");
    };
    config.dbname(params.get("dbname").unwrap_or(&user)).user(user);
    if let Some(password) = params.get("password") {
        config.password(password);
    }
    if let Some(options) = params.get("options") {
        config.options(options);
    }
    if let Some(name) = params.get("application_name") {
        config.application_name(name);
    }
    let binding = [
        ("disable", ChannelBinding::Disable),
        ("prefer", ChannelBinding::Prefer),
        ("require", ChannelBinding::Require),
    ];
    config.channel_binding(choice(params, "channel_binding", &binding)?.unwrap_or(ChannelBinding::Prefer));

    config.keepalives(number::<i64>(params, "keepalives")? != Some(0));
    if let Some(time) = seconds(params, "keepalives_idle", KEEPALIVES_IDLE)? {
        config.keepalives_idle(time);
    }
    if let Some(time) = seconds(params, "keepalives_interval", KEEPALIVES_INTERVAL)? {
        config.keepalives_interval(time);
    }
    match number::<u32>(params, "keepalives_count")?.unwrap_or(KEEPALIVES_COUNT) {
        0 => {}
        count => {
            config.keepalives_retries(count);
        }
    }
    // In libpq's milliseconds, where tokio-postgres' own parser would read seconds.
    let limit = number::<u64>(params, "tcp_user_timeout")?.map_or(TCP_USER_TIMEOUT, Duration::from_millis);
    if !limit.is_zero() {
        config.tcp_user_timeout(limit);
    }
    Ok(config)
}

fn access(params: &Params) -> Result<Access> {
    let words = [
        ("read-write", Some(Access::Write)),
        ("primary", Some(Access::Primary)),
        ("any", Some(Access::Any)),
        ("read-only", None),
        ("standby", None),
        ("prefer-standby", None),
    ];
    match choice(params, "target_session_attrs", &words)? {
        None => Ok(Access::Write),
        Some(Some(access)) => Ok(access),
        Some(None) => bad("target_session_attrs", "the relay writes; use read-write, or leave it out"),
    }
}

/// The modes' rules, see [`Settings::parse`].
fn tls_options(params: &Params, hosts: &[Host], home: Option<&Path>) -> Result<tls::Options> {
    let words = [
        ("disable", Mode::Disable),
        ("allow", Mode::Prefer),
        ("prefer", Mode::Prefer),
        ("require", Mode::Require),
        ("verify-ca", Mode::VerifyCa),
        ("verify-full", Mode::VerifyFull),
    ];
    let explicit = choice(params, "sslmode", &words)?;
    let negotiation = choice(
        params,
        "sslnegotiation",
        &[("postgres", SslNegotiation::Postgres), ("direct", SslNegotiation::Direct)],
    )?;
    let in_home =
        |file: &str| home.map(|home| home.join(".postgresql").join(file)).filter(|path| path.exists());

    let from_system = params.get("sslrootcert").is_some_and(|path| path == "system");
    let mode = explicit.unwrap_or(if from_system { Mode::VerifyFull } else { Mode::Prefer });
    if from_system && mode < Mode::VerifyFull {
        return bad(
            "sslmode",
            "sslrootcert=system needs verify-full: anybody can have a certificate of its authorities",
        );
    }
    let root = match (params.get("sslrootcert"), in_home("root.crt")) {
        (Some(_), _) if from_system => Root::System,
        (Some(path), _) => Root::File(path.into()),
        (None, Some(path)) => Root::File(path),
        (None, None) if mode == Mode::VerifyFull => Root::System,
        (None, None) => Root::None,
    };

    // A socket is never encrypted, whatever the mode; libpq ignores it there too.
    if !hosts.iter().any(|host| matches!(host.place, Place::Tcp { .. })) {
        return Ok(tls::Options { mode: Mode::Disable, root: Root::None, identity: None, direct: false });
    }
    if mode == Mode::VerifyCa && root == Root::None {
        return bad("sslmode", "verify-ca needs the authority's certificate; name its file with sslrootcert");
    }
    let direct = negotiation == Some(SslNegotiation::Direct);
    if direct && mode < Mode::Require {
        return bad("sslnegotiation", "direct needs sslmode require, verify-ca or verify-full");
    }
    let cert = params.get("sslcert").map(PathBuf::from).or_else(|| in_home("postgresql.crt"));
    let key = params.get("sslkey").map(PathBuf::from).or_else(|| in_home("postgresql.key"));
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some(Identity { cert, key }),
        (Some(_), None) => return bad("sslkey", "sslcert needs the key's file"),
        (None, _) => None,
    };
    Ok(tls::Options { mode, root, identity, direct })
}

/// The negotiation that tokio-postgres is told for a TCP host.
pub(super) fn negotiation(tls: &tls::Options) -> (SslMode, SslNegotiation) {
    let mode = match tls.mode {
        Mode::Disable => SslMode::Disable,
        Mode::Prefer => SslMode::Prefer,
        Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
    };
    (mode, if tls.direct { SslNegotiation::Direct } else { SslNegotiation::Postgres })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With these variables (`NAME=value`), in a home without files unless they name one.
    fn parse(url: &str, variables: &[&str]) -> Result<Settings> {
        let env = |name: &str| {
            let found =
                variables.iter().filter_map(|variable| variable.split_once('=')).find(|(n, _)| *n == name);
            found.map(|(_, value)| value.to_owned()).or((name == "HOME").then(|| "/nonexistent".into()))
        };
        Settings::parse(Some(url).filter(|url| !url.is_empty()), &env)
    }

    fn described(url: &str, variables: &[&str]) -> String {
        parse(url, variables).map_or_else(|error| format!("error: {error}"), |settings| settings.describe())
    }

    #[test]
    fn the_url_wins_and_the_variables_fill_in() {
        for (url, variables, expected) in [
            ("postgres://relay@db1/app", &[][..], "relay@db1:5432/app, sslmode prefer"),
            ("postgres://relay@db1", &[], "relay@db1:5432/relay, sslmode prefer"),
            (
                "postgres://relay@db1/app?sslmode=require",
                &["PGHOST=x", "PGPORT=5433", "PGUSER=x", "PGDATABASE=x", "PGSSLMODE=disable"],
                "relay@db1:5433/app, sslmode require",
            ),
            (
                "",
                &["PGHOST=db1,db2", "PGPORT=1,2", "PGUSER=relay", "PGDATABASE=app", "PGSSLMODE=allow"],
                "relay@db1:1,db2:2/app, sslmode prefer",
            ),
            (
                "user=relay host=/run/pg",
                &["PGSSLMODE=verify-ca"],
                "relay@/run/pg:5432/relay, sslmode disable",
            ),
            // Given, and empty: libpq's default, whatever the variable says.
            ("user=relay host=db1 dbname=", &["PGDATABASE=x"], "relay@db1:5432/relay, sslmode prefer"),
            (
                "postgres://relay@db1/app?sslmode=&service=",
                &["PGSSLMODE=require"],
                "relay@db1:5432/app, sslmode prefer",
            ),
            ("postgres://relay@a:1,[::1]/app", &["PGHOST="], "relay@a:1,[::1]:5432/app, sslmode prefer"),
            ("postgres://relay@db1/app?sslrootcert=system", &[], "relay@db1:5432/app, sslmode verify-full"),
            ("postgres://relay@db1/app?sslmode=verify-full", &[], "relay@db1:5432/app, sslmode verify-full"),
            ("postgres://relay@db1?gssencmode=disable&sslsni=1", &[], "relay@db1:5432/relay, sslmode prefer"),
        ] {
            assert_eq!(described(url, variables), expected, "{url} {variables:?}");
        }
    }

    #[test]
    fn without_user_and_database_it_is_the_systems_user() {
        let name = os_user().expect("the test's user has a name").name;
        assert_eq!(described("host=db1", &[]), format!("{name}@db1:5432/{name}, sslmode prefer"));
    }

    #[test]
    fn what_cannot_be_meant_or_done_is_refused_in_one_line() {
        for (url, variables, part) in [
            (
                "host=a sslmode=verify",
                &[][..],
                "sslmode (or PGSSLMODE): `verify` is not one of disable, allow",
            ),
            ("host=a sslmode=verify-ca", &[], "name its file with sslrootcert"),
            ("host=a sslrootcert=system sslmode=require", &[], "sslrootcert=system needs verify-full"),
            ("host=a", &["PGSSLROOTCERT=system", "PGSSLMODE=prefer"], "sslrootcert=system needs verify-full"),
            (
                "host=a sslmode=require sslrootcert=/nonexistent",
                &[],
                "sslrootcert: /nonexistent cannot be used",
            ),
            ("host=a sslcert=/nonexistent", &[], "sslcert needs the key's file"),
            ("host=a sslcert=/nonexistent sslkey=/nonexistent", &[], "sslkey: /nonexistent cannot be used"),
            ("host=a sslnegotiation=direct", &[], "direct needs sslmode require"),
            ("service=app", &[], "service is not supported"),
            ("host=a", &["PGSERVICE=app"], "PGSERVICE is not supported"),
            ("host=a require_auth=scram-sha-256", &[], "require_auth is not supported"),
            ("host=a", &["PGREQUIREPEER=postgres"], "PGREQUIREPEER is not supported"),
            ("host=a", &["PGGSSENCMODE=require"], "GSS encryption is not supported"),
            ("host=a target_session_attrs=standby", &[], "the relay writes"),
            ("postgres://a/b?pgbouncer=true", &[], "pgbouncer: no such setting"),
            ("host=a connect_timeout=soon", &[], "`soon` is not a whole number"),
            ("host=a", &["PGCONNECT_TIMEOUT=10s"], "`10s` is not a whole number"),
            ("host=a channel_binding=yes", &[], "`yes` is not one of disable, prefer, require"),
        ] {
            let error = parse(url, variables).expect_err(url);
            let text = error.to_string();
            assert!(text.contains(part), "{url} {variables:?} gave {text}");
            assert!(!text.contains('\n') && error.exit_code() == 78, "{text}");
        }
    }

    #[test]
    fn times_have_libpqs_units_and_our_defaults() {
        let settings = parse("host=a", &[]).expect("good");
        assert_eq!(settings.connect_timeout, Some(Duration::from_secs(5)));
        let config = &settings.config;
        assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_secs(9)));
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(5));
        assert_eq!(config.get_keepalives_interval(), Some(Duration::from_secs(2)));
        assert_eq!(config.get_keepalives_retries(), Some(2));

        let settings = parse(
            "host=a connect_timeout=3 tcp_user_timeout=1500 keepalives_idle=60 keepalives_count=4",
            &["PGCONNECT_TIMEOUT=7"],
        )
        .expect("good");
        assert_eq!(settings.connect_timeout, Some(Duration::from_secs(3)));
        assert_eq!(settings.config.get_tcp_user_timeout(), Some(&Duration::from_millis(1500)));
        assert_eq!(settings.config.get_keepalives_idle(), Duration::from_secs(60));
        assert_eq!(settings.config.get_keepalives_retries(), Some(4));

        let settings = parse("host=a", &["PGCONNECT_TIMEOUT=0"]).expect("good");
        assert_eq!(settings.connect_timeout, None);
        assert!(!parse("host=a keepalives=0", &[]).expect("good").config.get_keepalives());
    }

    #[test]
    fn the_root_certificate_in_the_home_folder_counts() {
        let home = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(home.path().join(".postgresql")).expect("a folder");
        let root = home.path().join(".postgresql/root.crt");
        std::fs::write(&root, "not a certificate").expect("a file");
        let home = format!("HOME={}", home.path().display());
        for mode in ["require", "verify-ca", "verify-full"] {
            let text = described(&format!("host=a sslmode={mode}"), &[&home]);
            assert!(text.contains("root.crt cannot be used"), "{mode} gave {text}");
        }
        let settings = parse("host=a user=u sslmode=prefer", &[&home]).expect("prefer reads no certificate");
        assert_eq!(settings.tls.root, Root::File(root));
        assert_eq!(settings.passfile, Some(Path::new(&home[5..]).join(".pgpass")));
    }

    #[test]
    fn the_password_never_shows() {
        for (url, variables) in [
            ("postgres://relay:s3cret@db1/app", &[][..]),
            ("host=db1 password=s3cret", &[]),
            ("host=db1", &["PGPASSWORD=s3cret"]),
        ] {
            let settings = parse(url, variables).expect(url);
            assert_eq!(settings.config.get_password(), Some(&b"s3cret"[..]));
            for shown in [format!("{settings:?}"), format!("{settings:#?}"), settings.describe()] {
                assert!(!shown.contains("s3cret"), "{shown}");
            }
        }
    }

    #[test]
    fn tcp_hosts_are_names_and_addresses_and_this_machine_for_sockets() {
        let settings = parse("host=/run/pg,db2,db3 hostaddr=,10.0.0.2, port=1,2,3", &[]).expect("good");
        let expected = [("localhost", 1), ("db2", 2), ("10.0.0.2", 2), ("db3", 3)]
            .map(|(host, port)| (host.to_owned(), port));
        assert_eq!(settings.tcp_hosts(), expected);
        assert_eq!(parse("host=/run/pg", &[]).expect("good").tcp_hosts(), [("localhost".to_owned(), 5432)]);
        let settings = parse("hostaddr=10.0.0.1", &[]).expect("good");
        assert_eq!(settings.tcp_hosts(), [("10.0.0.1".to_owned(), 5432)]);
    }
}
