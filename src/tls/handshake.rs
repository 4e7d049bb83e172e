//! Why a TLS handshake failed, in words for people, on the endpoints' side and on Postgres'. Completes what rustls says where
//! it says too little, and corrects it where it names another cause.
//!
//! Opens nothing and trusts nothing: `judged` and `judged_key` only give a refusal its reason.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, OtherError, RootCertStore};
use x509_cert::der::asn1::{AnyRef, BitStringRef, ObjectIdentifier, UintRef};
use x509_cert::der::oid::db::rfc5912;
use x509_cert::der::{Decode, Encode, Reader, SliceReader};
use x509_cert::spki::AlgorithmIdentifierRef;
use x509_cert::{Certificate, Version};

/// Lengths of RSA keys that ring takes.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Most certificates that a server may send with its own. webpki follows a chain of six; some servers send what no chain needs.
const CERTIFICATES_MAX: usize = 16;

/// Reasons that rustls has no word for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reason {
    SelfSigned,
    /// X.509 version 1 or 2.
    OldVersion,
    /// The server's own key, an RSA one of so many bits.
    KeyLength(usize),
    /// The number of certificates that come with the server's own.
    ManyCertificates(usize),
    /// The key of an authority in the chain.
    AuthorityKeyLength(usize),
    /// The signature in the handshake is not of the certificate's key.
    NoProof,
    /// An authority of this name is trusted, and did not sign this.
    Namesake,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = RSA_BITS.into_inner();
        match self {
            Reason::SelfSigned => f.write_str("the certificate is self-signed and not trusted here"),
            Reason::OldVersion => f.write_str(
                "the certificate is X.509 version 1, which is not supported; make it anew with extensions (openssl \
                 x509 -req -extfile …, with a subjectAltName)",
            ),
            Reason::KeyLength(bits) => {
                write!(f, "the certificate's key is an RSA key of {bits} bits, and {from} to {to} are accepted")
            }
            Reason::ManyCertificates(count) => write!(
                f,
                "the server sends {count} certificates with its own, and {CERTIFICATES_MAX} are accepted"
            ),
            Reason::AuthorityKeyLength(bits) => write!(
                f,
                "the certificate's authority has an RSA key of {bits} bits, and {from} to {to} are accepted"
            ),
            Reason::NoProof => f.write_str("the server does not prove that it has the certificate's key"),
            Reason::Namesake => f.write_str(
                "the certificate is of an authority that is not trusted here; one of the same name is, with another \
                 key",
            ),
        }
    }
}

impl std::error::Error for Reason {}

impl From<Reason> for rustls::Error {
    fn from(reason: Reason) -> rustls::Error {
        CertificateError::Other(OtherError(Arc::new(reason))).into()
    }
}

/// The refusal of a chain of certificates, with its reason.
pub(crate) fn judged(
    error: rustls::Error,
    server: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    roots: &RootCertStore,
) -> rustls::Error {
    use CertificateError::{BadSignature, Other, UnknownIssuer};
    let rustls::Error::InvalidCertificate(why) = &error else { return error };
    let Ok(certificate) = Certificate::from_der(server) else { return error };
    match why {
        // Also one that says that it is an authority, as `openssl req -x509` makes it.
        UnknownIssuer | BadSignature | Other(_)
            if is_self_signed(&certificate) && !is_trusted(&certificate, roots) =>
        {
            Reason::SelfSigned.into()
        }
        BadSignature => {
            let between = || between.iter().filter_map(|der| Certificate::from_der(der).ok());
            let is_issuer = |name: &[u8]| {
                std::iter::once(certificate.clone())
                    .chain(between())
                    .any(|c| is_value(&c.tbs_certificate.issuer, name))
            };
            let anchors = roots.roots.iter().filter(|anchor| is_issuer(anchor.subject.as_ref()));
            let anchors =
                anchors.filter_map(|anchor| anchor_rsa_bits(anchor.subject_public_key_info.as_ref()));
            let mut keys = between().filter_map(|certificate| rsa_bits(&certificate)).chain(anchors);
            match keys.find(|bits| !RSA_BITS.contains(bits)) {
                Some(bits) => Reason::AuthorityKeyLength(bits).into(),
                None => Reason::Namesake.into(),
            }
        }
        _ => error,
    }
}

