//! One POST, from start to end: blocking, and a failure is a value.
//!
//! Owns ureq's agents, one for each endpoint's origin: ureq's pool of idle connections is one list under one lock, so
//! it is kept small and is shared only by those who call the same endpoint. Knows no Postgres and no queue, opens no
//! socket itself and follows no redirect.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use serde::{Serialize, Serializer};
use ureq::config::AutoHeaderValue;
use ureq::http::{HeaderMap, Request, Response, Uri};
use ureq::unversioned::transport::Connector;
use ureq::{Agent, Body};
use url::Url;

use crate::delivery::body::BodyText;
use crate::delivery::machine::Machine;
use crate::delivery::networks::{self};
use crate::delivery::resolver::Resolver;
use crate::delivery::signature;
use crate::delivery::tls::Tls;
use crate::delivery::transport::dial::{Dial, Worked};
use crate::delivery::transport::head::HEAD_BYTES_MAX;
use crate::delivery::transport::recorder::{
    Names, Rules, Seen, Tap, is_localhost, take_seen, watch_body, watch_head,
};
use crate::error::{Result, one_line};
use crate::model::call::Outcome;
use crate::model::call::{Call, ErrorKind, MESSAGE_BYTES_MAX};
use crate::model::database_addresses::Reached;
use crate::model::event::Webhook;
use crate::model::memory::Room;
use crate::model::redact;
use crate::model::text;
use crate::model::text::storable;
use crate::model::text::storable_text;
use crate::tls::handshake;

/// Idle connections rest for less than Node's Express leaves them open (5 s).
const IDLE_MAX: Duration = Duration::from_secs(3);
/// Idle connections of one endpoint.
const IDLE_CONNECTIONS: usize = 32;
/// Endpoints whose connections are kept; beyond it the one that was called longest ago goes.
const AGENTS_MAX: usize = 1024;
/// URLs that are remembered parsed; beyond it all are forgotten.
const TARGETS_MAX: usize = 4096;
/// More than the longest head: ureq must see that it is too long.
const INPUT_BYTES: usize = HEAD_BYTES_MAX + 4 * 1024;
/// All that may come before the body: the head, and interim answers (1xx) before it.
const BEFORE_BODY_MAX: u64 = 4 * HEAD_BYTES_MAX as u64;
/// Room for a request; a longer one goes out in pieces, but none of its lines does.
const OUTPUT_BYTES: usize = 4 * 1024;
/// What a line of the request has besides a long value: its name, or the method and version.
const LINE_BYTES: usize = 64;
/// Wire bytes for each byte of a body. Chunks of one byte take six; an answer that needs more is made to keep us busy.
const FRAMING: u64 = 8;
/// Trailers, and chunks of a body that is shorter than this.
const FRAMING_MIN: u64 = 64 * 1024;
/// Longest URL.
const URL_BYTES_MAX: usize = 8 * 1024;
/// Most bodies of answers that do not say how long they are are shorter than this.
const SHORT: u64 = 512;
/// A longer body is read in pieces of this size.
const PIECE_BYTES: u64 = 16 * 1024;
/// Longest headers of an answer in the log, as JSON; what does not fit is left out.
const HEADERS_BYTES_MAX: usize = HEAD_BYTES_MAX;
/// Longest foreign text in a message.
const QUOTED_BYTES_MAX: usize = 1024;

/// How calls are made; one value for the process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Wall time of a call.
    pub timeout: Duration,
    /// How much of an answer's body is read and kept.
    pub response_body_bytes_max: usize,
    /// Networks that may be called although they are not globally reachable, or this machine's own.
    pub allow_net: Vec<IpNet>,
    /// Refuse `http:`.
    pub https_only: bool,
    /// Trusted besides the system's certificates.
    pub ca_file: Option<PathBuf>,
    /// For `User-Agent: PromptPal-Webhook@{version}`.
    pub user_agent_version: String,
    /// Hosts and ports that are never called: our Postgres.
    pub refused: Vec<(String, u16)>,
    /// Where it was reached: never called either.
    pub reached: Reached,
    /// Where this machine serves the relay's metrics: never called at any of its addresses.
    pub metrics_port: Option<u16>,
}

