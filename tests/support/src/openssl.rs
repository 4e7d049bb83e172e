//! Servers with certificates that are wrong in all kinds of ways, and what the relay says of each. `openssl` serves
//! them, because rustls makes none of the bad ones.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyPair, NameConstraints, date_time_ymd,
};
use tempfile::TempDir;

/// The name of the host that the certificates are for.
pub const NAME: &str = "good.example";

/// One thing that is wrong.
pub struct Case {
    /// What a failed test calls it.
    pub name: &'static str,
    /// Puts server.pem, server.key and trusted.pem into the folder.
    make: fn(&Path),
    /// Arguments of `openssl s_server`; none for a server that speaks HTTP without TLS.
    serve: Option<&'static [&'static str]>,
    /// What the relay's message says.
    pub said: &'static str,
    /// The relay refuses a Postgres server for it, too.
    is_of_postgres: bool,
}

/// Lets OpenSSL serve what it would refuse by default.
const ANYTHING: &[&str] = &["-cipher", "ALL:@SECLEVEL=0"];

/// The certificate is what is wrong.
const fn case(name: &'static str, make: fn(&Path), said: &'static str) -> Case {
    Case { name, make, serve: Some(ANYTHING), said, is_of_postgres: true }
}

/// The server is what is wrong.
const fn server(name: &'static str, serve: Option<&'static [&'static str]>, said: &'static str) -> Case {
    Case { name, make: good, serve, said, is_of_postgres: true }
}

/// The server demands a client's certificate. A Postgres server does so only where pg_hba.conf says it, and then says
/// it in words of its own.
const fn demands_certificate(name: &'static str, serve: &'static [&'static str]) -> Case {
    Case { is_of_postgres: false, ..server(name, Some(serve), "demands a client's certificate") }
}

const CASES: &[Case] = &[
    case("RSA of 1024 bits", |at| signed_by_openssl(at, "rsa:1024", &[]), "an RSA key of 1024 bits"),
    case("an authority with RSA of 1024 bits", short_authority, "authority has an RSA key of 1024 bits"),
    case("expired", |at| by_rcgen(at, |params| params.not_after = date_time_ymd(2001, 1, 1)), "has expired"),
    case(
        "not valid yet",
        |at| by_rcgen(at, |params| params.not_before = date_time_ymd(2998, 1, 1)),
        "is not valid yet",
    ),
    case("another name", other_name, "is for another name (it is for other.example)"),
    Case {
        // libpq's rule: without another name, the common name counts.
        is_of_postgres: false,
        ..case(
            "no name",
            |at| by_rcgen(at, |params| params.subject_alt_names.clear()),
            "it has no subjectAltName",
        )
    },
    case("an unknown authority", unknown_authority, "of an authority that is not trusted here"),
    case("a namesake of the authority", namesake, "one of the same name is, with another key"),
    case("self-signed", self_signed, "is self-signed and not trusted here"),
    Case {
        is_of_postgres: false,
        ..case(
            "self-signed, an authority and trusted",
            trusted_itself,
            "an authority's (CA:TRUE), and no server's",
        )
    },
    case("MD5", |at| signed_by_rsa_authority(at, "-md5"), "is signed with MD5, which is not accepted"),
    case("SHA-1", |at| signed_by_rsa_authority(at, "-sha1"), "is signed with SHA-1, which is not accepted"),
    case(
        "ECDSA and SHA-1",
        |at| signed_by_openssl(at, "ec:P-256.pem", &["-sha1"]),
        "is signed with SHA-1, which is not accepted",
    ),
    case(
        "an authority as a server",
        |at| by_rcgen(at, |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        "an authority's (CA:TRUE), and no server's",
    ),
    case(
        "no serverAuth",
        |at| by_rcgen(at, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
        "lacks serverAuth",
    ),
    case("P-521", |at| signed_by_openssl(at, "ec:P-521.pem", &[]), "kind of key in common"),
    case("an authority with P-521", p521_authority, "with ECDSA and SHA-256 and a key of the kind P-521"),
    case("version 1", version_1, "is X.509 version 1"),
    case("name constraints", constrained, "may not vouch for its names (name constraints)"),
    server("plain http", None, "does not speak TLS on this port"),
    server("TLS 1.1", Some(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]), "needs to speak 1.2 or newer"),
    server(
        "no common cipher",
        Some(&["-tls1_2", "-cipher", "AES128-SHA"]),
        "cipher or kind of key in common",
    ),
    demands_certificate("a client's certificate, TLS 1.2", &["-Verify", "1", "-tls1_2"]),
    demands_certificate("a client's certificate, TLS 1.3", &["-Verify", "1", "-tls1_3"]),
];

/// All cases, or those for which the relay refuses a Postgres server.
pub fn cases(of_postgres: bool) -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(move |case| case.is_of_postgres || !of_postgres)
}

/// A running server. It ends on drop.
pub struct Server {
    child: Option<Child>,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// The file of certificates that its callers trust.
    pub trusted: PathBuf,
    _folder: TempDir,
}

impl Case {
    /// Starts a server that has this fault.
    ///
    /// # Panics
    ///
    /// When it cannot be started: `openssl` is missing, say.
    pub fn start(&self) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        authority(at, "ca", |_| ());
        fs::copy(at.join("ca.pem"), at.join("trusted.pem")).unwrap();
        (self.make)(at);
        let (child, port) = match self.serve {
            Some(serve) => serve_tls(at, serve),
            None => (None, serve_http()),
        };
        Server { child, port, trusted: at.join("trusted.pem"), _folder: folder }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// A server that speaks TLS on a free port, and Postgres' protocol inside if the client asks for it.
fn serve_tls(at: &Path, arguments: &[&str]) -> (Option<Child>, u16) {
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", "127.0.0.1:0", "-cert", "server.pem", "-key", "server.key"]);
    command.args(["-alpn", "postgresql"]).args(arguments).current_dir(at);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("openssl; install the package openssl");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let port = lines.by_ref().find_map(|line| line.unwrap().strip_prefix("ACCEPT 127.0.0.1:")?.parse().ok());
    // The thread reads the rest of the output, so that openssl never waits for a reader.
    thread::spawn(move || lines.for_each(drop));
    (Some(child), port.expect("openssl says where it listens"))
}

fn serve_http() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // An error: the client has gone already.
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").ok();
            let mut rest = [0; 4096];
            while std::io::Read::read(&mut stream, &mut rest).is_ok_and(|length| length > 0) {}
        }
    });
    port
}

