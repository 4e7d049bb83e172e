//! One POST, from start to end: blocking, and a failure is a value.
//!
//! Owns ureq's agents, one for each endpoint's origin: ureq's pool of idle connections is one list under one lock, so
//! it is kept small and is shared only by those who call the same endpoint. Knows no Postgres and no queue.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use serde_json::{Map, Value};
use ureq::config::AutoHeaderValue;
use ureq::http::{HeaderMap, Request, Response};
use ureq::tls::{RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::transport::{Connector, RustlsConnector};
use ureq::{Agent, Body};
use url::Url;

use crate::call::{Call, ErrorKind, storable};
use crate::error::{Error, Result, one_line};
use crate::event::Webhook;
use crate::resolver::Resolver;
use crate::signature;
use crate::wire::{Dial, Names, Seen, SharedTls, Tap, is_shortage, take_seen};

/// Idle connections rest for less than Node's Express leaves them open (5 s).
const IDLE_MAX: Duration = Duration::from_secs(3);
/// Idle connections of one endpoint.
const IDLE_CONNECTIONS: usize = 32;
/// Endpoints whose connections are kept; beyond it the one that was called longest ago goes.
const AGENTS_MAX: usize = 1024;
/// Longest head of an answer; what Node takes, too.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// More than the longest head: ureq must see that it is too long.
const INPUT_BYTES: usize = HEAD_BYTES_MAX + 4 * 1024;
/// Room for a request; a longer one goes out in pieces.
const OUTPUT_BYTES: usize = 4 * 1024;
/// Longest URL.
const URL_BYTES_MAX: usize = 8 * 1024;
/// How much of an answer is read at once.
const CHUNK: usize = 8 * 1024;

/// How calls are made; one value for the process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Wall time of a call.
    pub timeout: Duration,
    /// How much of an answer's body is read and kept.
    pub response_body_bytes_max: usize,
    /// Networks that may be called although they are not globally reachable.
    pub allow_net: Vec<IpNet>,
    /// Refuse `http:`.
    pub https_only: bool,
    /// Trusted besides the system's certificates.
    pub ca_file: Option<PathBuf>,
    /// For `User-Agent: PromptPal-Webhook@{version}`.
    pub user_agent_version: String,
    /// Hosts and ports that are never called: our Postgres.
    pub refused: Vec<(String, u16)>,
}

/// What came of a call.
#[derive(Debug)]
pub enum Outcome {
    /// The call was made, or failed for a reason of the endpoint's.
    Called(Call),
    /// It was not made for a shortage of ours (file descriptors, memory, ports): nothing was sent, try again later.
    Shortage(String),
}

/// Makes calls; shared by all threads.
pub struct Caller {
    settings: Settings,
    config: ureq::config::Config,
    names: Resolver,
    tls: SharedTls,
    never: Vec<SocketAddr>,
    // By origin, each with when it was last used. Written by all threads.
    agents: Mutex<HashMap<String, (Agent, Instant)>>,
}

/// A URL that can be called.
struct Target {
    url: Url,
    authorization: Option<String>,
}

impl Caller {
    /// Checks the settings and reads the trust store.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a `--ca-file` that cannot be read.
    pub fn new(settings: Settings) -> Result<Caller> {
        Caller::with_resolver(settings, Resolver::system())
    }