/// Makes calls; shared by all threads.
pub struct Caller {
    settings: Settings,
    config: ureq::config::Config,
    tls: Tls,
    rules: Arc<Rules>,
    worked: Worked,
    // By origin. Written by all threads.
    agents: Mutex<HashMap<String, Arc<Pooled>>>,
    // By the text that the customer typed. Written by all threads.
    targets: Mutex<HashMap<String, Arc<Target>>>,
    since: Instant,
}

/// The connections to one origin.
struct Pooled {
    agent: Agent,
    /// When a call last began or ended, in milliseconds since the caller was made. Written by its calls, read by
    /// who closes what rests.
    used_ms: AtomicU64,
}

/// A URL that can be called.
struct Target {
    url: Url,
    uri: Uri,
    authorization: Option<String>,
    /// What the customer typed, without user and password.
    shown: String,
}

impl Caller {
    /// Checks the settings and reads the trust store.
    ///
    /// # Errors
    ///
    /// [`Error::Config`](crate::error::Error::Config) for a `--ca-file` that cannot be read, and where the kernel cannot be
    /// asked for this machine's addresses.
    pub fn new(settings: Settings) -> Result<Caller> {
        Caller::with_resolver(settings, Resolver::system())
    }

    /// The same, with names looked up by `names`.
    ///
    /// # Errors
    ///
    /// As [`Caller::new`].
    pub fn with_resolver(settings: Settings, names: Resolver) -> Result<Caller> {
        let tls = Tls::new(settings.ca_file.as_deref())?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(format!("PromptPal-Webhook@{}", settings.user_agent_version))
            .accept(AutoHeaderValue::None)
            .accept_encoding(AutoHeaderValue::None)
            .timeout_global(Some(settings.timeout))
            .max_response_header_size(HEAD_BYTES_MAX)
            .input_buffer_size(INPUT_BYTES)
            .output_buffer_size(OUTPUT_BYTES)
            .max_idle_age(IDLE_MAX)
            .max_idle_connections(IDLE_CONNECTIONS)
            .max_idle_connections_per_host(IDLE_CONNECTIONS)
            .build();
        let rules = Arc::new(Rules {
            allow: settings.allow_net.clone(),
            never: settings.refused.clone(),
            reached: settings.reached.clone(),
            metrics_port: settings.metrics_port,
            machine: Machine::open()?,
            names,
        });
        Ok(Caller {
            settings,
            config,
            tls,
            rules,
            worked: Worked::default(),
            agents: Mutex::default(),
            targets: Mutex::default(),
            since: Instant::now(),
        })
    }

