//! A proxy that takes CONNECT, on loopback, and does with it what the test says.
//!
//! It connects to the address that it is told, and passes on what each end says and how it ends: in order, or with a reset. It
//! looks no name up: a relay that tells it one gets no tunnel.

use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use crate::http::Message;

/// What the proxy does with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// It connects, and says so. When it cannot, it answers 502.
    Tunnel,
    /// It connects, answers with these bytes, and goes on as a tunnel.
    Say(Vec<u8>),
    /// It answers with these bytes and closes the connection.
    Answer(Vec<u8>),
    /// It sends these bytes again and again, for as long as the other end takes them.
    Flood(Vec<u8>),
    /// It answers nothing, and keeps the connection until the other end closes it.
    Never,
    /// It closes the connection.
    Close,
}

impl Reply {
    /// An answer with this status and no body.
    pub fn status(status: u16) -> Reply {
        Reply::Answer(format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 0\r\n\r\n").into_bytes())
    }
}

/// What decides on a request.
type Script = dyn Fn(&Message) -> Reply + Send + Sync;

/// The proxy. Dropping it ends it, and its tunnels.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    script: Box<Script>,
    asked: Mutex<Vec<Message>>,
    /// The addresses that the requests came from.
    clients: Mutex<Vec<IpAddr>>,
    /// The connections, with those to endpoints. Only the tunnel owns them: a reset needs all handles closed.
    streams: Mutex<Vec<Weak<TcpStream>>>,
    over: AtomicBool,
}

impl Proxy {
    /// Starts one that makes each tunnel.
    ///
    /// # Panics
    ///
    /// When there is no port.
    pub fn open() -> Proxy {
        Proxy::start(|_| Reply::Tunnel)
    }

    /// Starts one that does what `script` says.
    ///
    /// # Panics
    ///
    /// When there is no port.
    pub fn start(script: impl Fn(&Message) -> Reply + Send + Sync + 'static) -> Proxy {
        Proxy::on(SocketAddr::from(([127, 0, 0, 1], 0)), script)
    }

    /// Starts one at this address.
    ///
    /// # Panics
    ///
    /// When the address is taken.
    pub fn on(address: SocketAddr, script: impl Fn(&Message) -> Reply + Send + Sync + 'static) -> Proxy {
        // Its port may be that of a proxy which ended a moment ago: std sets SO_REUSEADDR.
        let listener = TcpListener::bind(address).expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            script: Box::new(script),
            asked: Mutex::default(),
            clients: Mutex::default(),
            streams: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let serving = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.over.load(Ordering::SeqCst) {
                    return;
                }
                let (shared, stream) = (serving.clone(), Arc::new(stream));
                shared.keep(&stream);
                // An error ends this connection, and nothing else.
                thread::spawn(move || shared.serve(&stream).ok());
            }
        });
        Proxy { address, shared }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// As `--proxy` has it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests that have come so far.
    pub fn asked(&self) -> Vec<Message> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The addresses that they came from.
    pub fn clients(&self) -> Vec<IpAddr> {
        self.shared.clients.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The addresses for which a tunnel was asked.
    pub fn targets(&self) -> Vec<String> {
        let asked = self.asked();
        let connects = asked.iter().filter(|request| request.line.starts_with("CONNECT "));
        connects.map(|request| request.path().to_owned()).collect()
    }

    /// Ends it, and returns when nothing listens at its address any more.
    ///
    /// # Panics
    ///
    /// When it still listens after half a minute.
    pub fn stop(self) {
        let address = self.address;
        drop(self);
        for _ in 0..3000 {
            match TcpStream::connect(address) {
                Err(_) => return,
                Ok(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
        panic!("the proxy at {address} does not end");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        for stream in self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // Most are closed already.
            stream.upgrade().map(|stream| stream.shutdown(Shutdown::Both).ok());
        }
        // So that it notices.
        TcpStream::connect(self.address).ok();
    }
}

impl Shared {
    fn keep(&self, stream: &Arc<TcpStream>) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|stream| stream.strong_count() > 0);
        streams.push(Arc::downgrade(stream));
    }

    fn serve(&self, client: &Arc<TcpStream>) -> std::io::Result<()> {
        let mut stream = &**client;
        stream.set_nodelay(true)?;
        // By the byte: what comes behind the head is for the endpoint.
        let Some(request) = Message::request(&mut BufReader::with_capacity(1, stream)) else { return Ok(()) };
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).push(stream.peer_addr()?.ip());
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
        let said = match (self.script)(&request) {
            Reply::Tunnel => b"HTTP/1.1 200 Connection established\r\n\r\n".to_vec(),
            Reply::Say(bytes) => bytes,
            Reply::Answer(bytes) => return stream.write_all(&bytes),
            Reply::Flood(bytes) => loop {
                stream.write_all(&bytes)?;
            },
            Reply::Never => return stream.read_to_end(&mut Vec::new()).map(|_| ()),
            Reply::Close => return Ok(()),
        };
        let endpoint = request.path().parse().ok().and_then(reach);
        let Some(endpoint) = endpoint.map(Arc::new) else {
            return stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
        };
        self.keep(&endpoint);
        endpoint.set_nodelay(true)?;
        stream.write_all(&said)?;
        let reset = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| pass(&endpoint, client, &reset));
            pass(client, &endpoint, &reset);
        });
        Ok(())
    }
}

/// What Linux says when the process has no file left.
const EMFILE: i32 = 24;

/// Connects to an endpoint. Waits for a file up to two seconds: a test that takes all files of its process takes the proxy's, too,
/// which a real proxy has for itself.
fn reach(endpoint: SocketAddr) -> Option<TcpStream> {
    for _ in 0..400 {
        match TcpStream::connect(endpoint) {
            Ok(stream) => return Some(stream),
            Err(error) if error.raw_os_error() == Some(EMFILE) => thread::sleep(Duration::from_millis(5)),
            Err(_) => return None,
        }
    }
    None
}

/// Passes on what one end says, and how it ends.
fn pass(mut from: &TcpStream, mut to: &TcpStream, reset: &AtomicBool) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) if reset.load(Ordering::SeqCst) => return,
            Ok(0) => {
                // It may be gone.
                to.shutdown(Shutdown::Write).ok();
                return;
            }
            Ok(length) if to.write_all(&buffer[..length]).is_ok() => {}
            // One end has reset its connection: both get a reset when they are closed. The other direction ends by this.
            _ => {
                reset.store(true, Ordering::SeqCst);
                for end in [from, to] {
                    SockRef::from(end).set_linger(Some(Duration::ZERO)).ok();
                    end.shutdown(Shutdown::Read).ok();
                }
                return;
            }
        }
    }
}