    /// The same, with names looked up by `names`.
    ///
    /// # Errors
    ///
    /// As [`Caller::new`].
    pub fn with_resolver(settings: Settings, names: Resolver) -> Result<Caller> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(trusted(&settings)?)))
            .unversioned_rustls_crypto_provider(provider)
            .build();
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
            .no_delay(true)
            .tls_config(tls)
            .build();
        // Looked up once: the address that we are connected to does not change without a restart of ours mattering.
        let never = settings
            .refused
            .iter()
            .filter_map(|(host, port)| (host.as_str(), *port).to_socket_addrs().ok())
            .flatten()
            .collect();
        Ok(Caller {
            settings,
            config,
            names,
            tls: SharedTls(Arc::new(RustlsConnector::default())),
            never,
            agents: Mutex::default(),
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
        let address = match target.url.host()? {
            url::Host::Ipv4(address) => address.into(),
            url::Host::Ipv6(address) => address.into(),
            url::Host::Domain(_) => return None,
        };
        crate::address::problem(address, &self.settings.allow_net)
            .map(|why| format!("{address} may not be called: {why}"))
    }

    /// One POST. Blocks for the timeout at most. Never panics for anything that an endpoint does, and never errs:
    /// what went wrong is in the call.
    pub fn call(&self, webhook: &Webhook, outbox_id: i64, body: &Arc<str>) -> Outcome {
        let mut call = Call::unanswered(webhook, body, ErrorKind::Internal, "not made");
        match self.make(webhook, outbox_id, body, &mut call) {
            Ok(()) => (call.error_kind, call.error_message) = (None, call.error_message.take()),
            Err(Failure { kind: None, message }) => return Outcome::Shortage(message),
            Err(Failure { kind, message }) => (call.error_kind, call.error_message) = (kind, Some(message)),
        }
        call.end_time = SystemTime::now();
        Outcome::Called(call)
    }

    /// Interrupts the calls in flight and lets no other begin.
    pub fn shutdown(&self) {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        for (agent, _) in agents.values() {
            agent.clone().shutdown();
        }
        agents.clear();
    }

    fn make(
        &self,
        webhook: &Webhook,
        outbox_id: i64,
        body: &Arc<str>,
        call: &mut Call,
    ) -> std::result::Result<(), Failure> {
        let start = Instant::now();
        call.error_message = None;
        let target = self.target(&webhook.url).map_err(|problem| Failure::of(ErrorKind::BadUrl, problem))?;
        let request = request(&target, webhook, outbox_id, body)?;
        let agent = self.agent(&target.url);
        take_seen();
        let mut result = agent.run(request.clone());
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
                .configure_request(request)
                .timeout_global(Some(left))
                // A configuration other than the agent's keeps ureq from taking a pooled connection.
                .output_buffer_size(OUTPUT_BYTES + 1)
                .build();
            result = agent.run(fresh);
            seen = take_seen();
        }
        call.remote_addr = seen.remote.map(|remote| remote.to_string());
        call.request_headers = headers_sent(&seen.head);
        let response = result.map_err(|error| self.failure(&error, &seen))?;
        self.read(response, call)
    }

    /// What the customer typed, as something that can be called.
    fn target(&self, text: &str) -> std::result::Result<Target, String> {
        if text.trim().is_empty() {
            return Err("the URL is empty".into());
        }
        if text.len() > URL_BYTES_MAX {
            return Err(format!("the URL is longer than {URL_BYTES_MAX} bytes"));
        }
        let mut url = Url::parse(text.trim()).map_err(|error| format!("not a URL: {error}"))?;
        match url.scheme() {
            "https" => {}
            "http" if !self.settings.https_only => {}
            "http" => return Err("http is not allowed here, only https".into()),
            other => return Err(format!("the scheme is {}, not http or https", other.escape_default())),
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err("the URL has no host".into());
        }
        if url.port() == Some(0) {
            return Err("port 0 cannot be called".into());
        }
        let authorization = authorization(&url);
        url.set_fragment(None);
        let bare = url.set_username("").and_then(|()| url.set_password(None));
        bare.map_err(|()| "the URL cannot have a user".to_owned())?;
        Ok(Target { url, authorization })
    }

    /// The agent for the endpoint's origin.
    fn agent(&self, url: &Url) -> Agent {
        let origin = &url[..url::Position::BeforePath];
        let now = Instant::now();
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((agent, used)) = agents.get_mut(origin) {
            *used = now;
            return agent.clone();
        }
        if agents.len() >= AGENTS_MAX {
            let oldest = agents.iter().min_by_key(|(_, (_, used))| *used).map(|(origin, _)| origin.clone());
            oldest.and_then(|origin| agents.remove(&origin));
        }
        let dial = Dial { allow: self.settings.allow_net.clone(), never: self.never.clone() };
        let chain = ().chain(dial).chain(self.tls.clone()).chain(Tap);
        let agent = Agent::with_parts(self.config.clone(), chain, Names(self.names.clone()));
        agents.insert(origin.to_owned(), (agent.clone(), now));
        agent
    }

    /// Reads the answer, and decides by its status.
    fn read(&self, response: Response<Body>, call: &mut Call) -> std::result::Result<(), Failure> {
        let (head, body) = response.into_parts();
        call.status_code = Some(head.status.as_u16());
        call.response_headers = Some(headers_received(&head.headers));
        let (bytes, end) = read_body(body, self.settings.response_body_bytes_max);
        call.response_bytes = bytes.len() as u64;
        let cut = bytes.len() > self.settings.response_body_bytes_max;
        call.response_body = Some(storable(&bytes[..bytes.len().min(self.settings.response_body_bytes_max)]));
        call.response_truncated = cut || end.is_some();
        match end {
            Some(error) if is_late(&error) => return Err(self.late("the answer did not end")),
            Some(error) => call.error_message = Some(format!("the answer broke off: {error}")),
            None => {}
        }
        if head.status.is_success() {
            return Ok(());
        }
        let mut message = format!("status {}", head.status.as_u16());
        if let Some(location) = head.headers.get("location").filter(|_| head.status.is_redirection()) {
            message.push_str(&format!(", not followed: {}", storable(location.as_bytes())));
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
        let shortage = |e: &io::Error| is_shortage(e) && seen.head.is_empty();
        match error {
            E::Timeout(ureq::Timeout::Resolve) => self.late("the name was not resolved"),
            E::Timeout(_) if seen.remote.is_none() => self.late("no connection"),
            E::Timeout(_) => self.late("no answer"),
            E::HostNotFound => {
                let reason = seen.unresolved.clone().unwrap_or_else(|| "the name has no address".into());
                Failure::of(ErrorKind::Dns, reason)
            }
            E::Io(e) if shortage(e) => Failure { kind: None, message: e.to_string() },
            E::Io(e) => match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(tls) => Failure::of(ErrorKind::Tls, tls_message(tls)),
                None if e.kind() == io::ErrorKind::TimedOut => self.late("no answer"),
                None => Failure::of(ErrorKind::Connect, one_line(e)),
            },
            E::Rustls(tls) => Failure::of(ErrorKind::Tls, tls_message(tls)),
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

/// Why a call failed; without a kind it is our own shortage.
struct Failure {
    kind: Option<ErrorKind>,
    message: String,
}

impl Failure {
    fn of(kind: ErrorKind, message: impl Into<String>) -> Failure {
        // Foreign text may be in it.
        let message = message.into().replace('\0', "\u{FFFD}");
        Failure { kind: Some(kind), message }
    }
}

/// A URL as it may be shown and stored: without user and password. A text that is no URL to call is given as it is,
/// unless it may have a password in it.
pub fn without_credentials(text: &str) -> String {
    match Url::parse(text.trim()) {
        Ok(mut url) if url.has_host() => {
            if url.username().is_empty() && url.password().is_none() {
                return storable(text.as_bytes());
            }
            // Cannot fail where there is a host.
            let bare = url.set_username("").and_then(|()| url.set_password(None));
            bare.map_or_else(|()| String::new(), |()| storable(url.as_str().as_bytes()))
        }
        _ if text.contains('@') => "(not a URL)".into(),
        _ => storable(text.as_bytes()),
    }
}

/// The system's certificates and those of `--ca-file`.
fn trusted(settings: &Settings) -> Result<Vec<ureq::tls::Certificate<'static>>> {
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "a certificate of the system's cannot be read");
    }
    let mut certificates: Vec<_> =
        system.certs.iter().map(|der| ureq::tls::Certificate::from_der(der).to_owned()).collect();
    if let Some(path) = &settings.ca_file {
        let config = |why: &str| {
            Error::Config(format!("--ca-file {}: {why}; give a file of PEM certificates", path.display()))
        };
        let pem = std::fs::read(path).map_err(|error| config(&error.to_string()))?;
        let before = certificates.len();
        for item in parse_pem(&pem) {
            if let ureq::tls::PemItem::Certificate(certificate) =
                item.map_err(|error| config(&error.to_string()))?
            {
                certificates.push(certificate);
            }
        }
        if certificates.len() == before {
            return Err(config("no certificate in it"));
        }
    }
    if certificates.is_empty() {
        tracing::warn!(
            "no trusted certificates on this system (package ca-certificates): https calls will fail"
        );
    }
    Ok(certificates)
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
    let mut request = Request::post(target.url.as_str()).header("Content-Type", "application/json");
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

