//! Opens a session: which server and address, in which order, with which settings, and what a refusal means.
//!
//! Owns no retry: the caller knows when the next attempt is due.

use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::lookup_host;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Config, Connection, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::{Error, Result, one_line};
use crate::postgres::backend;
use crate::postgres::hosts::{self, Host, Place};
use crate::postgres::passfile;
use crate::postgres::race;
use crate::postgres::session::Session;
use crate::postgres::settings::{self, Access, Settings};
use crate::postgres::timeline::Timeline;
use crate::postgres::tls;
use crate::tls::handshake;

/// The `application_name` of every session, followed by its role.
const APPLICATION_NAME: &str = "promptpal-relay";

/// The oldest Postgres that the schema and the session settings are made for, by its major version.
pub(crate) const OLDEST_SERVER: u32 = 14;

/// Settings of every session, unless the user's own `options` name them. A site's defaults are made for the queries of its
/// applications. Beside each setting stands what such a default would do to a daemon.
const SESSION_SETTINGS: &[(&str, &str)] = &[
    // A statement that was cut off is made again and cut off again, for ever. The relay's statements are short by design.
    ("statement_timeout", "0"),
    // A commit that waits for a lock of another session is no further when it is cut off. Statements that may give up set
    // it themselves.
    ("lock_timeout", "0"),
    // The listening session is silent for hours.
    ("idle_session_timeout", "0"),
    // No transaction of the relay's waits for anything but Postgres. If this process is stopped within one (SIGSTOP, a
    // debugger, a frozen machine), its locks and its snapshot must not stay.
    ("idle_in_transaction_session_timeout", "'30s'"),
    // Compiling a short statement takes longer than running it, and a large backlog can make it look expensive.
    ("jit", "off"),
    // The server's side of a half-open connection. A relay whose machine vanished frees its advisory locks and its rows
    // within 10 s, not after the two hours that systems have by default. Without effect on Unix sockets.
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "2"),
    ("tcp_user_timeout", "'9s'"),
];

/// Settings of every session with a newer server: Postgres 17 and later have this one. It is off for the reason of
/// `statement_timeout`.
const NEWER_SETTINGS: &[(&str, &str)] = &[("transaction_timeout", "0")];

/// Settings that the code relies on, whatever the user's `options` say, and that come before all others. Functions and
/// operators are Postgres' own: those that another role creates in a schema of the search path would run with the relay's
/// rights. Rows that a policy hides are a refusal, not rows that are missing. `SKIP LOCKED` and guarded updates are made
/// for read committed, days begin in UTC, and a backslash in a string is a backslash.
const RELIED_ON: &str = "SET search_path = pg_catalog, pg_temp; SET row_security = off; SET TimeZone = 'UTC'; \
                         SET default_transaction_isolation = 'read committed'; SET standard_conforming_strings = on; ";

/// Ends a statement whose client is gone, which keepalives alone do not (the server looks at its socket only between
/// statements). Not every platform of the server has it, so this setting is made alone and may fail.
const CHECK_CLIENT: (&str, &str) = ("client_connection_check_interval", "'10s'");

/// Whether this server can be written to; asked in the same breath as the settings are made.
const CAN_WRITE: &str = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::boolean, \
                         current_setting('default_transaction_read_only')::boolean";

impl Settings {
    /// Opens a session. `role` says in `pg_stat_activity` what it is for ("claim", "listen", …): the session's
    /// `application_name` is `promptpal-relay claim`, unless the user has set one. `setup` are statements that make
    /// its settings (`SET`, `RESET`).
    ///
    /// Tries the hosts, and the addresses of each, in order until one accepts. One that does not answer for half a second lets
    /// the next one begin, unless any server will do (see [`race`]). A server that refuses for good (password, certificate,
    /// database) ends the search, as in libpq. One that is away, starting, read-only or an old primary does not. Takes
    /// `connect_timeout` (5 s by default) for each address at most.
    ///
    /// # Errors
    /// Names user, host, port and database. Exit code 78 for what a restart does not change, 1 for what it may.
    pub async fn connect(&self, role: &str, setup: &str) -> Result<Session> {
        self.current().connect_once(role, setup).await
    }

