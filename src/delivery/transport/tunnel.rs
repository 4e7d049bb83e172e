//! Tunnels: a connection to an endpoint that the proxy makes (CONNECT, RFC 9110, section 9.3.6).
//!
//! The proxy is told the very address that the egress policy has allowed, never a name. What the proxy's own failing is, is a
//! lack of ours; what lies beyond it is as the network is without a proxy. An endpoint can cause some answers and a silence, so
//! neither alone says that the proxy is broken. [`refusals`](crate::delivery::refusals) judges the answers, and after a silence
//! the proxy itself is asked. All of it happens on the thread of the call, and within its time.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use httparse::{EMPTY_HEADER, Response, Status};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv, send};

use crate::delivery::bulkhead::Permit;
use crate::delivery::proxy::Proxy;
use crate::delivery::resolver::{Answer as Found, Resolver};
use crate::delivery::transport::deadline::ready;
use crate::delivery::transport::race::{Hurdle, Lost, race};
use crate::delivery::transport::socket::Attempt;
use crate::delivery::way_out::{Part, WayOut};

/// Longest head of a proxy's answer: a proxy that says no more than it must needs a hundred bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Header lines of it.
const HEADERS_MAX: usize = 64;
/// Addresses of the proxy that are tried.
const ADDRESSES_MAX: usize = 16;
/// The header by which Squid tells what its status, 503 for nearly everything, does not: who is at fault.
const SQUID: (&str, &[u8]) = ("x-squid-error", b"ERR_CONNECT_FAIL");

/// Makes tunnels for one call.
pub(super) struct Tunnels<'a, B> {
    pub way_out: &'a WayOut,
    pub proxy: &'a Proxy,
    /// Looks the proxy's name up.
    pub names: &'a Resolver,
    /// Begins a connection to the proxy, and does not wait.
    pub begin: B,
    /// When the time of the call is over.
    pub deadline: Instant,
}

/// A tunnel.
pub(super) struct Tunnel {
    /// The connection to the proxy, on which the endpoint answers from now on.
    pub attempt: Attempt,
    pub endpoint: SocketAddr,
    /// How long the proxy took to connect: a round trip to the endpoint, and one to the proxy.
    pub round_trip: Duration,
}

/// Why there is no tunnel.
pub(super) enum Closed {
    /// The connection to the proxy was not begun for this, or the endpoint's address is refused.
    Hurdle(Hurdle),
    /// The time is over, and the proxy lives.
    Late,
    /// The endpoint cannot be reached, in words.
    Unreachable(String),
    /// The proxy refuses this endpoint, and serves others: whether it is about this one will be known.
    Unclear,
    /// The proxy is broken. The way out has the reason.
    NoWayOut(String),
    /// Lookups of other names left no thread for the proxy's name.
    ResolverBusy,
}