/// Whether no trusted authority vouches for the certificate. The operator can mend that by trusting one.
pub(crate) fn lacks_authority(error: &rustls::Error) -> bool {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => {
            matches!(why.downcast_ref(), Some(Reason::SelfSigned | Reason::Namesake))
        }
        _ => false,
    }
}

/// The refusal of the signature in the handshake, with its reason.
pub(crate) fn judged_key(error: rustls::Error, server: &CertificateDer<'_>) -> rustls::Error {
    if error != rustls::Error::InvalidCertificate(CertificateError::BadSignature) {
        return error;
    }
    let bits = Certificate::from_der(server).ok().and_then(|certificate| rsa_bits(&certificate));
    match bits {
        Some(bits) if !RSA_BITS.contains(&bits) => Reason::KeyLength(bits).into(),
        _ => Reason::NoProof.into(),
    }
}

/// Refuses more certificates with the server's own than a server has use for. Their bytes are bounded by rustls. But each takes some
/// bytes more in memory for as long as the connection lives. 10,000 of one byte each are 64 KiB on the wire, and ten times that here.
pub(crate) fn require_few(between: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
    if between.len() > CERTIFICATES_MAX {
        return Err(Reason::ManyCertificates(between.len()).into());
    }
    Ok(())
}

/// Refuses a certificate of version 1 or 2, which webpki cannot read. `openssl x509 -req` before OpenSSL 3.2 makes
/// version 1 unless it is given extensions.
pub(crate) fn require_version_3(server: &CertificateDer<'_>) -> Result<(), rustls::Error> {
    match Certificate::from_der(server) {
        Ok(certificate) if certificate.tbs_certificate.version != Version::V3 => {
            Err(Reason::OldVersion.into())
        }
        _ => Ok(()),
    }
}

/// Whether a certificate has signed itself, by its names.
pub(crate) fn is_self_signed(certificate: &Certificate) -> bool {
    certificate.tbs_certificate.issuer == certificate.tbs_certificate.subject
}

/// Whether the certificate's own name and key are trusted.
fn is_trusted(certificate: &Certificate, roots: &RootCertStore) -> bool {
    let tbs = &certificate.tbs_certificate;
    roots.roots.iter().any(|anchor| {
        is_value(&tbs.subject, anchor.subject.as_ref())
            && is_value(&tbs.subject_public_key_info, anchor.subject_public_key_info.as_ref())
    })
}

/// Whether this is what a trust anchor has of it: the DER without its first tag and length.
fn is_value(of: &impl Encode, value: &[u8]) -> bool {
    let der = of.to_der().unwrap_or_default();
    AnyRef::from_der(&der).is_ok_and(|any| any.value() == value)
}

/// The length of a certificate's key, if it is an RSA key.
fn rsa_bits(certificate: &Certificate) -> Option<usize> {
    let key = &certificate.tbs_certificate.subject_public_key_info;
    let is_rsa = key.algorithm.oid == rfc5912::RSA_ENCRYPTION;
    is_rsa.then(|| modulus_bits(key.subject_public_key.raw_bytes()))?
}

/// The length of a trust anchor's key, if it is an RSA key.
fn anchor_rsa_bits(key: &[u8]) -> Option<usize> {
    let mut reader = SliceReader::new(key).ok()?;
    let algorithm = AlgorithmIdentifierRef::decode(&mut reader).ok()?;
    let key = BitStringRef::decode(&mut reader).ok()?;
    (algorithm.oid == rfc5912::RSA_ENCRYPTION).then(|| modulus_bits(key.raw_bytes()))?
}

/// The length of the modulus of an RSAPublicKey (RFC 8017, A.1.1).
fn modulus_bits(key: &[u8]) -> Option<usize> {
    let mut reader = SliceReader::new(key).ok()?;
    let modulus = reader
        .sequence(|key| {
            let modulus = UintRef::decode(key)?;
            UintRef::decode(key)?;
            Ok(modulus)
        })
        .ok()?;
    let first = modulus.as_bytes().first()?;
    Some(modulus.as_bytes().len() * 8 - first.leading_zeros() as usize)
}