    async fn connect_once(&self, role: &str, setup: &str) -> Result<Session> {
        let tls = self.tls.connector()?;
        let attempt = async |number: usize| self.connect_host(&self.hosts[number], role, setup, &tls).await;
        race::first(self.hosts.len(), self.in_turn(), attempt).await.map_err(|mut failures| {
            match failures.len() {
                1 => failures.swap_remove(0),
                _ => Error::Servers(failures),
            }
        })
    }

    /// Whether the order of the hosts is a choice among servers that all would do.
    fn in_turn(&self) -> bool {
        self.access == Access::Any
    }

    /// Tries the addresses of one host; the last failure speaks for all.
    async fn connect_host(
        &self,
        host: &Host,
        role: &str,
        setup: &str,
        tls: &MakeRustlsConnect,
    ) -> Result<Session> {
        let addresses = match &host.place {
            Place::Socket(_) => vec![None],
            Place::Tcp { address: Some(address), .. } => vec![Some(*address)],
            Place::Tcp { name, address: None } => {
                let found = self.in_time(host, async {
                    lookup_host((name.as_str(), host.port)).await.map_err(|error| {
                        tracing::debug!(name, error = one_line(&error), "a name was not resolved");
                        Error::Failed(format!(
                            "{}: the name could not be resolved: it does not exist, or its name servers do not answer",
                            self.doing(host)
                        ))
                    })
                });
                found.await?.map(|found| Some(found.ip())).collect()
            }
        };
        let attempt = async |number: usize| {
            let address: Option<IpAddr> = addresses[number];
            let session =
                self.in_time(host, self.connect_address(host, address, role, setup, tls.clone())).await?;
            if let Some(address) = address {
                self.reached.add(address, host.port);
            }
            Ok(session)
        };
        let none = || Error::Failed(format!("{}: the name has no address", self.doing(host)));
        let taken = race::first(addresses.len(), self.in_turn(), attempt).await;
        taken.map_err(|mut failures| failures.pop().unwrap_or_else(none))
    }

    async fn connect_address(
        &self,
        host: &Host,
        address: Option<IpAddr>,
        role: &str,
        setup: &str,
        tls: MakeRustlsConnect,
    ) -> Result<Session> {
        let mut config = self.config.clone();
        config.port(host.port);
        match &host.place {
            // Postgres speaks no TLS on its sockets, and being asked would cost a round trip.
            Place::Socket(folder) => config.host_path(folder).ssl_mode(SslMode::Disable),
            Place::Tcp { name, .. } => {
                let (mode, negotiation) = settings::negotiation(&self.tls);
                config.host(name).ssl_mode(mode).ssl_negotiation(negotiation)
            }
        };
        if let Some(address) = address {
            config.hostaddr(address);
        }
        if config.get_application_name().is_none() {
            config.application_name(format!("{APPLICATION_NAME} {role}").trim_end());
        }
        let no_password = self.complete_password(&mut config, host);
        // On the heap: a connection in the making is large, and there are two of them beside each other here.
        let mut session = Box::pin(self.open(&mut config, host, role, &tls, no_password)).await?;
        Box::pin(self.require_backend(&session, &config, host, &tls)).await?;
        session.timeline = self.settle(&session, host, setup).await?;
        tracing::debug!(server = %host, role, "connected to Postgres");
        Ok(session)
    }

    /// Opens a session and sets nothing. Leaves in `config` the mode of TLS that was taken.
    async fn open(
        &self,
        config: &mut Config,
        host: &Host,
        role: &str,
        tls: &MakeRustlsConnect,
        no_password: Option<String>,
    ) -> Result<Session> {
        let (client, connection) = match config.connect(tls.clone()).await {
            Err(error) if config.get_ssl_mode() == SslMode::Prefer && plain_may_do(&error) => {
                tracing::debug!(server = %host, error = one_line(&error), "Postgres refuses TLS, trying without");
                config.ssl_mode(SslMode::Disable);
                // The failure with TLS is the one to tell: it is the mode that was preferred.
                config.connect(tls.clone()).await.map_err(|_| error)
            }
            other => other,
        }
        .map_err(|error| self.refusal(host, error, no_password))?;

        check_version(&connection, host)?;
        Ok(Session::start(client, connection, role))
    }