/// What came of asking for a tunnel.
#[derive(Debug, PartialEq)]
enum Answer {
    Open,
    /// The proxy says that it does not reach the endpoint.
    Unreachable(String),
    /// It does something else than to connect: what, in words, and what an operator can do. An endpoint may have caused it.
    Refused(String, &'static str),
    /// There is no way to it, in words: no endpoint can cause this.
    Broken(String),
    /// Nothing came in time.
    Silent,
}

impl<B: Fn(SocketAddr, Permit) -> Result<Attempt, Hurdle>> Tunnels<'_, B> {
    /// Asks for a tunnel to each of these addresses in turn, until one is open. Each has its share of the time that is left.
    /// `check` refuses an address, given those of the proxy.
    pub(super) fn open(
        &self,
        endpoints: &[SocketAddr],
        check: impl Fn(SocketAddr, &[SocketAddr]) -> Result<(), Hurdle>,
    ) -> Result<Tunnel, Closed> {
        let start = Instant::now();
        let proxies = self.addresses(start)?;
        let (mut closed, mut unclear) = (Closed::Late, None);
        for (at, endpoint) in endpoints.iter().enumerate() {
            check(*endpoint, &proxies).map_err(Closed::Hurdle)?;
            let left = self.deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(endpoints.len() - at).expect("at most 16");
            let (answer, tunnel) = self.ask(*endpoint, &proxies, start, Instant::now() + share)?;
            // A connection that is refused is no sign of the proxy's: the network may say so of a host that is gone.
            if !matches!(answer, Answer::Silent | Answer::Broken(_)) {
                self.way_out.note_sign_of_life();
            }
            match (answer, tunnel) {
                (Answer::Broken(why), _) => return Err(self.broken(&why)),
                (Answer::Unreachable(what), _) => closed = Closed::Unreachable(what),
                (Answer::Refused(what, _), _) if self.way_out.note_refused(*endpoint) => {
                    self.way_out.note_works(Part::Proxy);
                    closed = Closed::Unreachable(format!("the proxy {what}, and connects to others"));
                }
                (Answer::Refused(what, advice), _) => unclear = Some((what, advice)),
                (Answer::Open, Some(tunnel)) => {
                    self.way_out.note_opened(*endpoint);
                    return Ok(tunnel);
                }
                (Answer::Open | Answer::Silent, _) => closed = Closed::Late,
            }
        }
        if let Some((what, advice)) = unclear {
            return Err(if self.way_out.serves_others(start, self.deadline) {
                Closed::Unclear
            } else {
                self.broken(&format!("{what}, and lets no other call through; {advice}"))
            });
        }
        if self.way_out.has_sign_since(start) {
            self.way_out.note_works(Part::Proxy);
        } else if start.elapsed() >= self.way_out.fair() {
            return Err(self.broken("does not answer; start it again, or correct --proxy"));
        }
        Err(closed)
    }

    /// Connects to the proxy, and asks it for nothing.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in words.
    pub(super) fn try_proxy(&self) -> Result<(), String> {
        let told = |closed| match closed {
            Closed::NoWayOut(why) | Closed::Hurdle(Hurdle::Exhausted(why)) => why,
            _ => format!("the proxy {} cannot be reached in time; start it, or correct --proxy", self.proxy),
        };
        let proxies = self.addresses(Instant::now()).map_err(told)?;
        match self.connect(&proxies, self.deadline).map_err(told)? {
            Ok(_) => Ok(()),
            Err(Answer::Broken(why)) => Err(format!("the proxy {} {why}", self.proxy)),
            Err(_) => Err(told(Closed::Late)),
        }
    }

    /// The proxy's addresses. `start` is since when the call wants them.
    fn addresses(&self, start: Instant) -> Result<Vec<SocketAddr>, Closed> {
        let proxy = self.proxy;
        let found = proxy
            .host
            .parse::<IpAddr>()
            .map_or_else(|_| self.names.addresses(&proxy.host, self.deadline), Found::of);
        match found {
            Found::Addresses(addresses) => Ok(addresses
                .into_iter()
                .map(|ip| SocketAddr::new(ip, proxy.port))
                .take(ADDRESSES_MAX)
                .collect()),
            Found::ResolverBusy => Err(Closed::ResolverBusy),
            Found::ResourceExhausted(reason) => Err(Closed::Hurdle(Hurdle::Exhausted(reason))),
            Found::Late if start.elapsed() < self.way_out.fair() => Err(Closed::Late),
            Found::Late => {
                Err(self.broken("has no address: its name is not resolved in time; mend the name server"))
            }
            Found::Failed(why) => {
                Err(self.broken(&format!("has no address ({why}); correct --proxy, or the name")))
            }
        }
    }

    /// The proxy is broken: notes it.
    fn broken(&self, why: &str) -> Closed {
        let why = format!("the proxy {} {why}", self.proxy);
        self.way_out.note_lack(Part::Proxy, why.clone());
        Closed::NoWayOut(why)
    }

    /// Asks for a tunnel to one address.
    fn ask(
        &self,
        endpoint: SocketAddr,
        proxies: &[SocketAddr],
        start: Instant,
        until: Instant,
    ) -> Result<(Answer, Option<Tunnel>), Closed> {
        let attempt = match self.connect(proxies, until)? {
            Ok(attempt) => attempt,
            Err(answer) => return Ok((answer, None)),
        };
        let asked = Instant::now();
        let answer = match tell(attempt.stream(), &self.proxy.connect(&endpoint.to_string()), until) {
            Ok(true) => self.listen(attempt.stream(), proxies, start, until),
            Ok(false) => Ok(Answer::Silent),
            Err(error) => Err(error),
        };
        let answer = answer.unwrap_or_else(|error| refused(format!("breaks the connection ({error})")));
        let tunnel = Tunnel { attempt, endpoint, round_trip: asked.elapsed() };
        Ok((answer, Some(tunnel)))
    }

