//! A receiver that is not the bottleneck: a thread for each connection, raw bytes, no parsing beyond where a request
//! ends.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub struct Receiver {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    requests: AtomicU64,
    connections: AtomicU64,
    // Of requests with `"promptId":N` for N above zero: the number and when it came.
    arrivals: Mutex<Vec<(u64, Instant)>>,
}

impl Receiver {
    /// Listens on all addresses of loopback.
    pub fn start() -> Receiver {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let accepting = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                accepting.connections.fetch_add(1, Ordering::Relaxed);
                let shared = accepting.clone();
                let thread = thread::Builder::new().stack_size(64 * 1024);
                thread.spawn(move || serve(stream, &shared)).unwrap();
            }
        });
        Receiver { port, shared }
    }

    /// A URL by one of the addresses 127.0.0.1 to 127.0.255.254. The path says what is answered: `/` at once, `/slow` after
    /// 200 ms, `/big` 64 KiB after 20 ms, `/huge` 16 MiB that are no text, `/hang` nothing.
    pub fn url(&self, host: u16, path: &str) -> String {
        let [high, low] = (host + 1).to_be_bytes();
        format!("http://127.0.{high}.{low}:{}{path}", self.port)
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Takes the arrivals of numbered requests.
    pub fn arrivals(&self) -> Vec<(u64, Instant)> {
        std::mem::take(&mut *self.shared.arrivals.lock().unwrap())
    }
}

pub const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 21\r\n\r\n{\"status\":\"received\"}";

fn serve(mut stream: TcpStream, shared: &Shared) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 8 * 1024];
    let mut filled = 0;
    loop {
        let end = match request_end(&buffer[..filled]) {
            Some(end) if end <= filled => end,
            end => {
                buffer.resize(end.unwrap_or_default().max(buffer.len()), 0);
                match stream.read(&mut buffer[filled..]) {
                    Ok(0) => return,
                    Ok(length) => {
                        filled += length;
                        continue;
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(_) => return,
                }
            }
        };
        let now = Instant::now();
        let request = &buffer[..end];
        shared.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(number) = prompt_id(request).filter(|number| *number > 0) {
            shared.arrivals.lock().unwrap().push((number, now));
        }
        let sent = if request.starts_with(b"POST /hang") {
            // Until the other side gives up.
            stream.read(&mut [0; 1]).map(|_| ())
        } else if request.starts_with(b"POST /big") {
            thread::sleep(Duration::from_millis(20));
            let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n".to_vec();
            answer.resize(answer.len() + 65536, b'x');
            stream.write_all(&answer)
        } else if request.starts_with(b"POST /huge") {
            let piece = vec![0xff; 64 * 1024];
            let head = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 16777216\r\n\r\n");
            head.and_then(|()| (0..256).try_for_each(|_| stream.write_all(&piece)))
        } else if request.starts_with(b"POST /slow") {
            thread::sleep(Duration::from_millis(200));
            stream.write_all(OK)
        } else {
            stream.write_all(OK)
        };
        if sent.is_err() {
            return;
        }
        buffer.copy_within(end..filled, 0);
        filled -= end;
    }
}

/// Where a request ends that has a Content-Length.
pub fn request_end(bytes: &[u8]) -> Option<usize> {
    let head = find(bytes, b"\r\n\r\n")? + 4;
    let at = find_ignoring_case(&bytes[..head], b"content-length:")? + 15;
    Some(head + number(&bytes[at..])? as usize)
}

fn prompt_id(request: &[u8]) -> Option<u64> {
    let at = find(request, b"\"promptId\":")? + 11;
    number(&request[at..])
}

fn number(bytes: &[u8]) -> Option<u64> {
    let digits: Vec<u8> =
        bytes.iter().copied().skip_while(|b| *b == b' ').take_while(u8::is_ascii_digit).collect();
    String::from_utf8(digits).ok()?.parse().ok()
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn find_ignoring_case(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window.eq_ignore_ascii_case(what))
}
