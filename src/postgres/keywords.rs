//! The keywords of libpq: which mean something here, which change nothing, which are refused.
//!
//! Knows the names and the variables that stand for them, and no value's meaning.

use std::fmt;

use crate::error::{Error, Result};
use crate::postgres::conninfo::Params;

/// Keys that mean something here, in libpq's spelling, and the variable that fills each in.
const KEYS: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("application_name", "PGAPPNAME"),
    ("options", "PGOPTIONS"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("keepalives", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("keepalives_count", ""),
    ("tcp_user_timeout", ""),
];

/// Keys of libpq that change nothing for this program.
const WITHOUT_EFFECT: &[&str] = &[
    "client_encoding",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "krbsrvname",
    "load_balance_hosts",
    "sslcompression",
    "sslsni",
];

/// Keys that demand something which is not done here. Connecting all the same would be connecting elsewhere, or
/// with less protection than was asked for.
const REFUSED: &[(&str, &str)] = &[
    ("service", "PGSERVICE"),
    ("servicefile", ""),
    ("require_auth", "PGREQUIREAUTH"),
    ("requirepeer", "PGREQUIREPEER"),
    ("requiressl", "PGREQUIRESSL"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("sslcertmode", "PGSSLCERTMODE"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("sslpassword", ""),
    ("replication", ""),
];

/// Lets each variable fill in the key that was not given. `env` gives no empty value.
pub(super) fn fill_in(params: &mut Params, env: &dyn Fn(&str) -> Option<String>) {
    for (key, variable) in KEYS {
        if let (false, Some(value)) = (params.contains_key(*key), env(variable)) {
            params.insert((*key).to_owned(), value);
        }
    }
}

/// The one form of this program's complaints about a key.
pub(super) fn bad<T>(key: &str, what: impl fmt::Display) -> Result<T> {
    let variable = KEYS.iter().find(|(known, _)| *known == key).map_or("", |(_, variable)| variable);
    match variable {
        "" => Err(Error::Config(format!("database URL: {key}: {what}"))),
        _ => Err(Error::Config(format!("database URL: {key} (or {variable}): {what}"))),
    }
}

/// Refuses keys that are unknown, and those that demand what is not done here.
///
/// # Errors
///
/// [`Error::Config`], with the key's name.
pub(super) fn refuse_what_is_not_done(params: &Params, env: &dyn Fn(&str) -> Option<String>) -> Result<()> {
    for (key, variable) in REFUSED {
        let given = params.get(*key);
        let named = if given.is_some() { key } else { variable };
        if given.map_or_else(|| env(variable).is_some(), |value| !value.is_empty()) {
            return Err(Error::Config(format!(
                "{named} is not supported; leave it out and give the settings themselves in --database-url"
            )));
        }
    }
    let encryption = params.get("gssencmode").cloned().or_else(|| env("PGGSSENCMODE"));
    if encryption.as_deref() == Some("require") {
        return bad("gssencmode", "GSS encryption is not supported; use TLS (sslmode)");
    }
    match params.keys().find(|key| !is_known(key)) {
        Some(key) => bad(key, "no such setting; the names are those of libpq"),
        None => Ok(()),
    }
}

/// Whether this is a key of libpq's.
pub(super) fn is_known(key: &str) -> bool {
    let is_in = |keys: &[(&str, &str)]| keys.iter().any(|(known, _)| *known == key);
    is_in(KEYS) || WITHOUT_EFFECT.contains(&key) || is_in(REFUSED)
}