    /// Connects to the proxy; without a connection, what that says of it.
    fn connect(&self, proxies: &[SocketAddr], until: Instant) -> Result<Result<Attempt, Answer>, Closed> {
        let why = match race(proxies, until, &self.begin) {
            Ok(attempt) => return Ok(Ok(attempt)),
            Err(Lost::Late) => return Ok(Err(Answer::Silent)),
            Err(Lost::Hurdle(Hurdle::Failed(error))) => {
                format!("cannot be reached ({error}); start it, or correct --proxy")
            }
            Err(Lost::Hurdle(Hurdle::Nowhere(_))) => {
                "cannot be reached: --bind-address has no address of its family; name one".into()
            }
            Err(Lost::Hurdle(hurdle)) => return Err(Closed::Hurdle(hurdle)),
        };
        Ok(Err(Answer::Broken(why)))
    }

    /// Reads the answer to CONNECT and not a byte behind it: these are the endpoint's. When the proxy is silent for a while, it
    /// is asked for a sign of life.
    fn listen(
        &self,
        stream: &TcpStream,
        proxies: &[SocketAddr],
        start: Instant,
        until: Instant,
    ) -> io::Result<Answer> {
        let ask_at = Instant::now() + self.way_out.fair() / 2;
        let mut head = Vec::new();
        if !ready(stream, PollFlags::POLLIN, until.min(ask_at))? && !self.way_out.has_sign_since(start) {
            self.ask_for_a_sign(proxies, until);
        }
        while ready(stream, PollFlags::POLLIN, until)? {
            let before = head.len();
            head.resize(HEAD_BYTES_MAX, 0);
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
            let came = match recv(stream.as_raw_fd(), &mut head[before..], flags) {
                Err(Errno::EAGAIN | Errno::EINTR) => 0,
                Ok(0) => return Ok(refused("closes the connection without an answer")),
                came => came?,
            };
            head.truncate(before + came);
            let judged = judge(&head);
            let used = judged.as_ref().map_or(came, |(_, length)| length - before);
            // These are there: they were peeked at.
            recv(stream.as_raw_fd(), &mut vec![0; used], MsgFlags::MSG_DONTWAIT)?;
            if let Some((answer, _)) = judged {
                return Ok(answer);
            }
        }
        Ok(Answer::Silent)
    }

    /// Asks the proxy something that concerns no endpoint, on a connection of its own. Any answer, the end of the connection
    /// included, says that it lives. Blocks until then, for the time that is left at most.
    fn ask_for_a_sign(&self, proxies: &[SocketAddr], until: Instant) {
        let Ok(attempt) = race(proxies, until, &self.begin) else { return };
        let stream = attempt.stream();
        let asked = tell(stream, &self.proxy.sign_of_life(), until);
        // A connection that breaks is an answer, too.
        if !matches!(asked, Ok(false)) && ready(stream, PollFlags::POLLIN, until).is_ok_and(|came| came) {
            self.way_out.note_sign_of_life();
        }
    }
}

