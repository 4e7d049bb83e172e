//! What the tests stand on: a receiver that runs a script for each connection, certificates for it, and a caller whose
//! names resolve to what the test says.

use std::io::{self, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use promptpal_relay::inside::delivery::Resolver;
use promptpal_relay::inside::delivery::{Caller, Proxy, Settings, Sources};
use promptpal_relay::inside::model::Call;
use promptpal_relay::inside::model::Outcome;
use promptpal_relay::inside::model::Reached;
use promptpal_relay::inside::model::Room;
use promptpal_relay::inside::model::{Secret, Webhook};
use proptest::test_runner::Config as ProptestConfig;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{HandshakeKind, ServerConfig, ServerConnection, StreamOwned};
use socket2::{Domain, SockRef, Socket, Type};
use tempfile::TempDir;
use test_support::http::Message;
use test_support::proxy;
use uuid::Uuid;

/// How long something may take to happen; long, because the machine may be busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// The timeout of calls that are not meant to reach it.
pub const PATIENT: Duration = Duration::from_secs(30);

/// Runs this many random cases, or as many as PROPTEST_CASES says.
pub fn cases(usual: u32) -> ProptestConfig {
    let more = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: more.unwrap_or(usual), failure_persistence: None, ..ProptestConfig::default() }
}

// ---- calls --------------------------------------------------------------------------------------------------------

pub fn settings(timeout: Duration) -> Settings {
    Settings {
        timeout,
        response_body_bytes_max: 64 * 1024,
        allow_net: ["127.0.0.0/8", "::1/128"].map(|net| net.parse().unwrap()).to_vec(),
        https_only: false,
        ca_file: Some(AUTHORITY.file.clone()),
        sources: Sources::default(),
        proxy: is_proxied().then(|| Proxy::parse(&PROXY.url()).unwrap()),
        user_agent_version: "1".into(),
        refused: Vec::new(),
        reached: Reached::default(),
        metrics_port: None,
        second_chance: true,
    }
}

/// A caller for which every name is 127.0.0.1.
pub fn caller(timeout: Duration) -> Caller {
    caller_with(settings(timeout))
}

pub fn caller_with(settings: Settings) -> Caller {
    caller_to(settings, |_| Ok(vec![Ipv4Addr::LOCALHOST.into()]))
}

/// A caller whose names resolve to what `lookup` says.
pub fn caller_to(
    settings: Settings,
    lookup: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
) -> Caller {
    Caller::with_resolver(settings, Resolver::new(Box::new(lookup))).unwrap()
}

pub fn webhook(url: &str) -> Webhook {
    Webhook { id: 7, url: url.to_owned(), signing_secret: None }
}

pub fn signed(url: &str, secret: &str) -> Webhook {
    Webhook { signing_secret: Some(Secret(secret.to_owned())), ..webhook(url) }
}

pub fn made(outcome: Outcome) -> Call {
    match outcome {
        Outcome::Called(call) => {
            assert_in_our_words(message(&call));
            call
        }
        Outcome::ResourceExhausted(why) => panic!("a shortage of ours: {why}"),
        Outcome::NoWayOut(why) => panic!("no way out: {why}"),
        Outcome::RefusalUnclear => panic!("the proxy refuses somebody"),
        Outcome::ResolverBusy => panic!("no thread to look the name up"),
    }
}

/// A customer reads the message: it has no text of a library, no link and no number of the system.
fn assert_in_our_words(message: &str) {
    for word in [
        "os error",
        "docs.rs",
        "rustls",
        "webpki",
        "invalid peer",
        "fatal alert",
        "corrupt message",
        "tls handshake eof",
        "Peer disconnected",
        "http parse",
        "lookup address information",
        "io: ",
    ] {
        assert!(!message.contains(word), "{message}");
    }
}

/// What a call sends: event 42, without a trace context.
pub fn event(body: &str) -> promptpal_relay::inside::model::Message {
    promptpal_relay::inside::model::Message {
        event_id: Uuid::from_u128(42),
        body: body.into(),
        traceparent: None,
    }
}

