//! The part of judging a server that no policy changes: its certificate can be read, and the server proves that it holds
//! the certificate's key.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::tls::handshake::{judged_key, require_version_3};

/// What one side of the program demands of a server's certificate.
pub(crate) trait Demands: Debug + Send + Sync + 'static {
    /// Refuses a certificate that does not meet the demands. `between` are the certificates that the server sends with its
    /// own. The caller has made sure that the certificate is X.509 version 3, if it can be read at all.
    ///
    /// # Errors
    ///
    /// The refusal. It ends the handshake.
    fn check(
        &self,
        server: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error>;
}

/// The cryptography of all TLS here. It is given to each configuration; nothing is process-wide.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The beginning of a client's configuration: TLS 1.2 and 1.3, and these demands. The caller adds a certificate of its own,
/// or none.
pub(crate) fn client_config(demands: impl Demands) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has the suites of TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(demands)))
}

/// A store of those certificates of the system's that rustls can use: such stores have old certificates in them, too.
pub(crate) fn usable(system: Vec<CertificateDer<'static>>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system);
    roots
}

/// Adds certificates that the operator named.
///
/// # Errors
///
/// When rustls cannot use one of them.
pub(crate) fn add(roots: &mut RootCertStore, named: &[CertificateDer<'static>]) -> Result<(), rustls::Error> {
    named.iter().try_for_each(|certificate| roots.add(certificate.clone()))
}

/// The end of a certificate's time; none when it cannot be read.
pub(crate) fn valid_until(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let certificate = Certificate::from_der(certificate).ok()?;
    Some(certificate.tbs_certificate.validity.not_after.to_system_time())
}

/// Judges a server: its certificate by the demands, its proof by the provider's algorithms, whatever the demands are.
#[derive(Debug)]
pub(crate) struct Verifier<D> {
    demands: D,
    algorithms: WebPkiSupportedAlgorithms,
}

impl<D: Demands> Verifier<D> {
    /// With these demands, and the algorithms of [`provider`].
    pub(crate) fn new(demands: D) -> Verifier<D> {
        Verifier { demands, algorithms: provider().signature_verification_algorithms }
    }
}

impl<D: Demands> ServerCertVerifier for Verifier<D> {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        require_version_3(server)?;
        self.demands.check(server, between, name, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
            .map_err(|error| judged_key(error, certificate))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
            .map_err(|error| judged_key(error, certificate))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