/// What is wrong, in words for people. An alert of the server's is told as the server's word, because it may be wrong.
pub(crate) fn message(error: &rustls::Error) -> String {
    use rustls::{Error as E, InvalidMessage, PeerIncompatible as Incompatible};
    match error {
        E::InvalidCertificate(why) => certificate(why),
        E::AlertReceived(alert) => alerted(*alert),
        E::PeerIncompatible(
            Incompatible::ServerDoesNotSupportTls12Or13
            | Incompatible::ServerTlsVersionIsDisabledByOurConfig
            | Incompatible::Tls12NotOffered
            | Incompatible::Tls12NotOfferedOrEnabled,
        ) => "the server speaks TLS 1.1 or older only; 1.2 or newer is needed".into(),
        E::PeerIncompatible(_) => {
            "the server's TLS has nothing in common with ours; TLS 1.2 or newer is needed".into()
        }
        E::PeerMisbehaved(_) => "the server breaks the rules of TLS".into(),
        E::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the server does not speak TLS on this port (http instead of https?)".into()
        }
        E::InvalidMessage(_) => "what the server sends is no TLS, or damaged".into(),
        E::InappropriateMessage { .. } | E::InappropriateHandshakeMessage { .. } => {
            "the server sends TLS messages out of turn".into()
        }
        E::PeerSentOversizedRecord => "the server sends TLS records that are too long".into(),
        E::DecryptError => "what the server sends cannot be decrypted: it was damaged on the way".into(),
        E::NoCertificatesPresented => "the server shows no certificate".into(),
        E::UnsupportedNameType => "the host's name is not one that a certificate can have".into(),
        E::NoApplicationProtocol => "the server does not speak the protocol that was asked for (ALPN)".into(),
        _ => "TLS failed for a reason that is not known here".into(),
    }
}

fn certificate(error: &CertificateError) -> String {
    use CertificateError as C;
    match error {
        C::Expired | C::ExpiredContext { .. } => "the certificate has expired".into(),
        C::NotValidYet | C::NotValidYetContext { .. } => "the certificate is not valid yet".into(),
        C::UnknownIssuer => {
            "the certificate is of an authority that is not trusted here, or the server leaves out a \
                             certificate between the two"
                .into()
        }
        C::NotValidForName => "the certificate is for another name".into(),
        C::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "the certificate is for no name (it has no subjectAltName)".into()
        }
        C::NotValidForNameContext { presented, .. } => {
            let names = presented.iter().take(NAMES_MAX).map(|name| bare_name(name)).collect::<Vec<_>>();
            let more = if presented.len() > NAMES_MAX { ", …" } else { "" };
            format!("the certificate is for another name (it is for {}{more})", names.join(", "))
        }
        C::UnsupportedSignatureAlgorithmContext { signature_algorithm_id, .. } => {
            format!(
                "the certificate is signed with {}, which is not accepted",
                algorithm(signature_algorithm_id)
            )
        }
        C::UnsupportedSignatureAlgorithmForPublicKeyContext {
            signature_algorithm_id,
            public_key_algorithm_id,
        } => {
            format!(
                "the certificate is signed with {} and a key of the kind {}, which is not accepted",
                algorithm(signature_algorithm_id),
                algorithm(public_key_algorithm_id)
            )
        }
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => {
            "the certificate is not for servers (its extended key usage lacks serverAuth)".into()
        }
        C::BadSignature => "a signature of the certificate is wrong".into(),
        C::BadEncoding => "the certificate cannot be read: it is no X.509, or damaged".into(),
        C::UnhandledCriticalExtension => UNKNOWN_EXTENSION.into(),
        C::Revoked => "the certificate was revoked".into(),
        C::Other(OtherError(why)) => {
            match (why.downcast_ref::<Reason>(), why.downcast_ref::<webpki::Error>()) {
                (Some(reason), _) => reason.to_string(),
                (None, Some(error)) => path(error),
                (None, None) => REFUSED.into(),
            }
        }
        _ => REFUSED.into(),
    }
}

