//! Reads HTTP/1.1 messages from a socket, as a receiver sees a call and as a client sees the answer to a scrape.
//!
//! The reader takes what the relay sends: a body has a Content-Length, or ends with the connection. It knows no chunks.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest line of a head: longer than the longest URL that the relay calls, and than any header that it sends.
const LINE_MAX: u64 = 64 * 1024;
/// How long an answer may take; long, because the machine may be busy with other tests.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A request or an answer as it came over the wire.
#[derive(Clone, Debug)]
pub struct Message {
    /// The request line or the status line, without its end.
    pub line: String,
    /// Names and values in the order and the spelling of the sender; values without white space around them.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// When the last byte of it was read.
    pub at: Instant,
}

impl Message {
    /// Reads a request; none when the connection ends before the request does.
    ///
    /// # Panics
    ///
    /// When what comes is no HTTP.
    pub fn request(reader: &mut impl BufRead) -> Option<Message> {
        match read(reader, |_| Ok(Vec::new())) {
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                panic!("a request that is no HTTP: {error}")
            }
            message => message.ok(),
        }
    }

    /// Reads an answer.
    ///
    /// # Errors
    ///
    /// When the connection ends before the answer does, or what comes is no HTTP.
    pub fn answer(reader: &mut impl BufRead) -> Result<Message> {
        read(reader, |reader| {
            let mut body = Vec::new();
            reader.read_to_end(&mut body).map(|_| body)
        })
    }

    /// The first header of this name, in any spelling.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The target of a request.
    ///
    /// # Panics
    ///
    /// When the request line has none.
    pub fn path(&self) -> &str {
        self.line.split(' ').nth(1).expect("a request line has a target")
    }

    /// The status of an answer.
    ///
    /// # Panics
    ///
    /// When the status line has none.
    pub fn status(&self) -> u16 {
        let status = self.line.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.unwrap_or_else(|| panic!("no status line: {:?}", self.line))
    }

    /// The body as text.
    ///
    /// # Panics
    ///
    /// When it is not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is UTF-8")
    }

    /// The body as JSON.
    ///
    /// # Panics
    ///
    /// When it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}

/// Makes a GET to a port of 127.0.0.1; status and body of the answer.
///
/// # Panics
///
/// When the answer does not come whole, or is no text.
pub fn get(port: u16, path: &str) -> (u16, String) {
    let answer = ask(port, path, &[]).unwrap_or_else(|error| panic!("GET {path} on port {port}: {error}"));
    (answer.status(), answer.text().to_owned())
}

/// Makes a GET with these headers to a port of 127.0.0.1; the whole answer.
///
/// # Errors
///
/// When the server cannot be reached, or the answer does not come whole.
pub fn ask(port: u16, path: &str, headers: &[(&str, &str)]) -> Result<Message> {
    // The reader knows no chunks, and HTTP/1.0 has none.
    let mut request = format!("GET {path} HTTP/1.0\r\nHost: a\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    write!(stream, "{request}\r\n")?;
    Message::answer(&mut BufReader::new(stream))
}

/// Reads a message; `rest` reads the body where no Content-Length says how long it is.
fn read<R: BufRead>(reader: &mut R, rest: impl FnOnce(&mut R) -> Result<Vec<u8>>) -> Result<Message> {
    let first = line(reader)?;
    let mut headers = Vec::new();
    loop {
        let line = line(reader)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| no_http(&line))?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let body = match length {
        Some((_, length)) => {
            let mut body = vec![0; length.parse().map_err(|_| no_http(length))?];
            reader.read_exact(&mut body)?;
            body
        }
        None => rest(reader)?,
    };
    Ok(Message { line: first, headers, body, at: Instant::now() })
}

/// A line without its end.
fn line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    reader.take(LINE_MAX).read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.strip_suffix('\r').unwrap_or(line).to_owned()),
        None if line.len() as u64 == LINE_MAX => Err(no_http("a line without end")),
        None => Err(ErrorKind::UnexpectedEof.into()),
    }
}

fn no_http(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what.to_owned())
}