    /// Why a webhook can never be called, as far as that can be told without DNS; none when it may work.
    pub fn problem(&self, webhook: &Webhook) -> Option<String> {
        if let Some(Err(problem)) =
            webhook.signing_secret.as_ref().map(|secret| signature::sign(secret, "", SystemTime::now(), ""))
        {
            return Some(problem.into());
        }
        let target = match self.target(&webhook.url) {
            Ok(target) => target,
            Err(problem) => return Some(problem),
        };
        let addresses: Vec<IpAddr> = match target.url.host()? {
            url::Host::Ipv4(address) => vec![address.into()],
            url::Host::Ipv6(address) => vec![address.into()],
            url::Host::Domain(name) if is_localhost(name) => self.rules.loopback(),
            url::Host::Domain(_) => return None,
        };
        let (port, deadline) = (target.url.port_or_known_default()?, Instant::now() + self.settings.timeout);
        // What the kernel cannot tell now is told at the call.
        let denial = |address| {
            self.rules.problem(address, deadline).or_else(|| self.rules.own(address).unwrap_or_default())
        };
        addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, port))
            .find_map(|address| Some(denial(address)?.message(address)))
    }

    /// One POST. Blocks for the timeout at most. Never panics for anything that an endpoint does, and never errs:
    /// what went wrong is in the call. The answer keeps no more than `room` allows.
    pub fn call(&self, webhook: &Webhook, outbox_id: i64, body: &Arc<str>, room: &mut Room) -> Outcome {
        match self.try_call(webhook, outbox_id, body, room) {
            Outcome::Shortage(_) => {
                // Connections that rest may be what is missing.
                self.close(|_| true);
                self.try_call(webhook, outbox_id, body, room)
            }
            called => called,
        }
    }

    fn try_call(&self, webhook: &Webhook, outbox_id: i64, body: &Arc<str>, room: &mut Room) -> Outcome {
        let target = self.known_target(&webhook.url);
        let shown = target
            .as_ref()
            .map_or_else(|_| redact::without_credentials(&webhook.url), |target| target.shown.clone());
        let mut call = Call::begun(webhook.id, shown, body, ErrorKind::Internal, String::new());
        let made = target
            .map_err(|problem| Failure::of(ErrorKind::BadUrl, problem))
            .and_then(|target| self.make(&target, webhook, outbox_id, &mut call, room));
        match made {
            Ok(()) => call.error_kind = None,
            Err(Failure::Shortage(reason)) => return Outcome::Shortage(reason),
            Err(Failure::Crowded) => return Outcome::Crowded,
            Err(Failure::Call(kind, message)) => {
                (call.error_kind, call.error_message) = (Some(kind), Some(message));
            }
        }
        if let Some(message) = &mut call.error_message {
            text::cut(message, MESSAGE_BYTES_MAX);
        }
        call.end_time = SystemTime::now();
        Outcome::Called(call)
    }

    /// Closes connections that have rested for too long and are not going to be used. To be called every second
    /// or so; without it they stay open until the endpoint is called again.
    pub fn close_resting(&self) {
        let now = self.now_ms();
        let rest = u64::try_from(IDLE_MAX.as_millis()).expect("some seconds");
        self.close(|pooled| now.saturating_sub(pooled.used_ms.load(Ordering::Relaxed)) >= rest);
    }

    /// Forgets agents, which closes their idle connections. Calls that run keep theirs until they end.
    fn close(&self, which: impl Fn(&Pooled) -> bool) {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<_> = agents.extract_if(|_, pooled| which(pooled)).collect();
        // Closing many takes a while; the others need not wait for it.
        drop(agents);
        drop(gone);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Interrupts the calls in flight and lets no other begin.
    pub fn shutdown(&self) {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        for pooled in agents.values() {
            pooled.agent.clone().shutdown();
        }
        agents.clear();
    }

    fn make(
        &self,
        target: &Target,
        webhook: &Webhook,
        outbox_id: i64,
        call: &mut Call,
        room: &mut Room,
    ) -> std::result::Result<(), Failure> {
        let start = Instant::now();
        call.error_message = None;
        let body = call.request_body.clone();
        let request = || request(target, webhook, outbox_id, &body);
        let pooled = self.pooled(&target.url);
        let agent = &pooled.agent;
        let first = request()?;
        let line = longest_line(&first, target);
        watch_head(BEFORE_BODY_MAX);
        let mut result = if line <= OUTPUT_BYTES {
            agent.run(first)
        } else {
            agent.run(agent.configure_request(first).output_buffer_size(line).build())
        };
        let mut seen = take_seen();
        if let Err(error) = &result
            && seen.reused
            && seen.received == 0
            && is_broken(error)
        {
            // The endpoint had closed the connection, and our request crossed that on the way: it has not been
            // looked at. Once more, on a connection of its own.
            let left = self.settings.timeout.saturating_sub(start.elapsed());
            let fresh = agent
                .configure_request(request()?)
                .timeout_global(Some(left))
                // A configuration other than the agent's keeps ureq from taking a pooled connection.
                .output_buffer_size(OUTPUT_BYTES + 1)
                .build();
            watch_head(BEFORE_BODY_MAX);
            result = agent.run(fresh);
            seen = take_seen();
        }
        call.remote_addr = seen.remote.map(|remote| remote.to_string());
        call.request_headers = headers_sent(&seen.head);
        let read = match result {
            Ok(response) => self.read(response, seen, call, room),
            Err(error) => {
                if !seen.start.is_empty() {
                    self.keep(&seen.start, seen.received, call, room);
                }
                if let Some(record) = &seen.record {
                    call.status_code = Some(record.status);
                    let most = HEADERS_BYTES_MAX.min(room.most());
                    call.response_headers = Some(headers_that_fit(|| pairs(&record.headers), most).0);
                }
                Err(self.failure(&error, &seen))
            }
        };
        pooled.used_ms.store(self.now_ms(), Ordering::Relaxed);
        read
    }

    /// Keeps an answer whose head was never complete, or is none: as it came.
    fn keep(&self, start: &[u8], received: u64, call: &mut Call, room: &mut Room) {
        let mut body = BodyText::new(self.settings.response_body_bytes_max, room);
        body.push(start);
        call.response_body = Some(body.end().0);
        call.response_bytes = received;
        call.response_truncated = true;
    }

    /// What the customer typed, as something that can be called.
    fn target(&self, text: &str) -> std::result::Result<Target, String> {
        let bare = text.trim_matches(|c| c <= ' ');
        if bare.is_empty() {
            return Err("the URL is empty".into());
        }
        if text.len() > URL_BYTES_MAX {
            return Err(format!("the URL is longer than {URL_BYTES_MAX} bytes"));
        }
        let mut url = Url::parse(bare).map_err(|error| format!("not a URL: {error}"))?;
        match url.scheme() {
            "https" => {}
            "http" if !self.settings.https_only => {}
            "http" => return Err("http is not allowed here, only https".into()),
            // A user whose scheme was forgotten is one for the parser.
            _ if redact::may_have_password(text) => return Err("the scheme is not http or https".into()),
            other => return Err(format!("the scheme is {}, not http or https", other.escape_default())),
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err("the URL has no host".into());
        }
        if let Some(port) = url.port().filter(|port| networks::is_bad_port(*port)) {
            return Err(format!("port {port} cannot be called: it belongs to another protocol"));
        }
        let authorization = authorization(&url);
        url.set_fragment(None);
        let bare = url.set_username("").and_then(|()| url.set_password(None));
        bare.map_err(|()| "the URL cannot have a user".to_owned())?;
        if url.as_str().len() > URL_BYTES_MAX {
            return Err(format!("the URL is longer than {URL_BYTES_MAX} bytes when it is encoded"));
        }
        // The HTTP client is stricter than what browsers do.
        let uri = Uri::try_from(url.as_str()).map_err(|error| format!("not a URL: {error}"))?;
        Ok(Target { url, uri, authorization, shown: redact::without_credentials(text) })
    }

    /// The same, from memory: parsing takes as long as writing the request.
    fn known_target(&self, text: &str) -> std::result::Result<Arc<Target>, String> {
        let known = self.targets.lock().unwrap_or_else(PoisonError::into_inner).get(text).cloned();
        if let Some(target) = known {
            return Ok(target);
        }
        let target = Arc::new(self.target(text)?);
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if targets.len() >= TARGETS_MAX {
            targets.clear();
        }
        targets.insert(text.to_owned(), target.clone());
        Ok(target)
    }

    /// The connections to the endpoint's origin.
    fn pooled(&self, url: &Url) -> Arc<Pooled> {
        let origin = &url[..url::Position::BeforePath];
        let now = self.now_ms();
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pooled) = agents.get(origin) {
            pooled.used_ms.store(now, Ordering::Relaxed);
            return pooled.clone();
        }
        if agents.len() >= AGENTS_MAX {
            let used = |pooled: &Pooled| pooled.used_ms.load(Ordering::Relaxed);
            let oldest =
                agents.iter().min_by_key(|(_, pooled)| used(pooled)).map(|(origin, _)| origin.clone());
            oldest.and_then(|origin| agents.remove(&origin));
        }
        let rules = &self.rules;
        let chain =
            ().chain(Dial { rules: rules.clone(), worked: self.worked.clone() })
                .chain(self.tls.clone())
                .chain(Tap);
        let agent = Agent::with_parts(self.config.clone(), chain, Names { rules: rules.clone() });
        let pooled = Arc::new(Pooled { agent, used_ms: now.into() });
        agents.insert(origin.to_owned(), pooled.clone());
        pooled
    }

    /// Reads the answer, and decides by its status.
    fn read(
        &self,
        response: Response<Body>,
        before: Seen,
        call: &mut Call,
        room: &mut Room,
    ) -> std::result::Result<(), Failure> {
        let (head, body) = response.into_parts();
        call.status_code = Some(head.status.as_u16());
        let record = before.record;
        let most = HEADERS_BYTES_MAX.min(room.most());
        let (headers, headers_cut) = match &record {
            Some(record) => headers_that_fit(|| pairs(&record.headers), most),
            None => headers_that_fit(|| received(&head.headers), most),
        };
        call.response_headers = Some(headers);
        let limit = self.settings.response_body_bytes_max;
        watch_body(FRAMING * limit as u64 + FRAMING_MIN);
        let mut text = BodyText::new(limit, room);
        let (mut length, end) = read_body(body, limit as u64, &mut text);
        let seen = take_seen();
        if let Some(ureq::Error::Protocol(_)) = end {
            // Bad chunks, and good ones that came with them: ureq gives none of those. Kept as they came.
            let rest = &seen.rest[..seen.rest.len().min((limit + 1).saturating_sub(length as usize))];
            text.push(rest);
            length += rest.len() as u64;
        }
        call.response_bytes = length;
        let (text, cut) = text.end();
        call.response_body = Some(text);
        let flaw = match end {
            Some(ureq::Error::Timeout(_)) => {
                call.response_truncated = true;
                return Err(self.late("the answer did not end"));
            }
            _ if cut => None,
            _ if seen.flooded => {
                Some("the answer is nearly nothing but framing; it was not read to its end".into())
            }
            Some(ureq::Error::Rustls(error)) => {
                Some(format!("the answer broke off: {}", handshake::message(&error)))
            }
            Some(error) => Some(format!("the answer broke off: {error}")),
            // A body that ends with the connection ends for ureq also when the connection breaks.
            None => seen.broken.map(|broken| format!("the answer broke off: {broken}")),
        };
        call.response_truncated =
            cut || headers_cut || flaw.is_some() || record.as_ref().is_some_and(|record| record.lost);
        let bare = (before.bare || seen.bare).then(|| "its chunks end with bare line feeds".to_owned());
        let flaws: Vec<_> = record.map(|record| record.flaws).into_iter().chain(bare).chain(flaw).collect();
        call.error_message = (!flaws.is_empty()).then(|| flaws.join("; ").replace('\0', "\u{FFFD}"));
        if head.status.is_success() {
            return Ok(());
        }
        let mut message = format!("status {}", head.status.as_u16());
        if let Some(location) = head.headers.get("location").filter(|_| head.status.is_redirection()) {
            let mut location = storable(location.as_bytes());
            text::cut(&mut location, QUOTED_BYTES_MAX);
            message.push_str(&format!(", not followed: {location}"));
        }
        if let Some(flaw) = call.error_message.take() {
            message.push_str(&format!("; {flaw}"));
        }
        Err(Failure::of(ErrorKind::HttpStatus, message))
    }

    fn late(&self, what: &str) -> Failure {
        let limit = humantime::format_duration(self.settings.timeout);
        Failure::of(ErrorKind::Timeout, format!("{what} within {limit}"))
    }

    /// Sorts an error of ureq's, by variant and kind.
    fn failure(&self, error: &ureq::Error, seen: &Seen) -> Failure {
        use ureq::Error as E;
        if let Some(problem) = &seen.refused {
            return Failure::of(ErrorKind::BlockedAddress, problem.clone());
        }
        if let Some(shortage) = &seen.shortage {
            return Failure::Shortage(shortage.clone());
        }
        if seen.crowded {
            return Failure::Crowded;
        }
        if seen.flooded {
            let text = format!("more than {BEFORE_BODY_MAX} bytes came, and no answer among them");
            return Failure::of(ErrorKind::Protocol, text);
        }
        match error {
            E::Timeout(ureq::Timeout::Resolve) => self.late("the name was not resolved"),
            E::Timeout(_) if seen.remote.is_none() => self.late("no connection"),
            E::Timeout(_) if seen.handshake => self.late("no end of the TLS handshake"),
            E::Timeout(_) if seen.record.is_some() => self.late("the answer did not end"),
            E::Timeout(_) => self.late("no answer"),
            E::HostNotFound => {
                let reason = seen.unresolved.clone().unwrap_or_else(|| "the name has no address".into());
                Failure::of(ErrorKind::Dns, reason)
            }
            E::Io(e) if seen.handshake => Failure::of(
                ErrorKind::Tls,
                format!("the connection broke in the TLS handshake: {}", one_line(e)),
            ),
            E::Io(e) if seen.received > 0 => Failure::of(
                ErrorKind::Protocol,
                format!("the answer broke off within its head: {}", one_line(e)),
            ),
            E::Io(e) => Failure::of(ErrorKind::Connect, one_line(e)),
            E::Rustls(tls) => Failure::of(ErrorKind::Tls, handshake::message(tls)),
            E::Tls(text) => Failure::of(ErrorKind::Tls, *text),
            E::TlsRequired => Failure::of(ErrorKind::Tls, error.to_string()),
            E::Protocol(e) => Failure::of(ErrorKind::Protocol, e.to_string()),
            E::LargeResponseHeader(_, max) => {
                Failure::of(ErrorKind::Protocol, format!("the answer's headers are longer than {max} bytes"))
            }
            E::Http(e) => Failure::of(ErrorKind::Protocol, e.to_string()),
            E::BadUri(e) => Failure::of(ErrorKind::BadUrl, e.clone()),
            other => Failure::of(ErrorKind::Internal, one_line(other)),
        }
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Why a call failed, or was not made.
enum Failure {
    Call(ErrorKind, String),
    Shortage(String),
    Crowded,
}

impl Failure {
    fn of(kind: ErrorKind, message: impl Into<String>) -> Failure {
        // Foreign text may be in it.
        Failure::Call(kind, message.into().replace('\0', "\u{FFFD}"))
    }
}

fn authorization(url: &Url) -> Option<String> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let plain = |text: &str| percent_decode(text.as_bytes());
    let mut pair = plain(url.username());
    pair.push(b':');
    pair.extend(plain(url.password().unwrap_or_default()));
    Some(format!("Basic {}", STANDARD.encode(pair)))
}