const REFUSED: &str = "the certificate is refused for a reason that is not known here";
const UNKNOWN_EXTENSION: &str = "the certificate has a critical extension that is not known here";
/// Most names of a certificate that a message has.
const NAMES_MAX: usize = 5;

/// `DnsName("a.example")` without its wrapping, as rustls lists what a certificate is for.
fn bare_name(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, inner)| inner.trim_end_matches(')'));
    inner.trim_matches('"')
}

/// Errors of webpki about the path from the certificate to its authority, which rustls passes on.
fn path(error: &webpki::Error) -> String {
    use webpki::Error as E;
    match error {
        E::CaUsedAsEndEntity => "the certificate is an authority's (CA:TRUE), and no server's".into(),
        E::EndEntityUsedAsCa => "the certificate is signed by one that is no authority's (CA:FALSE)".into(),
        E::NameConstraintViolation => {
            "the certificate's authority may not vouch for its names (name constraints)".into()
        }
        E::PathLenConstraintViolated | E::MaximumPathDepthExceeded => {
            "there are more certificates between the server's and its authority than are allowed".into()
        }
        E::UnsupportedCertVersion => Reason::OldVersion.to_string(),
        E::UnsupportedCriticalExtension => UNKNOWN_EXTENSION.into(),
        E::MaximumSignatureChecksExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumNameConstraintComparisonsExceeded => {
            "the server's certificates take too much work to check".into()
        }
        _ => "the certificate is malformed".into(),
    }
}

/// An algorithm or the kind of a key, by the content of its AlgorithmIdentifier.
fn algorithm(id: &[u8]) -> String {
    let mut reader = match SliceReader::new(id) {
        Ok(reader) => reader,
        Err(_) => return "an unknown algorithm".into(),
    };
    let Ok(oid) = ObjectIdentifier::decode(&mut reader) else { return "an unknown algorithm".into() };
    // The curve, for keys of elliptic curves.
    let curve = ObjectIdentifier::decode(&mut reader).ok().filter(|_| oid == rfc5912::ID_EC_PUBLIC_KEY);
    let oid = curve.unwrap_or(oid).to_string();
    let known = match oid.as_str() {
        "1.2.840.113549.1.1.1" => "RSA",
        "1.2.840.113549.1.1.2" => "MD2",
        "1.2.840.113549.1.1.4" => "MD5",
        "1.2.840.113549.1.1.5" | "1.3.14.3.2.29" | "1.2.840.10045.4.1" | "1.2.840.10040.4.3" => "SHA-1",
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => "SHA-224",
        "1.2.840.113549.1.1.10" => "RSA-PSS",
        "1.2.840.10045.4.3.2" => "ECDSA and SHA-256",
        "1.2.840.10045.4.3.3" => "ECDSA and SHA-384",
        "1.2.840.10045.4.3.4" => "ECDSA and SHA-512",
        "1.2.840.10045.3.1.7" => "P-256",
        "1.3.132.0.34" => "P-384",
        "1.3.132.0.35" => "P-521",
        "1.3.132.0.10" => "secp256k1",
        "1.3.101.113" => "Ed448",
        other => return format!("algorithm {other}"),
    };
    known.into()
}

/// An alert of the server's, in words. Often the alert is all that is known.
fn alerted(alert: rustls::AlertDescription) -> String {
    use rustls::AlertDescription as Alert;
    match alert {
        Alert::ProtocolVersion => {
            "the server refuses the version of TLS; it needs to speak 1.2 or newer (ProtocolVersion)".into()
        }
        Alert::HandshakeFailure | Alert::InsufficientSecurity => format!(
            "the server refuses the handshake: no TLS version (1.2 or newer is needed), cipher or kind of key in \
             common, or it demands a client's certificate ({alert:?})"
        ),
        Alert::UnrecognisedName => "the server does not know this host name (UnrecognisedName)".into(),
        Alert::CertificateRequired | Alert::NoCertificate => {
            format!("the server demands a client's certificate ({alert:?})")
        }
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied => {
            format!("the server refuses our certificate, or that we have none ({alert:?})")
        }
        Alert::InternalError => "the server has an error of its own (InternalError)".into(),
        other => format!("the server ended the handshake ({other:?})"),
    }
}