    /// Refuses a pooler that gives sessions away between two transactions, before anything is set. Each server is asked once,
    /// so that a reconnection takes no longer for it.
    async fn require_backend(
        &self,
        session: &Session,
        config: &Config,
        host: &Host,
        tls: &MakeRustlsConnect,
    ) -> Result<()> {
        let server = format!("{host} {:?}", config.get_hostaddrs());
        let proof = self.proved.of(server);
        let mut is_proved = proof.lock().await;
        if *is_proved {
            return Ok(());
        }
        let mut config = config.clone();
        let witness = self.open(&mut config, host, "witness", tls, None);
        match backend::is_kept(session, witness).await? {
            true => *is_proved = true,
            false => return Err(Error::Pooled { doing: self.doing(host) }),
        }
        Ok(())
    }

    /// Takes the password from the password file unless one was given. Returns why there is none, for the message of a
    /// refusal.
    fn complete_password(&self, config: &mut Config, host: &Host) -> Option<String> {
        if config.get_password().is_some() {
            return None;
        }
        let name = match &host.place {
            Place::Tcp { name, .. } => name.as_str().into(),
            Place::Socket(folder) if hosts::is_default_folder(folder) => "localhost".into(),
            Place::Socket(folder) => folder.to_string_lossy(),
        };
        let wanted =
            passfile::Wanted { host: &name, port: host.port, database: self.database(), user: self.user() };
        match passfile::look_up(self.passfile.as_deref()?, wanted) {
            Ok(Some(password)) if !password.is_empty() => {
                config.password(password);
                None
            }
            Ok(_) => Some("give one by PGPASSWORD or a password file".to_owned()),
            Err(ignored) => {
                tracing::warn!("password file {ignored}");
                Some(format!("password file {ignored}"))
            }
        }
    }

    /// One round trip: makes the session's settings and asks whether the server can be written to, and on which timeline.
    async fn settle(&self, session: &Session, host: &Host, setup: &str) -> Result<Option<Timeline>> {
        let options = self.config.get_options().unwrap_or_default();
        let set = |(name, value): &(&str, &str)| match options.contains(name) {
            true => String::new(),
            false => format!("SET {name} = {value}; "),
        };
        let set_if_known = |(name, value): &(&str, &str)| match options.contains(name) {
            true => String::new(),
            false => {
                format!("SELECT set_config(name, '{value}', false) FROM pg_settings WHERE name = '{name}'; ")
            }
        };
        let mut batch = RELIED_ON.to_owned();
        batch.extend(SESSION_SETTINGS.iter().map(set));
        batch.extend(NEWER_SETTINGS.iter().map(set_if_known));
        batch.push_str(setup);
        batch.push_str("; ");
        batch.push_str(CAN_WRITE);
        let check = set(&CHECK_CLIENT);
        let (answer, check, timeline) = tokio::join!(
            session.simple_query(&batch),
            session.batch_execute(&check),
            session.simple_query(include_str!("../../sql/queries/postgres/timeline.sql"))
        );

        let messages = answer.map_err(Error::postgres(format!("{}, session settings", self.doing(host))))?;
        // The last one: settings may give rows, too.
        let row = messages.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let says = |column| row.and_then(|row| row.get(column)) == Some("t");
        let (standby, read_only, by_default) = (says(0), says(1), says(2));
        let refused = match self.access {
            Access::Any => false,
            Access::Write => read_only,
            Access::Primary => standby,
        };
        if refused {
            let why = match (standby, by_default) {
                (true, _) => "it is a standby",
                (false, true) => "default_transaction_read_only is on",
                // The transaction began while it was a standby.
                (false, false) => "it was promoted a moment ago",
            };
            return Err(Error::Failed(format!(
                "{}: it cannot be written to ({why}); name the primary, or all hosts of the cluster",
                self.doing(host)
            )));
        }
        if let Err(error) = check {
            tracing::debug!(error = one_line(&error), "Postgres does not watch for clients that are gone");
        }
        let timeline = timeline.unwrap_or_else(|error| {
            // Some services that are no Postgres inside have no timelines; they have no old primaries either.
            tracing::debug!(error = one_line(&error), "Postgres does not tell its timeline");
            Vec::new()
        });
        let timeline = Timeline::read(&timeline);
        if let Some(Err(old)) = timeline.as_ref().map(|timeline| self.newest.admit(timeline)) {
            let error = Error::Failed(format!(
                "{}: it is an old primary (timeline {}, after timeline {} on another server); stop it, or make it a standby. If \
                 it is the right one, restart the relay",
                self.doing(host),
                old.number,
                old.newest
            ));
            // Another host may serve us, and then no failure is told; but two servers that take writes need an operator.
            tracing::warn!(error = one_line(&error), "a server is passed over");
            return Err(error);
        }
        Ok(timeline)
    }