fn percent_decode(text: &[u8]) -> Vec<u8> {
    // The form decoder of the url crate does the same, but for the plus sign.
    let shielded: Vec<u8> =
        text.iter().flat_map(|b| if *b == b'+' { b"%2B".to_vec() } else { vec![*b] }).collect();
    url::form_urlencoded::parse(&[b"v=".as_slice(), &shielded].concat())
        .next()
        .map_or_else(Vec::new, |(_, value)| value.into_owned().into_bytes())
}

fn request<'a>(
    target: &Target,
    webhook: &Webhook,
    outbox_id: i64,
    body: &'a Arc<str>,
) -> std::result::Result<Request<&'a str>, Failure> {
    let mut request = Request::post(target.uri.clone()).header("Content-Type", "application/json");
    if let Some(authorization) = &target.authorization {
        request = request.header("Authorization", authorization);
    }
    if let Some(secret) = &webhook.signing_secret {
        let id = format!("msg_{outbox_id}_{}", webhook.id);
        let signed = signature::sign(secret, &id, SystemTime::now(), body)
            .map_err(|problem| Failure::of(ErrorKind::Internal, problem))?;
        request = request
            .header("webhook-id", signed.id)
            .header("webhook-timestamp", signed.timestamp)
            .header("webhook-signature", signed.signature);
    }
    request.body(&**body).map_err(|error| Failure::of(ErrorKind::BadUrl, error.to_string()))
}

