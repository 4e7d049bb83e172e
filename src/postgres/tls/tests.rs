//! The modes' demands against certificates of every kind, in memory: rustls' two ends without a network.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::{ClientConnection, ServerConfig, ServerConnection};

use super::*;
use crate::tls::verifier::Verifier;

#[test]
fn each_mode_demands_what_libpq_demands() {
    let file = Root::File("/root.crt".into());
    for (mode, root, expected) in [
        (Mode::Disable, file.clone(), Demand::Nothing),
        (Mode::Prefer, file.clone(), Demand::Nothing),
        (Mode::Require, Root::None, Demand::Nothing),
        (Mode::Require, file.clone(), Demand::Chain),
        (Mode::VerifyCa, file.clone(), Demand::Chain),
        (Mode::VerifyFull, file, Demand::ChainAndName),
        (Mode::VerifyFull, Root::System, Demand::ChainAndName),
    ] {
        let options = Options { mode, root, identity: None, direct: false };
        assert_eq!(options.demand(), expected, "{options:?}");
    }
}

#[test]
fn a_common_name_matches_as_a_name_not_as_a_pattern() {
    for (pattern, name, expected) in [
        ("db1.example.org", "DB1.example.org", true),
        ("*.example.org", "db1.example.org", true),
        ("*.example.org", "a.db1.example.org", false),
        ("*.example.org", "example.org", false),
        ("*.org", "example.org", false),
        ("*", "db1", false),
        ("db*.example.org", "db1.example.org", false),
        ("127.0.0.1", "127.0.0.1", true),
        ("*.0.0.1", "127.0.0.1", false),
        ("db1.example.org", "db2.example.org", false),
    ] {
        assert_eq!(name_matches(pattern, name), expected, "{pattern} for {name}");
    }
}

/// An authority.
fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = named(name, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

/// A certificate's content: this common name, these alternative names.
fn named(common: &str, alternatives: &[&str]) -> CertificateParams {
    let names: Vec<String> = alternatives.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    params
}

/// What a server shows, its own certificate first, and the key to it.
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    pem: String,
    key: KeyPair,
}

fn signed(params: &CertificateParams, by: &CertifiedIssuer<'_, KeyPair>) -> Shown {
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, by).expect("a certificate");
    Shown { chain: vec![certificate.der().clone()], pem: certificate.pem(), key }
}

fn self_signed(params: &CertificateParams) -> Shown {
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    Shown { chain: vec![certificate.der().clone()], pem: certificate.pem(), key }
}

/// The handshake of a client in this mode, that trusts these certificates, with this server under this name.
fn handshake(
    mode: Mode,
    trusted: &[String],
    server: &Shown,
    name: &str,
) -> std::result::Result<(), rustls::Error> {
    let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            server.chain.clone(),
            PrivateKeyDer::try_from(server.key.serialize_der()).expect("a key"),
        )
        .expect("the server's certificate");
    shake(mode, trusted, server, name)
}

fn shake(
    mode: Mode,
    trusted: &[String],
    server: ServerConfig,
    name: &str,
) -> std::result::Result<(), rustls::Error> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = if trusted.is_empty() {
        Root::None
    } else {
        let path = folder.path().join("root.crt");
        fs::write(&path, trusted.concat()).expect("written");
        Root::File(path)
    };
    let client =
        Options { mode, root, identity: None, direct: false }.client_config().expect("good settings");
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = ClientConnection::new(Arc::new(client), name).expect("a client");
    let mut server = ServerConnection::new(Arc::new(server)).expect("a server");
    // A handshake takes two turns; the bound keeps a broken test from turning for ever.
    for _ in 0..4 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("to memory");
        }
        server.read_tls(&mut &bytes[..]).expect("from memory");
        server.process_new_packets().expect("the server has no demands");
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("to memory");
        }
        client.read_tls(&mut &bytes[..]).expect("from memory");
        client.process_new_packets()?;
        if !client.is_handshaking() && !server.is_handshaking() {
            return Ok(());
        }
    }
    panic!("the handshake does not end")
}