/// Runs openssl in the folder; it must succeed.
fn openssl(at: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).current_dir(at).stdin(Stdio::null()).output();
    let output = output.expect("openssl; install the package openssl");
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An authority's certificate and key in `{name}.pem` and `{name}.key`.
fn authority(at: &Path, name: &str, change: impl FnOnce(&mut CertificateParams)) {
    let key = KeyPair::generate().unwrap();
    fs::write(at.join(format!("{name}.pem")), authority_params(change).self_signed(&key).unwrap().pem())
        .unwrap();
    fs::write(at.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

fn authority_params(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "an authority");
    change(&mut params);
    params
}

fn issuer(at: &Path) -> Issuer<'static, KeyPair> {
    let key = KeyPair::from_pem(&fs::read_to_string(at.join("ca.key")).unwrap()).unwrap();
    Issuer::new(authority_params(|_| ()), key)
}

fn leaf() -> CertificateParams {
    let mut params = CertificateParams::new([NAME.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, NAME);
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2999, 1, 1);
    params
}

/// The server's certificate, signed by the authority of the folder.
fn by_rcgen(at: &Path, change: impl FnOnce(&mut CertificateParams)) {
    let (mut params, key) = (leaf(), KeyPair::generate().unwrap());
    change(&mut params);
    fs::write(at.join("server.pem"), params.signed_by(&key, &issuer(at)).unwrap().pem()).unwrap();
    fs::write(at.join("server.key"), key.serialize_pem()).unwrap();
}

fn good(at: &Path) {
    by_rcgen(at, |_| ());
}

fn other_name(at: &Path) {
    by_rcgen(at, |params| *params = CertificateParams::new(["other.example".to_owned()]).unwrap());
}

fn unknown_authority(at: &Path) {
    good(at);
    authority(at, "trusted", |params| {
        params.distinguished_name.push(DnType::CommonName, "another authority")
    });
}

fn namesake(at: &Path) {
    good(at);
    authority(at, "trusted", |_| ());
}

