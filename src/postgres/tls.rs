//! TLS to Postgres: what each `sslmode` demands of the server's certificate, and our own certificate.
//!
//! Owns libpq's semantics on top of rustls. Whatever the mode, the server proves that it holds the key of the certificate it
//! shows ([`verifier`](crate::tls::verifier)): channel binding rests on it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use tokio_postgres_rustls::MakeRustlsConnect;
use x509_cert::der::Decode;
use x509_cert::der::oid::db::{rfc4519, rfc5912};

use crate::error::{Error, Result};
use crate::tls::handshake::{judged, lacks_authority};
use crate::tls::verifier::{Demands, add, client_config, provider, usable};

/// libpq's `sslmode`, weakest first. `allow` is read as `prefer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl Mode {
    /// The word that the user writes.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Mode::Disable => "disable",
            Mode::Prefer => "prefer",
            Mode::Require => "require",
            Mode::VerifyCa => "verify-ca",
            Mode::VerifyFull => "verify-full",
        }
    }
}

/// Where trust comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Root {
    /// Nowhere: the modes that check nothing.
    None,
    /// The system's store.
    System,
    /// A PEM file with one or more certificates.
    File(PathBuf),
}

/// Our certificate and its key, PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// All that decides how TLS is spoken. Has the names of files; [`Options::connector`] reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub mode: Mode,
    pub root: Root,
    pub identity: Option<Identity>,
    /// `sslnegotiation=direct`: TLS from the first byte, which needs ALPN.
    pub direct: bool,
}

/// What is asked of the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    Nothing,
    Chain,
    ChainAndName,
}

impl Options {
    fn demand(&self) -> Demand {
        match (self.mode, &self.root) {
            (Mode::Disable | Mode::Prefer, _) | (Mode::Require, Root::None) => Demand::Nothing,
            (Mode::Require | Mode::VerifyCa, _) => Demand::Chain,
            (Mode::VerifyFull, _) => Demand::ChainAndName,
        }
    }

    /// Reads the files anew: a renewed certificate is in use from the next connection on, without a restart.
    ///
    /// # Errors
    /// [`Error::Config`] when a file that the mode needs cannot be read or used.
    pub(super) fn connector(&self) -> Result<MakeRustlsConnect> {
        self.client_config().map(MakeRustlsConnect::new)
    }

    fn client_config(&self) -> Result<ClientConfig> {
        let demand = self.demand();
        let trusted = match (&self.root, demand) {
            (_, Demand::Nothing) | (Root::None, _) => Vec::new(),
            (Root::System, _) => system_store()?,
            (Root::File(path), _) => certificates("sslrootcert", path)?,
        };
        let mut roots = RootCertStore::empty();
        match &self.root {
            Root::File(path) => {
                add(&mut roots, &trusted).map_err(|error| unusable("sslrootcert", path, &error))?;
            }
            Root::System | Root::None => roots = usable(trusted.clone()),
        }
        let builder = client_config(Demanded { demand, roots, trusted });
        let mut config = match &self.identity {
            Some(Identity { cert, key }) if self.mode != Mode::Disable => {
                check_key_is_private(key)?;
                let secret =
                    PrivateKeyDer::from_pem_file(key).map_err(|error| unusable("sslkey", key, &error))?;
                builder
                    .with_client_auth_cert(certificates("sslcert", cert)?, secret)
                    .map_err(|error| unusable("sslcert", cert, &error))?
            }
            _ => builder.with_no_client_auth(),
        };
        if self.direct {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(config)
    }
}

fn unusable(key: &str, path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Config(format!("{key}: {} cannot be used: {error}", path.display()))
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(|found| found.collect::<std::result::Result<Vec<_>, _>>())
        .map_err(|error| unusable(key, path, &error))?;
    if found.is_empty() {
        return Err(unusable(key, path, &"there is no PEM certificate in it"));
    }
    Ok(found)
}

fn system_store() -> Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    match (found.certs.is_empty(), found.errors.first()) {
        (false, _) => Ok(found.certs),
        (true, Some(error)) => Err(Error::Config(format!(
            "the system's trust store cannot be read: {error}; name the server's authority with sslrootcert"
        ))),
        (true, None) => Err(Error::Config(
            "the system's trust store is empty; install it (package ca-certificates) or name the server's \
             authority with sslrootcert"
                .to_owned(),
        )),
    }
}

/// libpq's rule for the private key: the owner's alone, or root's with a group that may read it.
fn check_key_is_private(path: &Path) -> Result<()> {
    let meta = fs::metadata(path).map_err(|error| unusable("sslkey", path, &error))?;
    let forbidden = if meta.uid() == 0 { 0o027 } else { 0o077 };
    if meta.mode() & forbidden != 0 {
        return Err(Error::Config(format!(
            "sslkey: {} is open to others; chmod 0600 it (0640 when root owns it)",
            path.display()
        )));
    }
    Ok(())
}

