//! TLS to endpoints: whom we trust, and how long a handshake may take. What is said when it fails is in
//! [`crate::tls::handshake`].
//!
//! The system's store and `--ca-file`, TLS 1.2 and 1.3. Opens no socket.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
};
use ureq::tls::{PemItem, parse_pem};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
    time,
};

use crate::delivery::transport::recorder::handshaking;
use crate::error::{Error, Result};
use crate::tls::handshake::{judged, judged_key, require_version_3};

/// The link in ureq's chain that encrypts. One for all connections: it holds the trust store.
#[derive(Clone, Debug)]
pub struct Tls(Arc<ClientConfig>);

impl Tls {
    /// Reads the system's certificates and those of `ca_file`.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] when the file cannot be read, or has no certificate in it.
    pub fn new(ca_file: Option<&Path>) -> Result<Tls> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier::new(provider.clone(), roots(ca_file)?);
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the cipher suites of both versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Tls(Arc::new(config)))
    }
}

/// What is left for making the connection.
pub(crate) fn left(details: &ConnectionDetails) -> Duration {
    let spent = match details.now {
        time::Instant::Exact(then) => then.elapsed(),
        time::Instant::AlreadyHappened | time::Instant::NotHappening => Duration::ZERO,
    };
    details.timeout.after.saturating_sub(spent)
}

impl<In: Transport> Connector<In> for Tls {
    type Out = Either<In, Encrypted>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<In>,
    ) -> std::result::Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or_default();
        let name = ServerName::try_from(host.trim_start_matches('[').trim_end_matches(']'))
            .map_err(|_| ureq::Error::Tls("the host's name is not one that a certificate can have"))?;
        let mut connection = ClientConnection::new(self.0.clone(), name.to_owned())?;
        let mut wire = TransportAdapter::new(transport.boxed(), details.current_time.clone());
        wire.set_timeout(NextTimeout { after: time::Duration::Exact(left(details)), ..details.timeout });
        handshaking(true);
        connection.complete_io(&mut wire).map_err(bare)?;
        handshaking(false);
        let buffers =
            LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        let stream = StreamOwned::new(connection, wire);
        Ok(Some(Either::B(Encrypted { stream, buffers })))
    }
}

/// An error of rustls's without the wrapping for `io`; an end that was not announced without rustls's explanation.
fn bare(error: io::Error) -> ureq::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => ureq::Error::Rustls(tls.clone()),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection").into()
        }
        None => error.into(),
    }
}

/// An encrypted connection.
pub struct Encrypted {
    stream: StreamOwned<ClientConnection, TransportAdapter>,
    buffers: LazyBuffers,
}

impl fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Encrypted").field(&self.stream.sock.inner()).finish()
    }
}

impl Transport for Encrypted {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(
        &mut self,
        amount: usize,
        timeout: NextTimeout,
    ) -> std::result::Result<(), ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        io::Write::write_all(&mut self.stream, output).map_err(bare)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> std::result::Result<bool, ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let length = io::Read::read(&mut self.stream, input).map_err(bare)?;
        self.buffers.input_appended(length);
        Ok(length > 0)
    }

    /// Nothing is to be read: not from the wire, not of what has come from there, not of what has been decrypted.
    fn is_open(&mut self) -> bool {
        let rest = self.stream.conn.process_new_packets();
        let wire = self.stream.sock.get_mut();
        rest.is_ok_and(|rest| rest.plaintext_bytes_to_read() == 0 && !rest.peer_has_closed())
            && wire.buffers().input().is_empty()
            && wire.is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// The system's certificates and those of `--ca-file`.
fn roots(ca_file: Option<&Path>) -> Result<RootCertStore> {
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "a certificate of the system's cannot be read");
    }
    let mut roots = RootCertStore::empty();
    // Stores have old certificates in them that rustls cannot use.
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = ca_file {
        let config = |why: &str| {
            Error::Config(format!("--ca-file {}: {why}; give a file of PEM certificates", path.display()))
        };
        let pem = std::fs::read(path).map_err(|error| config(&error.to_string()))?;
        let before = roots.len();
        for item in parse_pem(&pem) {
            if let PemItem::Certificate(certificate) = item.map_err(|error| config(&error.to_string()))? {
                let der = CertificateDer::from(certificate.der().to_vec());
                roots.add(der).map_err(|error| config(&error.to_string()))?;
            }
        }
        if roots.len() == before {
            return Err(config("no certificate in it"));
        }
    }
    if roots.is_empty() {
        tracing::warn!(
            "no trusted certificates on this system (package ca-certificates): https calls will fail"
        );
    }
    Ok(roots)
}

/// rustls's own verification; its refusals get their reasons ([`judged`]).
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    // None: there is nothing that could be trusted, which rustls's verifier does not want to be told.
    web_pki: Option<Arc<WebPkiServerVerifier>>,
}

impl Verifier {
    fn new(provider: Arc<CryptoProvider>, roots: RootCertStore) -> Verifier {
        let roots = Arc::new(roots);
        let builder = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
        Verifier { provider, roots, web_pki: builder.build().ok() }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        require_version_3(end_entity)?;
        let verified = match &self.web_pki {
            Some(web_pki) => web_pki.verify_server_cert(end_entity, intermediates, name, ocsp_response, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        verified.map_err(|error| judged(error, end_entity, intermediates, &self.roots))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
            .map_err(|error| judged_key(error, cert))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
            .map_err(|error| judged_key(error, cert))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