/// `ok`, or the kind of refusal.
fn outcome(mode: Mode, trusted: &[String], server: &Shown, name: &str) -> &'static str {
    use CertificateError as Bad;
    match handshake(mode, trusted, server, name) {
        Ok(()) => "ok",
        Err(error) => {
            assert!(is_refusal(&error), "no restart helps: {error:?}");
            match error {
                error if lacks_authority(&error) => "issuer",
                rustls::Error::InvalidCertificate(Bad::NotValidForNameContext { .. }) => "name",
                rustls::Error::InvalidCertificate(Bad::ExpiredContext { .. }) => "expired",
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn the_chain_and_the_name_are_checked_as_the_mode_says() {
    let (ours, other) = (authority("ours"), authority("other"));
    let server = signed(&named("x", &["db1.example.org", "10.0.0.1"]), &ours);
    let (ours, other) = ([ours.pem()], [other.pem()]);
    for (mode, trusted, name, expected) in [
        (Mode::Prefer, &[][..], "db1.example.org", "ok"),
        (Mode::Prefer, &other, "db2", "ok"),
        (Mode::Require, &[], "db2", "ok"),
        (Mode::Require, &ours, "db2", "ok"),
        (Mode::Require, &other, "db1.example.org", "issuer"),
        (Mode::VerifyCa, &ours, "db2", "ok"),
        (Mode::VerifyCa, &other, "db1.example.org", "issuer"),
        (Mode::VerifyFull, &ours, "db1.example.org", "ok"),
        (Mode::VerifyFull, &ours, "10.0.0.1", "ok"),
        (Mode::VerifyFull, &ours, "db2", "name"),
        (Mode::VerifyFull, &ours, "10.0.0.2", "name"),
        // The common name counts only where there is no alternative name.
        (Mode::VerifyFull, &ours, "x", "name"),
        (Mode::VerifyFull, &other, "db1.example.org", "issuer"),
    ] {
        assert_eq!(outcome(mode, trusted, &server, name), expected, "{mode:?} {name}");
    }
    let both = [other[0].clone(), ours[0].clone()];
    assert_eq!(outcome(Mode::VerifyFull, &both, &server, "db1.example.org"), "ok", "a file of two");
}

#[test]
fn an_authority_between_is_followed_when_the_server_shows_it() {
    let root = authority("root");
    let mut params = named("between", &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let between =
        CertifiedIssuer::signed_by(params, KeyPair::generate().expect("a key"), &root).expect("an authority");
    let mut server = signed(&named("db1", &["db1"]), &between);
    assert_eq!(outcome(Mode::VerifyFull, &[root.pem()], &server, "db1"), "issuer");
    server.chain.push(between.der().clone());
    assert_eq!(outcome(Mode::VerifyFull, &[root.pem()], &server, "db1"), "ok");
}

/// `openssl req -new -x509 -subj "/CN=db1"`, Postgres' own recipe: an authority by its word, without alternative name.
fn recipe() -> CertificateParams {
    let mut params = named("db1", &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

#[test]
fn a_self_signed_certificate_that_is_itself_trusted_is_a_chain() {
    let server = self_signed(&recipe());
    let twin = self_signed(&recipe());
    let (itself, twin) = ([server.pem.clone()], [twin.pem]);
    for (mode, trusted, name, expected) in [
        (Mode::Require, &itself[..], "db2", "ok"),
        (Mode::VerifyCa, &itself, "db2", "ok"),
        (Mode::VerifyFull, &itself, "db1", "ok"),
        (Mode::VerifyFull, &itself, "DB1", "ok"),
        (Mode::VerifyFull, &itself, "db2", "name"),
    ] {
        assert_eq!(outcome(mode, trusted, &server, name), expected, "{mode:?} {name}");
    }
    // The same content with another key is another certificate.
    for mode in [Mode::Require, Mode::VerifyCa, Mode::VerifyFull] {
        handshake(mode, &twin, &server, "db1").expect_err("a twin is not it");
        let error = handshake(mode, &[authority("other").pem()], &server, "db1").expect_err("nobody's");
        assert!(hint(&error).contains("sslrootcert"), "{error:?}");
    }
    // Without CA:TRUE, webpki takes it by itself.
    let plain = self_signed(&named("db1", &["db1"]));
    assert_eq!(outcome(Mode::VerifyFull, std::slice::from_ref(&plain.pem), &plain, "db1"), "ok");
}

#[test]
fn an_expired_certificate_is_refused_also_when_it_is_itself_trusted() {
    for mut params in [recipe(), named("db1", &["db1"])] {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        let server = self_signed(&params);
        assert_eq!(outcome(Mode::VerifyCa, std::slice::from_ref(&server.pem), &server, "db1"), "expired");
        assert_eq!(outcome(Mode::Require, &[], &server, "db1"), "ok", "require alone checks nothing");
    }
}

#[test]
fn a_clients_certificate_is_no_servers() {
    let ours = authority("ours");
    let mut params = named("db1", &["db1"]);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let server = signed(&params, &ours);
    handshake(Mode::VerifyCa, &[ours.pem()], &server, "db1").expect_err("made for another purpose");
}

/// Shows a certificate and signs with a key that is not its own, as one does who only copied the certificate.
#[derive(Debug)]
struct Thief(Arc<rustls::sign::CertifiedKey>);

impl rustls::server::ResolvesServerCert for Thief {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[test]
fn the_server_must_hold_the_key_in_every_mode() {
    let real = self_signed(&recipe());
    let wrong_key =
        PrivateKeyDer::try_from(KeyPair::generate().expect("a key").serialize_der()).expect("a key");
    let signer = ring::sign::any_supported_type(&wrong_key).expect("a key that signs");
    let thief = Thief(Arc::new(rustls::sign::CertifiedKey::new(real.chain.clone(), signer)));
    let thief = Arc::new(thief);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&thief) as _);
        for (mode, trusted) in
            [(Mode::Prefer, None), (Mode::Require, None), (Mode::VerifyCa, Some(&real.pem))]
        {
            let trusted: Vec<String> = trusted.into_iter().cloned().collect();
            let error = shake(mode, &trusted, server.clone(), "db1").expect_err("a stolen certificate");
            assert!(crate::tls::handshake::message(&error).contains("does not prove"), "{mode:?}: {error}");
        }
    }
}

/// `openssl x509 -req` without extensions, before OpenSSL 3.2: X.509 version 1. Valid until 2126.
const VERSION_1: &[u8] = b"-----BEGIN CERTIFICATE-----
MIIBJDCBywIUSauFwdcxoUzAUhIernUUKaPIt/EwCgYIKoZIzj0EAwIwFDESMBAG
A1UEAwwJYXV0aG9yaXR5MCAXDTI2MTEyMzE0NTU1NVoYDzIxMjYxMDMwMTQ1NTU1
WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AASAw0FiL7jVrcc4A5jL4KcfrKiT30BE/tAZl+Ks7nl/FKn1fhps0ZNzh2eEh0IE
YDNgjUreVJbhtdiWXLwna919MAoGCCqGSM49BAMCA0gAMEUCIQDh4Qd9g8lFOIOD
7hXworSF+pTreHr5YXc6WA0/d9PssgIgYVbAQWElodJAaOEvj6WKjZZj4JjA1dUb
+cxm8G67jSk=
-----END CERTIFICATE-----
";

#[test]
fn a_version_1_certificate_is_refused_with_the_remedy() {
    let server = CertificateDer::from_pem_slice(VERSION_1).expect("a certificate");
    let demanded = Demanded { demand: Demand::Nothing, roots: RootCertStore::empty(), trusted: Vec::new() };
    let verifier = Verifier::new(demanded);
    let name = ServerName::try_from("localhost").expect("a name");
    let error = verifier
        .verify_server_cert(&server, &[], &name, &[], UnixTime::now())
        .expect_err("version 1 cannot be read");
    let message = crate::tls::handshake::message(&error);
    assert!(is_refusal(&error) && message.contains("-extfile"), "{message}");
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shown = self_signed(&named("relay", &[]));
    let (cert, key) = (folder.path().join("cert"), folder.path().join("key"));
    fs::write(&cert, &shown.pem).expect("written");
    fs::write(&key, shown.key.serialize_pem()).expect("written");
    let options = |mode| Options {
        mode,
        root: Root::None,
        identity: Some(Identity { cert: cert.clone(), key: key.clone() }),
        direct: false,
    };
    for (mode, accepted) in [(0o600, true), (0o644, false), (0o660, false)] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).expect("mode set");
        assert_eq!(options(Mode::Require).client_config().is_ok(), accepted, "{mode:o}");
        assert!(options(Mode::Disable).client_config().is_ok(), "without TLS nobody reads it");
    }
}
