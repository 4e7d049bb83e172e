//! nginx as a receiver that keeps connections alive and answers at once, where it is installed.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

pub struct Nginx {
    child: Child,
    port: u16,
    /// How often it was asked for its count: those were requests, too.
    asked: AtomicU64,
    folder: TempDir,
}

/// The TLS servers, by their place among the ports: one keeps its connections, the others close each after its answer, and the last
/// one speaks TLS 1.2 only.
pub const KEEPS: usize = 0;
pub const CLOSES: usize = 1;
pub const CLOSES_TLS_1_2: usize = 2;
/// The settings of each.
const TLS_SERVERS: [&str; 3] = [
    "ssl_protocols TLSv1.2 TLSv1.3;",
    "ssl_protocols TLSv1.2 TLSv1.3; keepalive_timeout 0;",
    "ssl_protocols TLSv1.2; keepalive_timeout 0;",
];

impl Nginx {
    /// None where it is not installed, or has no stub_status.
    pub fn start() -> Option<Nginx> {
        Nginx::start_with(|_, _| String::new())
    }

    /// As [`start`](Nginx::start), with a TLS server on each of these ports, all with this chain of certificates and key. Sessions are
    /// resumed by tickets, or from a cache. Each request leaves a line in a log.
    pub fn with_tls(ports: [u16; 3], chain: &str, key: &str) -> Option<Nginx> {
        Nginx::start_with(|folder, answer| {
            fs::write(folder.join("chain.pem"), chain).unwrap();
            fs::write(folder.join("key.pem"), key).unwrap();
            let path = folder.display();
            let server = |(port, settings): (&u16, &&str)| {
                let log = format!("access_log {path}/{port} resumed;");
                format!("server {{ listen 127.0.0.1:{port} ssl backlog=4096; {log} {settings} {answer} }} ")
            };
            let servers: String = ports.iter().zip(&TLS_SERVERS).map(server).collect();
            format!(
                "ssl_certificate {path}/chain.pem; ssl_certificate_key {path}/key.pem;
                 ssl_session_cache shared:sessions:10m; ssl_session_timeout 10m;
                 log_format resumed $ssl_session_reused; {servers}"
            )
        })
    }

    /// `more` is given the folder and the block that answers, and returns more servers.
    fn start_with(more: impl Fn(&Path, &str) -> String) -> Option<Nginx> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let port = free_port();
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {path}/{name}; "))
            .collect();
        let answer = r#"location / { default_type application/json; return 200 '{"status":"received"}'; }"#;
        let configuration = format!(
            "daemon off; worker_processes 1; pid {path}/pid; error_log {path}/log;
             events {{ worker_connections 4096; }}
             http {{
                 access_log off; keepalive_requests 1000000000; keepalive_timeout 60s; {paths}
                 server {{
                     listen 0.0.0.0:{port} backlog=4096;
                     location = /status {{ stub_status; }}
                     {answer}
                 }}
                 {}
             }}",
            more(folder.path(), answer)
        );
        let file = folder.path().join("nginx.conf");
        fs::write(&file, configuration).unwrap();
        let search = format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default());
        let child = Command::new("nginx")
            .env("PATH", search)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut nginx = Nginx { child, port, asked: AtomicU64::new(0), folder };
        let start = Instant::now();
        while nginx.try_requests().is_none() {
            let ended = nginx.child.try_wait().unwrap().is_some();
            if ended || start.elapsed() > Duration::from_secs(5) {
                return None;
            }
            thread::sleep(Duration::from_millis(10));
        }
        Some(nginx)
    }

    /// Requests to the TLS server on this port, and how many of them came over a connection whose session was resumed.
    pub fn resumed(&self, port: u16) -> (u64, u64) {
        let log = fs::read_to_string(self.folder.path().join(port.to_string())).unwrap_or_default();
        (log.lines().count() as u64, log.lines().filter(|line| *line == "r").count() as u64)
    }

    /// A URL by one of the addresses 127.0.0.1 to 127.0.255.254.
    pub fn url(&self, host: u16) -> String {
        let [high, low] = (host + 1).to_be_bytes();
        format!("http://127.0.{high}.{low}:{}/", self.port)
    }

    /// Requests so far, but for those that ask this.
    pub fn requests(&self) -> u64 {
        self.try_requests().unwrap()
    }

    fn try_requests(&self) -> Option<u64> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        stream.write_all(b"GET /status HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        // server accepts handled requests, and below it three numbers.
        let numbers = text.lines().skip_while(|line| !line.starts_with("server accepts")).nth(1)?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        Some(numbers.get(2)? - asked)
    }
}

/// A port that was free a moment ago. When another program takes it meanwhile, nginx fails, and there is none.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port()
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        // SIGTERM, so that it takes its worker along.
        if kill(pid, Signal::SIGTERM).is_ok() {
            self.child.wait().unwrap();
        }
    }
}
