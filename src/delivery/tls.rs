//! Which servers a call trusts: the system's certificates and those of `--ca-file`, by rustls's own verification.
//!
//! Opens no socket; the link that encrypts is in [`transport`](crate::delivery::transport).

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use ureq::tls::{PemItem, parse_pem};

use crate::error::{Error, Result};
use crate::tls::handshake::{judged, require_few};
use crate::tls::verifier::{Demands, add, client_config, provider, usable};

/// Reads the system's certificates and those of `ca_file`, for TLS 1.2 and 1.3.
///
/// # Errors
///
/// [`Error::Config`] when the file cannot be read, or has no certificate in it.
pub(crate) fn config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>> {
    let demands = Authorities::new(roots(ca_file)?);
    let mut config = client_config(demands).with_no_client_auth();
    // Compressed certificates are larger in memory than on the wire, by which sessions are measured.
    config.cert_decompressors.clear();
    Ok(Arc::new(config))
}

/// The system's certificates and those of `--ca-file`.
fn roots(ca_file: Option<&Path>) -> Result<RootCertStore> {
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "a certificate of the system's cannot be read");
    }
    let mut roots = usable(system.certs);
    if let Some(path) = ca_file {
        add(&mut roots, &named(path)?).map_err(|error| unusable(path, &error.to_string()))?;
    }
    if roots.is_empty() {
        tracing::warn!(
            "no trusted certificates on this system (package ca-certificates): https calls will fail"
        );
    }
    Ok(roots)
}

/// The certificates of `--ca-file`.
fn named(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path).map_err(|error| unusable(path, &error.to_string()))?;
    let mut named = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| unusable(path, &error.to_string()))? {
            named.push(CertificateDer::from(certificate.der().to_vec()));
        }
    }
    if named.is_empty() {
        return Err(unusable(path, "no certificate in it"));
    }
    Ok(named)
}

fn unusable(path: &Path, why: &str) -> Error {
    Error::Config(format!("--ca-file {}: {why}; give a file of PEM certificates", path.display()))
}

/// Demands a chain to a trusted authority and the server's name. Refusals get their reasons ([`judged`]).
#[derive(Debug)]
struct Authorities {
    roots: Arc<RootCertStore>,
    // None where no authority is trusted: rustls makes no verifier then.
    web_pki: Option<Arc<WebPkiServerVerifier>>,
}

impl Authorities {
    fn new(roots: RootCertStore) -> Authorities {
        let roots = Arc::new(roots);
        let web_pki = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider()).build().ok();
        Authorities { roots, web_pki }
    }
}

impl Demands for Authorities {
    fn check(
        &self,
        server: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> std::result::Result<(), rustls::Error> {
        require_few(between)?;
        let verified = match &self.web_pki {
            // No answer about revocation: rustls does not look at it.
            Some(web_pki) => web_pki.verify_server_cert(server, between, name, &[], now).map(|_| ()),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        verified.map_err(|error| judged(error, server, between, &self.roots))
    }
}