/// Whether a failed connection failed at TLS: rustls says so somewhere among the causes.
pub(super) fn cause(error: &tokio_postgres::Error) -> Option<&rustls::Error> {
    let io = std::error::Error::source(error)?.downcast_ref::<std::io::Error>()?;
    io.get_ref()?.downcast_ref()
}

/// Whether no restart helps: one side does not accept the other's certificate, name, version or suites. A broken
/// stream or a server that is in trouble may be better the next time.
pub(super) fn is_refusal(error: &rustls::Error) -> bool {
    use AlertDescription as Alert;
    match error {
        rustls::Error::AlertReceived(alert) => {
            !matches!(alert, Alert::CloseNotify | Alert::UserCanceled | Alert::InternalError)
        }
        rustls::Error::InvalidCertificate(_)
        | rustls::Error::PeerIncompatible(_)
        | rustls::Error::NoCertificatesPresented
        | rustls::Error::UnsupportedNameType
        | rustls::Error::NoApplicationProtocol
        | rustls::Error::General(_) => true,
        _ => false,
    }
}

/// What the operator can do about a refusal, where that is not plain.
pub(super) fn hint(error: &rustls::Error) -> &'static str {
    match error {
        error if lacks_authority(error) => {
            "; sslrootcert must name the certificate of the authority that signed the server's"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "; verify-full needs a certificate for the name that the URL gives",
        _ => "",
    }
}

/// Judges the server's certificate by the mode.
#[derive(Debug)]
struct Demanded {
    demand: Demand,
    roots: RootCertStore,
    /// The certificates in `roots`, whole.
    trusted: Vec<CertificateDer<'static>>,
}

impl Demanded {
    /// A chain to a trusted certificate, or the server's certificate being a trusted one itself. The latter is
    /// what Postgres' documentation makes ("Creating Certificates"): self-signed with CA:TRUE, which webpki refuses
    /// as a server's. Its time of validity counts all the same; webpki looks at it first.
    fn check_chain(
        &self,
        server: &CertificateDer<'_>,
        parsed: &ParsedCertificate<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> std::result::Result<(), rustls::Error> {
        use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
        let algorithms = provider().signature_verification_algorithms.all;
        match verify_server_cert_signed_by_trust_anchor(parsed, &self.roots, between, now, algorithms) {
            Err(
                error @ rustls::Error::InvalidCertificate(
                    Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
                ),
            ) => Err(error),
            Err(_) if self.trusted.contains(server) => Ok(()),
            other => other,
        }
    }
}

impl Demands for Demanded {
    fn check(
        &self,
        server: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> std::result::Result<(), rustls::Error> {
        if self.demand == Demand::Nothing {
            return Ok(());
        }
        let parsed = ParsedCertificate::try_from(server)?;
        self.check_chain(server, &parsed, between, now)
            .map_err(|error| judged(error, server, between, &self.roots))?;
        if self.demand == Demand::Chain {
            return Ok(());
        }
        let x509 = x509_cert::Certificate::from_der(server).ok();
        match verify_server_name(&parsed, name) {
            Err(_) if x509.is_some_and(|x509| common_name_is(&x509, name)) => Ok(()),
            other => other,
        }
    }
}

/// libpq's rule: only a certificate without any alternative name is known by its common name.
fn common_name_is(x509: &x509_cert::Certificate, name: &ServerName<'_>) -> bool {
    let tbs = &x509.tbs_certificate;
    let alternative = rfc5912::ID_CE_SUBJECT_ALT_NAME;
    if tbs.extensions.iter().flatten().any(|extension| extension.extn_id == alternative) {
        return false;
    }
    let common_names: Vec<_> = tbs
        .subject
        .0
        .iter()
        .flat_map(|part| part.0.iter())
        .filter(|attribute| attribute.oid == rfc4519::CN)
        .filter_map(|attribute| std::str::from_utf8(attribute.value.value()).ok())
        .collect();
    // Of several common names in one certificate it is unclear which is meant.
    matches!(common_names[..], [only] if name_matches(only, &name.to_str()))
}

/// `db1.example.org`, or `*.example.org` for any one label in the place of the star. Never a star for an address.
fn name_matches(pattern: &str, name: &str) -> bool {
    if pattern.eq_ignore_ascii_case(name) {
        return true;
    }
    let is_address = name.parse::<std::net::IpAddr>().is_ok();
    match (pattern.strip_prefix("*."), name.split_once('.')) {
        (Some(domain), Some((label, rest))) => {
            !is_address && !label.is_empty() && domain.contains('.') && domain.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