/// Whether the connection ended without a word.
fn is_broken(error: &ureq::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(error, ureq::Error::Io(e) if matches!(
        e.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof
    ))
}

/// Bytes of the longest line that ureq has to write in one piece.
fn longest_line(request: &Request<&str>, target: &Target) -> usize {
    let longest = request.headers().values().map(ureq::http::HeaderValue::len).max().unwrap_or_default();
    longest.max(target.url.as_str().len()) + LINE_BYTES
}

/// Reads one byte more than the limit, to know whether there is more; gives back how many came and how it ended.
fn read_body(body: Body, limit: u64, text: &mut BodyText) -> (u64, Option<ureq::Error>) {
    let most = limit.saturating_add(1);
    let piece = body.content_length().unwrap_or(SHORT).clamp(SHORT, PIECE_BYTES);
    let mut piece = vec![0; usize::try_from(piece).expect("some KiB")];
    let mut reader = body.into_reader().take(most);
    let mut length = 0;
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return (length, None),
            Ok(some) => {
                length += some as u64;
                if !text.push(&piece[..some]) {
                    return (length, None);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (length, Some(ureq::Error::from(error))),
        }
    }
}

/// The headers in a request's head, as JSON. Credentials are left out.
fn headers_sent(head: &[u8]) -> String {
    let end = head.windows(4).position(|end| end == b"\r\n\r\n").unwrap_or(head.len());
    let lines = head[..end].iter().position(|byte| *byte == b'\n').map_or(end, |first| first + 1);
    let sent = pairs(&head[lines..end]);
    headers(sent.filter(|(name, _)| !name.eq_ignore_ascii_case(b"authorization")))
}