/// Sends a short text; false when the time is over.
fn tell(stream: &TcpStream, text: &str, until: Instant) -> io::Result<bool> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match send(stream.as_raw_fd(), rest, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Ok(length) => rest = &rest[length..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if ready(stream, PollFlags::POLLOUT, until)? => {}
            Err(Errno::EAGAIN) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// A refusal that an operator can mend at the proxy.
fn refused(what: impl Into<String>) -> Answer {
    Answer::Refused(what.into(), "let it take CONNECT from this host to all addresses and ports")
}

/// What the answer says, and how long its head is; none when more must come.
fn judge(head: &[u8]) -> Option<(Answer, usize)> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut response = Response::new(&mut headers);
    let (status, length) = match response.parse(head) {
        Ok(Status::Complete(length)) => (response.code.unwrap_or_default(), length),
        Ok(Status::Partial) if head.len() < HEAD_BYTES_MAX => return None,
        Ok(Status::Partial) => {
            return Some((refused("answers with a head that does not end"), head.len()));
        }
        Err(_) => return Some((refused("answers with something that is no HTTP"), head.len())),
    };
    let (name, begins) = SQUID;
    let blames = |header: &httparse::Header<'_>| {
        header.name.eq_ignore_ascii_case(name) && header.value.starts_with(begins)
    };
    let answer = match status {
        200..300 => Answer::Open,
        // By their definition these are of what is beyond the proxy (RFC 9110, sections 15.6.3 and 15.6.5).
        502 | 504 => {
            Answer::Unreachable(format!("the proxy does not reach the endpoint: it answers {status}"))
        }
        500..600 if response.headers.iter().any(blames) => {
            Answer::Unreachable(format!("the proxy does not reach the endpoint: it answers {status}"))
        }
        407 => Answer::Refused("answers 407 to CONNECT".into(), "correct user and password in --proxy"),
        _ => refused(format!("answers {status} to CONNECT")),
    };
    Some((answer, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::sources::Sources;

    fn judged(head: &str) -> Answer {
        judge(head.as_bytes()).expect("the head is whole").0
    }

    #[test]
    fn a_proxy_that_cannot_be_reached_gives_no_sign_of_life_to_calls_that_get_no_answer() {
        let timeout = Duration::from_secs(10);
        let start = Instant::now();
        let proxy = Proxy::parse("http://192.0.2.1:3128").expect("a proxy");
        let way_out = WayOut::new(Sources::default(), Some(proxy.clone()), timeout);
        let gone = |_, _| Err(Hurdle::Failed(io::ErrorKind::HostUnreachable.into()));
        let names = Resolver::system();
        let tunnels = Tunnels {
            way_out: &way_out,
            proxy: &proxy,
            names: &names,
            begin: gone,
            deadline: start + timeout,
        };
        let closed = tunnels.open(&[SocketAddr::from(([192, 0, 2, 9], 443))], |_, _| Ok(()));
        assert!(matches!(closed, Err(Closed::NoWayOut(_))));
        assert!(!way_out.has_sign_since(start) && way_out.lack().is_some());
    }

    #[test]
    fn an_answer_is_of_the_proxy_of_the_endpoint_or_of_either() {
        let answer = |status: &str| judged(&format!("HTTP/1.1 {status}\r\nContent-Length: 9\r\n\r\n"));
        assert_eq!(answer("200 Connection established"), Answer::Open);
        assert_eq!(answer("299"), Answer::Open);
        assert!(matches!(answer("502 Bad Gateway"), Answer::Unreachable(_)));
        assert!(matches!(answer("504 Gateway Timeout"), Answer::Unreachable(_)));
        for status in ["100", "101", "302", "400", "403", "407", "429", "500", "501", "503", "505", "999"] {
            assert!(matches!(answer(status), Answer::Refused(what, _) if what.contains(status)), "{status}");
        }
        let squid = |error: &str| judged(&format!("HTTP/1.1 503 No\r\nX-Squid-Error: {error} 111\r\n\r\n"));
        assert!(matches!(squid("ERR_CONNECT_FAIL"), Answer::Unreachable(_)));
        assert!(matches!(squid("ERR_CANNOT_FORWARD"), Answer::Refused(..)));
        assert!(matches!(judged("SSH-2.0-OpenSSH_9.2\r\n"), Answer::Refused(..)));
    }

    #[test]
    fn a_head_is_read_to_its_end_and_no_further_and_never_without_end() {
        let head = b"HTTP/1.0 200 OK\nVia: a\n\nSSH-2.0";
        assert_eq!(judge(head), Some((Answer::Open, head.len() - 7)));
        assert_eq!((0..head.len() - 7).find_map(|length| judge(&head[..length])), None);
        let endless = b"HTTP/1.1 200 ".iter().copied().chain(std::iter::repeat(b'a'));
        let endless: Vec<u8> = endless.take(HEAD_BYTES_MAX).collect();
        assert_eq!(judge(&endless[..HEAD_BYTES_MAX - 1]), None);
        assert!(matches!(judge(&endless), Some((Answer::Refused(..), HEAD_BYTES_MAX))));
        let lines = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert!(matches!(judged(&lines), Answer::Refused(..)));
    }
}