    /// Sorts an error of tokio-postgres by what helps: by SQLSTATE and by the type of the cause.
    fn refusal(&self, host: &Host, error: tokio_postgres::Error, no_password: Option<String>) -> Error {
        let doing = self.doing(host);
        // Startup refuses what is wrong in `options` this way, and who may not connect to this database at all.
        let for_good = [
            SqlState::UNDEFINED_OBJECT,
            SqlState::INVALID_PARAMETER_VALUE,
            SqlState::SYNTAX_ERROR,
            SqlState::INSUFFICIENT_PRIVILEGE,
        ];
        if error.code().is_some_and(|code| for_good.contains(code)) {
            return Error::Config(format!("{doing}: {}", one_line(&error)));
        }
        if let Some(cause) = tls::cause(&error) {
            let text = format!("{doing}: TLS: {}{}", handshake::message(cause), tls::hint(cause));
            return if tls::is_refusal(cause) { Error::Config(text) } else { Error::Failed(text) };
        }
        match error.source() {
            Some(cause) if cause.is::<DbError>() => Error::Postgres { doing: doing.into(), source: error },
            Some(cause) if cause.is::<io::Error>() => {
                // Bare, for a shorter line: "connecting to …: Connection refused".
                match error.into_source().map(|cause| cause.downcast::<io::Error>()) {
                    Some(Ok(source)) => Error::Io { doing, source: *source },
                    _ => Error::Failed(doing),
                }
            }
            // tokio-postgres itself finds that the server and these settings do not go together. The server has no TLS, or an
            // unknown way to log in, or asks for a password that was not given.
            Some(_) => {
                let hint = no_password.map(|hint| format!("; {hint}")).unwrap_or_default();
                Error::Config(format!("{doing}: {}{hint}", one_line(&error)))
            }
            None => Error::Postgres { doing: doing.into(), source: error },
        }
    }

    async fn in_time<T>(&self, host: &Host, work: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(limit) = self.connect_timeout else { return work.await };
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            let late =
                io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", limit.as_secs()));
            Err(Error::io(self.doing(host))(late))
        })
    }

    fn doing(&self, host: &Host) -> String {
        format!("connecting to Postgres (user {} at {host}, database {})", self.user(), self.database())
    }
}

/// Whether `prefer` goes on without TLS: the handshake failed, or the server has no rule for encrypted sessions.
fn plain_may_do(error: &tokio_postgres::Error) -> bool {
    tls::cause(error).is_some() || error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}

fn check_version<S, T>(connection: &Connection<S, T>, host: &Host) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let version = connection.parameter("server_version").unwrap_or_default();
    let major =
        version.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse::<u32>().ok());
    match major {
        Some(major) if major < OLDEST_SERVER => Err(Error::Config(format!(
            "Postgres at {host} is version {version}; version {OLDEST_SERVER} or newer is needed"
        ))),
        _ => Ok(()),
    }
}