fn pairs(lines: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    lines.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let colon = line.iter().position(|byte| *byte == b':')?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    })
}

fn received(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
}

/// The headers of an answer as JSON, and whether something was left out: where all have more than so many bytes, each keeps
/// the beginning of its value, and the last ones are left out.
fn headers_that_fit<'a, I: Iterator<Item = (&'a [u8], &'a [u8])>>(
    all: impl Fn() -> I,
    most: usize,
) -> (String, bool) {
    let json = headers(all());
    if json.len() <= most {
        return (json, false);
    }
    let mut bytes = 2;
    let shorter = all().map(|(name, value)| (name, &value[..value.len().min(QUOTED_BYTES_MAX)]));
    let fits = |pair: &(&'a [u8], &'a [u8])| {
        // As it is alone: more than its share of an array.
        bytes += headers(std::iter::once(*pair)).len();
        bytes <= most
    };
    (headers(shorter.take_while(fits)), true)
}

/// The value of a header, or the values of one that came more than once.
#[derive(Serialize)]
#[serde(untagged)]
enum Values<'a> {
    One(Cow<'a, str>),
    Many(Vec<Cow<'a, str>>),
}

/// A JSON object with lower-case names; a name that came twice has an array.
fn headers<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> String {
    // A list: few are looked through faster than sorted.
    let mut object: Vec<(Cow<str>, Values)> = Vec::with_capacity(16);
    for (name, value) in pairs {
        let (mut name, value) = (storable_text(name), storable_text(value));
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            name.to_mut().make_ascii_lowercase();
        }
        match object.iter_mut().find(|(known, _)| *known == name) {
            None => object.push((name, Values::One(value))),
            Some((_, values)) => match values {
                Values::Many(values) => values.push(value),
                Values::One(first) => *values = Values::Many(vec![std::mem::take(first), value]),
            },
        }
    }
    let mut json = Vec::with_capacity(256);
    let written = serde_json::Serializer::new(&mut json)
        .collect_map(object.iter().map(|(name, values)| (name, values)));
    written.expect("strings have a JSON form");
    String::from_utf8(json).expect("JSON is text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_shown() {
        assert_eq!(redact::without_credentials("https://a:b@example.com/x?y"), "https://example.com/x?y");
        assert_eq!(redact::without_credentials("https://example.com/x"), "https://example.com/x");
        assert_eq!(redact::without_credentials("a:b@"), "(not a URL)");
        assert_eq!(redact::without_credentials("nonsense"), "nonsense");
    }

    #[test]
    fn basic_authentication_is_of_the_decoded_text() {
        let url = Url::parse("https://us%40er:p%2Bw+%C3%A9@example.com/").expect("a URL");
        assert_eq!(authorization(&url), Some(format!("Basic {}", STANDARD.encode("us@er:p+w+é"))));
    }

    #[test]
    fn headers_are_an_object_with_lower_case_names() {
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic c2VjcmV0\r\nX-A: 1\r\nx-a: 2\r\n\r\n{\"b\": 1}";
        assert_eq!(headers_sent(head), r#"{"host":"a","x-a":["1","2"]}"#);
        assert_eq!(headers_sent(b""), "{}");
    }
}