/// One POST of a small body.
pub fn post(caller: &Caller, url: &str) -> Call {
    post_body(caller, url, "{\"a\":1}")
}

pub fn post_body(caller: &Caller, url: &str, body: &str) -> Call {
    made(caller.call(&webhook(url), &event(body), &mut Room::without_end()))
}

/// The kind of a failure; `success` for none.
pub fn kind(call: &Call) -> &'static str {
    call.error_kind.map_or("success", |kind| kind.as_str())
}

pub fn message(call: &Call) -> &str {
    call.error_message.as_deref().unwrap_or_default()
}

/// Whether all of a call's texts can be stored, and its headers are JSON objects of strings and arrays of strings.
pub fn assert_storable(call: &Call) {
    let texts = [
        Some(&call.url),
        Some(&call.request_headers),
        call.response_headers.as_ref(),
        call.response_body.as_ref(),
        call.error_message.as_ref(),
        call.remote_addr.as_ref(),
    ];
    for text in texts.into_iter().flatten() {
        assert!(!text.contains('\0'), "{text:?}");
    }
    for headers in [Some(&call.request_headers), call.response_headers.as_ref()].into_iter().flatten() {
        assert!(!headers.contains("\\u0000"), "{headers}");
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(headers).unwrap();
        for (name, value) in object {
            assert_eq!(name, name.to_lowercase());
            let is_text = |value: &serde_json::Value| value.is_string();
            assert!(
                is_text(&value) || value.as_array().is_some_and(|all| all.iter().all(is_text)),
                "{value}"
            );
        }
    }
}

// ---- through a proxy ----------------------------------------------------------------------------------------------

/// The variable that says that all calls of this process go through a proxy.
const PROXIED: &str = "PROMPTPAL_RELAY_TEST_PROXIED";

/// The proxy of this process: it makes each tunnel.
static PROXY: LazyLock<proxy::Proxy> = LazyLock::new(proxy::Proxy::open);

/// The proxy of this process.
pub fn proxy_of_this_process() -> &'static proxy::Proxy {
    &PROXY
}

/// Whether the calls of this process go through a proxy.
pub fn is_proxied() -> bool {
    std::env::var_os(PROXIED).is_some()
}

/// Whether a scenario is left out because calls go through a proxy; says why it makes no sense there.
pub fn makes_no_sense_proxied(why: &str) -> bool {
    if is_proxied() {
        println!("not through a proxy: {why}");
    }
    is_proxied()
}

/// Runs all scenarios again, in a process whose calls go through a proxy.
pub fn run_proxied() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    // The other tests of that file have a proxy of their own.
    command.args([
        "--skip",
        "proxied::a",
        "--skip",
        "proxied::h",
        "--skip",
        "proxied::t",
        "--skip",
        "proxied::w",
    ]);
    command.env(PROXIED, "1");
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    let passed = told.lines().filter(|line| line.ends_with(" ... ok")).count();
    assert!(passed > 80, "{passed} scenarios passed:\n{told}");
}

// ---- processes ----------------------------------------------------------------------------------------------------

/// The variable that tells a test's own process from the run of all tests.
const ALONE: &str = "PROMPTPAL_RELAY_TEST_ALONE";

/// Whether this process is a test's own: limits, variables and networks belong to a process.
pub fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// Runs this test again in a process of its own, by a shell that runs `setup` first. The name of the test has its module.
pub fn run_alone(test: &str, setup: &str) {
    run_by(Command::new("sh"), test, setup);
}

/// Runs this test again in a network of its own, which has loopback and no way out, and with mounts of its own. Says so
/// where this machine makes no such network.
pub fn run_apart(test: &str, setup: &str) {
    let rights: &[&str] = if geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
    let apart = |program: &str| {
        let mut command = Command::new("unshare");
        command.args(rights).args(["--net", "--mount", program]);
        command
    };
    if !apart("ip").args(["link", "set", "lo", "up"]).status().is_ok_and(|status| status.success()) {
        println!("skipped: this machine makes no network for a test (unshare, ip)");
        return;
    }
    run_by(apart("sh"), test, &format!("set -e; ip link set lo up; {setup}"));
}

