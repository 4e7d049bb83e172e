//! nginx as a receiver that keeps connections alive and answers at once, where it is installed.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
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
    _folder: TempDir,
}

impl Nginx {
    /// None where it is not installed, or has no stub_status.
    pub fn start() -> Option<Nginx> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        // Free a moment ago. When another program takes it meanwhile, this fails, and there is no nginx.
        let port = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {path}/{name}; "))
            .collect();
        let configuration = format!(
            "daemon off; worker_processes 1; pid {path}/pid; error_log {path}/log;
             events {{ worker_connections 4096; }}
             http {{
                 access_log off; keepalive_requests 1000000000; keepalive_timeout 60s; {paths}
                 server {{
                     listen 0.0.0.0:{port} backlog=4096;
                     location = /status {{ stub_status; }}
                     location / {{ default_type application/json; return 200 '{{\"status\":\"received\"}}'; }}
                 }}
             }}"
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
        let mut nginx = Nginx { child, port, asked: AtomicU64::new(0), _folder: folder };
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

impl Drop for Nginx {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        // SIGTERM, so that it takes its worker along.
        if kill(pid, Signal::SIGTERM).is_ok() {
            self.child.wait().unwrap();
        }
    }
}
