//! An HTTP server whose answers the test scripts, and the gate at which they wait.

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use test_support::http::Message;

use super::DEADLINE;

/// How many connections may wait for a receiver to accept them: more than any test opens at once.
const BACKLOG: i32 = 4096;

/// What a receiver answers.
pub enum Reply {
    /// It sends these bytes.
    Bytes(Vec<u8>),
    /// It answers nothing, for as long as the receiver lives.
    Never,
    /// It closes the connection without an answer.
    Close,
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply::full(status, &[], b"{\"status\":\"received\"}")
    }

    pub fn full(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut bytes = format!("HTTP/1.1 {status} Whatever\r\n").into_bytes();
        for (name, value) in headers {
            bytes.extend(format!("{name}: {value}\r\n").bytes());
        }
        bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
        bytes.extend(body);
        Reply::Bytes(bytes)
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

    /// Waits until it is open.
    pub fn pass(&self) {
        let (open, _) =
            self.0.1.wait_timeout_while(self.0.0.lock().unwrap(), DEADLINE, |open| !*open).unwrap();
        assert!(*open, "the gate was never opened");
    }
}

/// An HTTP server, on loopback if not said otherwise, whose answers the test scripts. It records each request before it answers.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
}

type Script = dyn Fn(&Message) -> Reply + Send + Sync;

struct Shared {
    requests: Mutex<Vec<Message>>,
    arrived: Condvar,
    remember: bool,
    script: Box<Script>,
    // Open ones, by number.
    connections: Mutex<HashMap<usize, TcpStream>>,
}

impl Receiver {
    /// Starts a receiver that remembers the requests.
    pub fn start(script: impl Fn(&Message) -> Reply + Send + Sync + 'static) -> Receiver {
        Receiver::listen(Ipv4Addr::LOCALHOST, true, Box::new(script))
    }

    /// Starts a receiver that listens at this address and does not remember the requests.
    pub fn at(address: Ipv4Addr, script: impl Fn(&Message) -> Reply + Send + Sync + 'static) -> Receiver {
        Receiver::listen(address, false, Box::new(script))
    }

    /// Starts a receiver that does not remember them, for a great many requests.
    pub fn forgetful(script: impl Fn(&Message) -> Reply + Send + Sync + 'static) -> Receiver {
        Receiver::at(Ipv4Addr::LOCALHOST, script)
    }

    fn listen(address: Ipv4Addr, remember: bool, script: Box<Script>) -> Receiver {
        let listener = TcpListener::bind((address, 0)).unwrap();
        // The system may reset connections that the queue has no room for, and this process may wait long for the
        // processor.
        socket2::SockRef::from(&listener).listen(BACKLOG).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            requests: Mutex::default(),
            arrived: Condvar::new(),
            remember,
            script,
            connections: Mutex::default(),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                let shared = accepting.clone();
                shared.connections.lock().unwrap().insert(number, stream.try_clone().unwrap());
                thread::spawn(move || {
                    serve(&stream, &shared);
                    shared.connections.lock().unwrap().remove(&number);
                });
            }
        });
        Receiver { address, shared }
    }

    /// Starts a receiver that answers 200 to everything.
    pub fn good() -> Receiver {
        Receiver::start(|_| Reply::status(200))
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Message>> {
        self.shared.requests.lock().unwrap()
    }

    /// The requests that have come so far.
    pub fn requests(&self) -> Vec<Message> {
        self.lock().clone()
    }

    /// Waits until so many requests have come.
    pub fn wait_for(&self, count: usize) -> Vec<Message> {
        let arrived = &self.shared.arrived;
        let (requests, _) = arrived.wait_timeout_while(self.lock(), DEADLINE, |r| r.len() < count).unwrap();
        assert!(requests.len() >= count, "{} of {count} requests came in time", requests.len());
        requests.clone()
    }
}

/// Starts a receiver whose answers wait at a gate.
pub fn gated() -> (Receiver, Gate) {
    let gate = Gate::default();
    let door = gate.clone();
    let receiver = Receiver::start(move |_| {
        door.pass();
        Reply::status(200)
    });
    (receiver, gate)
}

impl Drop for Receiver {
    fn drop(&mut self) {
        for connection in self.shared.connections.lock().unwrap().values() {
            // Most are closed already.
            connection.shutdown(Shutdown::Both).ok();
        }
    }
}

/// Serves one connection until it ends.
fn serve(stream: &TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = Message::request(&mut reader) {
        if shared.remember {
            shared.requests.lock().unwrap().push(request.clone());
            shared.arrived.notify_all();
        }
        match (shared.script)(&request) {
            Reply::Bytes(bytes) => {
                let mut stream = stream;
                if stream.write_all(&bytes).is_err() {
                    return;
                }
            }
            Reply::Never => {
                // Ends when the other side or our drop closes the connection.
                let mut rest = Vec::new();
                reader.read_to_end(&mut rest).ok();
                return;
            }
            Reply::Close => {
                stream.shutdown(Shutdown::Both).ok();
                return;
            }
        }
    }
}