fn run_by(mut shell: Command, test: &str, setup: &str) {
    shell.args(["-c", &format!("{setup}; exec \"$0\" \"$@\"")]).arg(std::env::current_exe().unwrap());
    shell.args(["--exact", test, "--nocapture"]).env(ALONE, "1");
    let output = shell.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}{errors}");
}

// ---- a receiver ---------------------------------------------------------------------------------------------------

/// A server whose script runs once for each connection, on a thread of its own; the connection closes when it ends.
pub struct Receiver {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Receiver {
    pub fn start(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Receiver {
        Receiver::on(TcpListener::bind("127.0.0.1:0").unwrap(), script)
    }

    /// Starts a receiver whose system takes in very little before the script reads.
    pub fn narrow(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Receiver {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // Inherited by the connections; the system makes it a little larger.
        socket.set_recv_buffer_size(1).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(16).unwrap();
        Receiver::on(socket.into(), script)
    }

    /// Starts a receiver that speaks TLS with this configuration before its script begins.
    pub fn tls(config: Arc<ServerConfig>, script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Receiver {
        Receiver::start(move |peer| {
            if peer.encrypt(config.clone()).is_ok() {
                script(peer);
            }
        })
    }

    pub fn on(listener: TcpListener, script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Receiver {
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (script, count) = (Arc::new(script), connections.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                let script = script.clone();
                thread::spawn(move || script(&mut Peer::new(stream, number)));
            }
        });
        Receiver { address, connections }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// The HTTPS URL, with a name that is in its certificate.
    pub fn https(&self) -> String {
        format!("https://good.example:{}/", self.address.port())
    }

    /// How many connections have been accepted.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// The other end of one connection.
pub struct Peer {
    /// 1 for the first connection.
    pub number: usize,
    /// The TLS handshake resumed a session.
    pub resumed: bool,
    stream: TcpStream,
    wire: BufReader<Box<dyn Wire>>,
}

impl Peer {
    pub fn new(stream: TcpStream, number: usize) -> Peer {
        stream.set_nodelay(true).unwrap();
        let wire: Box<dyn Wire> = Box::new(stream.try_clone().unwrap());
        Peer { number, resumed: false, stream, wire: BufReader::new(wire) }
    }

    fn encrypt(&mut self, config: Arc<ServerConfig>) -> io::Result<()> {
        let mut stream = self.stream.try_clone()?;
        let mut connection = ServerConnection::new(config).unwrap();
        connection.complete_io(&mut stream)?;
        self.resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        self.wire = BufReader::new(Box::new(StreamOwned::new(connection, stream)));
        Ok(())
    }

    /// The address that the other side called from.
    pub fn from(&self) -> IpAddr {
        self.stream.peer_addr().unwrap().ip()
    }

    /// Reads a request; none when the connection ended before its end.
    pub fn request(&mut self) -> Option<Message> {
        Message::request(&mut self.wire)
    }

    /// Reads so many bytes; returns whether they came.
    pub fn read(&mut self, count: usize) -> bool {
        self.wire.read_exact(&mut vec![0; count]).is_ok()
    }

    /// Waits for the other side's end.
    pub fn until_closed(&mut self) {
        let mut rest = [0; 4096];
        while self.wire.read(&mut rest).is_ok_and(|length| length > 0) {}
    }

    /// Sends; returns whether the system took it.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let wire = self.wire.get_mut();
        wire.write_all(bytes.as_ref()).and_then(|()| wire.flush()).is_ok()
    }

    /// Sends a byte at a time, with a pause before each, for as long as the other side takes them.
    pub fn drip(&mut self, bytes: &[u8], pause: Duration) {
        for byte in bytes {
            thread::sleep(pause);
            if !self.send([*byte]) {
                return;
            }
        }
    }

    /// Sends the same again and again, for as long as the other side takes it; returns how many bytes went out.
    pub fn flood(&mut self, bytes: &[u8]) -> usize {
        let block = bytes.repeat(8192 / bytes.len() + 1);
        let mut sent = 0;
        while self.send(&block) {
            sent += block.len();
        }
        sent
    }

    /// Ends the connection with an RST.
    pub fn reset(&mut self) {
        // Closed by the drop that follows; a reset needs all of our handles closed, so the linger is on the socket.
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Says that nothing more will come, and stays.
    pub fn half_close(&mut self) {
        self.stream.shutdown(Shutdown::Write).ok();
        self.until_closed();
    }

    /// Reads a little, with a pause before each time.
    pub fn sip(&mut self, bytes: usize, pause: Duration) {
        let mut sip = vec![0; bytes];
        loop {
            thread::sleep(pause);
            if !self.wire.read(&mut sip).is_ok_and(|length| length > 0) {
                return;
            }
        }
    }
}

/// 200, and no body.
pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// An address on loopback where a connection is never made: the queue of those to be accepted is full.
pub struct Dead {
    pub address: SocketAddr,
    _listener: TcpListener,
    _waiting: Vec<Socket>,
}

impl Dead {
    pub fn on(ip: impl Into<IpAddr>, port: u16) -> Dead {
        Dead::try_on(ip, port).unwrap()
    }

    /// Makes one on this address; an error where this machine does not have it.
    pub fn try_on(ip: impl Into<IpAddr>, port: u16) -> io::Result<Dead> {
        let address = SocketAddr::new(ip.into(), port);
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // A connection that ended a moment ago may still have the port.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(0)?;
        let listener: TcpListener = socket.into();
        let address = listener.local_addr()?;
        let mut waiting = Vec::new();
        loop {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            let made = socket.connect_timeout(&address.into(), Duration::from_millis(200));
            waiting.push(socket);
            if made.is_err() {
                return Ok(Dead { address, _listener: listener, _waiting: waiting });
            }
            assert!(waiting.len() < 100, "the queue does not fill");
        }
    }
}

/// A door that a test opens.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open; returns whether that came in time.
    pub fn pass(&self) -> bool {
        let (open, _) =
            self.0.1.wait_timeout_while(self.0.0.lock().unwrap(), DEADLINE, |open| !*open).unwrap();
        *open
    }
}

/// Waits until a condition holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "{what} does not happen");
        thread::sleep(Duration::from_millis(2));
    }
}

// ---- certificates -------------------------------------------------------------------------------------------------

/// An authority; the file of its certificate is what `--ca-file` names.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub file: PathBuf,
    _folder: TempDir,
}

/// The authority that the tests' callers trust.
pub static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::new("an authority"));

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { issuer: Issuer::new(params, key), file, _folder: folder }
    }

    /// A server's configuration with a certificate for `name` that is valid in these years.
    pub fn server(&self, name: &str, years: std::ops::Range<i32>) -> Arc<ServerConfig> {
        let (params, key) = certificate(name, years);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        server_config(certificate.der().clone(), &key)
    }

    /// A certificate for `name` that is valid, and its key.
    pub fn sign(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let (params, key) = certificate(name, 2000..2999);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    /// A server's configuration with a good certificate for `good.example`.
    pub fn good(&self) -> Arc<ServerConfig> {
        self.server("good.example", 2000..2999)
    }
}

pub fn certificate(name: &str, years: std::ops::Range<i32>) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(years.start, 1, 1);
    params.not_after = date_time_ymd(years.end, 1, 1);
    (params, KeyPair::generate().unwrap())
}

pub fn server_config(certificate: CertificateDer<'static>, key: &KeyPair) -> Arc<ServerConfig> {
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    Arc::new(config)
}