fn is_late(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Timeout(_))
        || matches!(error, ureq::Error::Io(e) if e.kind() == io::ErrorKind::TimedOut)
}

/// Reads one byte more than the limit, to know whether there is more; gives back what came and how it ended.
fn read_body(body: Body, limit: usize) -> (Vec<u8>, Option<ureq::Error>) {
    let mut reader = body.into_reader().take(limit as u64 + 1);
    let mut bytes = Vec::new();
    let mut chunk = [0; CHUNK];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return (bytes, None),
            Ok(length) => bytes.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (bytes, Some(error.into())),
        }
    }
}

/// The headers in a request's head, as JSON. Credentials are left out.
fn headers_sent(head: &[u8]) -> String {
    let end = head.windows(4).position(|end| end == b"\r\n\r\n").unwrap_or(head.len());
    let lines = head[..end].split(|byte| *byte == b'\n').skip(1);
    headers(lines.filter_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        (!name.eq_ignore_ascii_case(b"authorization")).then_some((name, value.trim_ascii()))
    }))
}

fn headers_received(received: &HeaderMap) -> String {
    headers(received.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())))
}

/// A JSON object with lower-case names; a name that came twice has an array.
fn headers<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> String {
    let mut object = Map::new();
    for (name, value) in pairs {
        let value = Value::String(storable(value));
        match object.entry(storable(&name.to_ascii_lowercase())) {
            serde_json::map::Entry::Vacant(free) => drop(free.insert(value)),
            serde_json::map::Entry::Occupied(mut taken) => match taken.get_mut() {
                Value::Array(values) => values.push(value),
                first => *first = Value::Array(vec![first.take(), value]),
            },
        }
    }
    Value::Object(object).to_string()
}

/// What is wrong with the certificate or the handshake, for people.
fn tls_message(error: &rustls::Error) -> String {
    use rustls::{CertificateError as C, Error as E};
    match error {
        E::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => "the certificate has expired".into(),
        E::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
            "the certificate is not valid yet".into()
        }
        E::InvalidCertificate(C::UnknownIssuer) => {
            "the certificate is self-signed or of an authority that is not trusted".into()
        }
        E::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
            format!("the certificate is for another name ({error})")
        }
        E::PeerIncompatible(_) | E::AlertReceived(rustls::AlertDescription::ProtocolVersion) => {
            format!("no common TLS version or cipher, 1.2 or newer is needed ({error})")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_shown() {
        assert_eq!(without_credentials("https://a:b@example.com/x?y"), "https://example.com/x?y");
        assert_eq!(without_credentials("https://example.com/x"), "https://example.com/x");
        assert_eq!(without_credentials("a:b@"), "(not a URL)");
        assert_eq!(without_credentials("nonsense"), "nonsense");
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