fn self_signed(at: &Path) {
    let key = KeyPair::generate().unwrap();
    fs::write(at.join("server.pem"), leaf().self_signed(&key).unwrap().pem()).unwrap();
    fs::write(at.join("server.key"), key.serialize_pem()).unwrap();
}

/// A self-signed certificate as `openssl req -x509` makes it; the client trusts it.
fn trusted_itself(at: &Path) {
    let (mut params, key) = (leaf(), KeyPair::generate().unwrap());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    fs::write(at.join("server.pem"), &pem).unwrap();
    fs::write(at.join("trusted.pem"), &pem).unwrap();
    fs::write(at.join("server.key"), key.serialize_pem()).unwrap();
}

/// The authority of the folder may vouch for other names only.
fn constrained(at: &Path) {
    authority(at, "ca", |params| {
        let permitted_subtrees = vec![GeneralSubtree::DnsName("other.example".to_owned())];
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    });
    fs::copy(at.join("ca.pem"), at.join("trusted.pem")).unwrap();
    good(at);
}

/// A key of this kind (`rsa:BITS`, or `ec:CURVE.pem`), and a request to sign it.
fn request(at: &Path, key: &str) {
    if let Some(curve) = key.strip_prefix("ec:") {
        openssl(at, &["ecparam", "-name", &ossl_curve(curve), "-out", curve]);
    }
    let subject = format!("/CN={NAME}");
    openssl(
        at,
        &["req", "-new", "-newkey", key, "-nodes", "-keyout", "server.key", "-subj", &subject, "-out", "csr"],
    );
}

fn ossl_curve(file: &str) -> String {
    match file {
        "P-256.pem" => "prime256v1".into(),
        "P-521.pem" => "secp521r1".into(),
        other => panic!("no curve: {other}"),
    }
}

/// Signs the request; `how` is more for openssl.
fn sign(at: &Path, how: &[&str]) {
    let sign = [
        "x509",
        "-req",
        "-in",
        "csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-set_serial",
        "7",
        "-days",
        "30",
    ];
    openssl(at, &[&sign[..], &["-out", "server.pem"], how].concat());
}

fn signed_by_openssl(at: &Path, key: &str, how: &[&str]) {
    request(at, key);
    fs::write(at.join("extensions"), format!("subjectAltName=DNS:{NAME}")).unwrap();
    sign(at, &[&["-extfile", "extensions"], how].concat());
}

/// By a command without extensions; OpenSSL 3.2 and newer need to be told that there are none.
fn version_1(at: &Path) {
    request(at, "rsa:2048");
    fs::write(at.join("extensions"), "subjectKeyIdentifier=none\nauthorityKeyIdentifier=none\n").unwrap();
    let is_made = [&[][..], &["-extfile", "extensions"]].into_iter().any(|how| {
        sign(at, how);
        let text = Command::new("openssl")
            .args(["x509", "-noout", "-text", "-in", "server.pem"])
            .current_dir(at)
            .output();
        String::from_utf8_lossy(&text.unwrap().stdout).contains("Version: 1 ")
    });
    assert!(is_made, "this openssl makes no certificate of version 1");
}

/// An authority with a key of this kind, which is trusted, in place of the folder's.
fn authority_by_openssl(at: &Path, key: &str) {
    if let Some(curve) = key.strip_prefix("ec:") {
        openssl(at, &["ecparam", "-name", &ossl_curve(curve), "-out", curve]);
    }
    let make =
        ["req", "-x509", "-newkey", key, "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "30"];
    openssl(at, &[&make[..], &["-subj", "/CN=an authority"]].concat());
    fs::copy(at.join("ca.pem"), at.join("trusted.pem")).unwrap();
}

fn short_authority(at: &Path) {
    authority_by_openssl(at, "rsa:1024");
    signed_by_openssl(at, "rsa:2048", &[]);
}

fn p521_authority(at: &Path) {
    authority_by_openssl(at, "ec:P-521.pem");
    signed_by_openssl(at, "rsa:2048", &["-sha256"]);
}

fn signed_by_rsa_authority(at: &Path, digest: &str) {
    authority_by_openssl(at, "rsa:2048");
    signed_by_openssl(at, "rsa:2048", &[digest]);
}
