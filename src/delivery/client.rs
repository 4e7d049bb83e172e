//! One POST, from start to end: blocking, and a failure is a value.
//!
//! Puts the steps of a call together. Knows no Postgres and no queue, opens no socket itself and follows no redirect.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use ureq::http::Request;

use crate::delivery::egress::{Policy, is_localhost};
use crate::delivery::failure::{self, Failure};
use crate::delivery::machine::Machine;
use crate::delivery::proxy::Proxy;
use crate::delivery::resolver::Resolver;
use crate::delivery::response::{self, Limits};
use crate::delivery::sources::{Source, Sources};
use crate::delivery::target::{self, Target, Targets};
use crate::delivery::transport::agents::Agents;
use crate::delivery::transport::dial;
use crate::delivery::transport::exchange::Exchange;
use crate::delivery::way_out::WayOut;
use crate::delivery::{headers, request, signature, tls};
use crate::error::Result;
use crate::model::call::{Call, ErrorKind, MESSAGE_BYTES_MAX, Outcome};
use crate::model::database_addresses::Reached;
use crate::model::event::Webhook;
use crate::model::memory::Room;
use crate::model::message::Message;
use crate::model::{redact, text};

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
    /// A file of certificates that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The addresses of this host that calls leave from.
    pub sources: Sources,
    /// The proxy that all calls go through.
    pub proxy: Option<Proxy>,
    /// For `User-Agent: PromptPal-Webhook@{version}`.
    pub user_agent_version: String,
    /// Hosts and ports of our Postgres, which no call may reach.
    pub refused: Vec<(String, u16)>,
    /// The addresses at which our Postgres was reached. No call may reach these either.
    pub reached: Reached,
    /// The port of the relay's metrics. No call may reach it at any of this machine's addresses.
    pub metrics_port: Option<u16>,
    /// Send a request once more that may have crossed the endpoint's close of a connection that was used again.
    pub second_chance: bool,
}

/// Makes calls; shared by all threads.
pub struct Caller {
    settings: Settings,
    policy: Arc<Policy>,
    way_out: Arc<WayOut>,
    agents: Agents,
    targets: Targets,
}

impl Caller {
    /// Checks the settings and reads the trust store.
    ///
    /// # Errors
    ///
    /// [`Error::Config`](crate::error::Error::Config) for a `--ca-file` that cannot be read, for an address to leave from that is
    /// not this host's, and where the kernel cannot be asked for this machine's addresses.
    pub fn new(settings: Settings) -> Result<Caller> {
        Caller::with_resolver(settings, Resolver::system())
    }

    /// Makes a caller that looks names up by `names`.
    ///
    /// # Errors
    ///
    /// As [`Caller::new`].
    pub fn with_resolver(settings: Settings, names: Resolver) -> Result<Caller> {
        settings.sources.require_own()?;
        let way_out = Arc::new(WayOut::new(settings.sources, settings.proxy.clone(), settings.timeout));
        let tls = tls::config(settings.ca_file.as_deref())?;
        let policy = Arc::new(Policy {
            allow: settings.allow_net.clone(),
            database: settings.refused.clone(),
            reached: settings.reached.clone(),
            metrics_port: settings.metrics_port,
            machine: Machine::open()?,
            names,
        });
        let version = &settings.user_agent_version;
        let agents = Agents::new(settings.timeout, version, policy.clone(), way_out.clone(), tls);
        Ok(Caller { settings, policy, way_out, agents, targets: Targets::default() })
    }

    /// Why a webhook can never be called, as far as that can be told without DNS; none when it may work.
    pub fn problem(&self, webhook: &Webhook) -> Option<String> {
        if let Some(Err(problem)) =
            webhook.signing_secret.as_ref().map(|secret| signature::sign(secret, "", SystemTime::now(), ""))
        {
            return Some(problem.into());
        }
        let target = match target::parse(&webhook.url, self.settings.https_only) {
            Ok(target) => target,
            Err(problem) => return Some(problem),
        };
        let addresses: Vec<IpAddr> = match target.url.host()? {
            url::Host::Ipv4(address) => vec![address.into()],
            url::Host::Ipv6(address) => vec![address.into()],
            url::Host::Domain(name) if is_localhost(name) => self.policy.loopback(),
            url::Host::Domain(_) => return None,
        };
        let (port, deadline) = (target.url.port_or_known_default()?, Instant::now() + self.settings.timeout);
        let nowhere = |address: &IpAddr| self.settings.sources.towards(*address) == Source::Nowhere;
        if self.settings.proxy.is_none() && addresses.iter().all(nowhere) {
            return Some(
                "no call leaves over its family of addresses: --bind-address names the other one".into(),
            );
        }
        // Where the kernel cannot tell now, the call itself tells.
        let denial = |address| {
            self.policy.denial(address, deadline).or_else(|| self.policy.own(address).unwrap_or_default())
        };
        addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, port))
            .find_map(|address| Some(denial(address)?.message(address)))
    }

    /// Makes one POST. Blocks for the timeout at most; a second try after a shortage has what is left of it. Never panics for
    /// anything that an endpoint does, and never errs: the call says what went wrong. The answer keeps no more than `room`
    /// allows.
    pub fn call(&self, webhook: &Webhook, message: &Message, room: &mut Room) -> Outcome {
        let start = Instant::now();
        match self.try_call(webhook, message, room, start) {
            Outcome::ResourceExhausted(_) if start.elapsed() < self.settings.timeout => {
                // Connections that rest may be what is missing.
                self.agents.close_all();
                self.try_call(webhook, message, room, start)
            }
            called => called,
        }
    }

    /// What is wrong with the way out of this host, in words for the operator; none when nothing is, as far as calls have met
    /// it. Calls wait meanwhile.
    pub fn lack(&self) -> Option<String> {
        self.way_out.lack()
    }

    /// Connects to the proxy, if there is one, and says what is wrong with it. Asks it for nothing. Blocks for the timeout of a
    /// call at most.
    pub fn try_proxy(&self) -> Option<std::result::Result<String, String>> {
        let proxy = self.settings.proxy.as_ref()?;
        let deadline = Instant::now() + self.settings.timeout;
        Some(dial::try_proxy(&self.way_out, &self.policy.names, proxy, deadline).map(|()| proxy.to_string()))
    }

    /// Closes connections that have rested for too long. The daemon calls it every second or so; otherwise they stay open until
    /// the endpoint is called again.
    pub fn close_resting(&self) {
        self.agents.close_resting();
    }

    /// Interrupts the calls in flight and lets no other begin.
    pub fn shutdown(&self) {
        self.agents.shutdown();
    }

    /// Makes the POST in what is left of a call that began at `start`.
    fn try_call(&self, webhook: &Webhook, message: &Message, room: &mut Room, start: Instant) -> Outcome {
        let target = self.targets.get(&webhook.url, self.settings.https_only);
        let shown = target
            .as_ref()
            .map_or_else(|_| redact::without_credentials(&webhook.url), |target| target.shown.clone());
        let mut call = Call::begun(webhook.id, shown, &message.body, ErrorKind::Internal, String::new());
        // A second try is of the same call.
        call.start_time -= start.elapsed();
        let mut again = None;
        let made = target.map_err(|problem| Failure::of(ErrorKind::BadUrl, problem)).and_then(|target| {
            let span_id = fastrand::u64(1..);
            let request = || request::build(&target, webhook, message, span_id);
            self.post(&target, request, &mut call, room, start, &mut again)
        });
        match made {
            Ok(()) => call.error_kind = None,
            Err(Failure::ResourceExhausted(reason)) => return Outcome::ResourceExhausted(reason),
            Err(Failure::NoWayOut(reason)) => return Outcome::NoWayOut(reason),
            Err(Failure::RefusalUnclear) => return Outcome::RefusalUnclear,
            Err(Failure::ResolverBusy) => return Outcome::ResolverBusy,
            Err(Failure::Call(kind, message)) => {
                (call.error_kind, call.error_message) = (Some(kind), Some(message));
            }
        }
        if let Some(message) = &mut call.error_message {
            text::cut(message, MESSAGE_BYTES_MAX);
        }
        if let Some(remark) = again {
            call.note(&remark);
        }
        call.end_time = SystemTime::now();
        Outcome::Called(call)
    }

    /// The steps of a call whose URL is good: send the request, and read the answer. `again` says so when the request was sent
    /// once more.
    fn post<'a>(
        &self,
        target: &Target,
        request: impl Fn() -> std::result::Result<Request<&'a str>, Failure>,
        call: &mut Call,
        room: &mut Room,
        start: Instant,
        again: &mut Option<String>,
    ) -> std::result::Result<(), Failure> {
        let timeout = self.settings.timeout;
        let limits = Limits { body_bytes_max: self.settings.response_body_bytes_max, timeout };
        call.error_message = None;
        let origin = self.agents.of(target.origin());

        let mut sent = request::send(&origin.agent, request()?, target, start, timeout);
        keep_sent(&sent.exchange, call);
        if let Some(after) = sent.crossed_a_close().filter(|_| self.settings.second_chance) {
            let left = || timeout.saturating_sub(start.elapsed());
            let mut second = request::send_afresh(&origin.agent, request()?, left());
            if second.lacks_resources() {
                // Connections that rest may be what is missing.
                self.agents.close_all();
                second = request::send_afresh(&origin.agent, request()?, left());
            }
            let how = format!(
                "on a connection that had been used before, which ended {} ms later",
                after.as_millis()
            );
            *again = Some(match second.exchange.begun {
                Some(_) => format!("sent twice: the first time {how}"),
                None => format!("sent {how}; not sent again"),
            });
            keep_sent(&second.exchange, call);
            // A request has gone out. So this call must not come again later, as one does of which nothing was sent.
            if !second.lacks_resources() {
                sent = second;
            }
        }
        let exchange = sent.exchange;
        if exchange.received > 0 {
            self.way_out.note_carried();
        }
        let read = match sent.result {
            Ok(response) => response::read(response, exchange, limits, call, room),
            Err(error) => {
                response::keep_broken(&exchange, limits, call, room);
                Err(failure::sort(&error, &exchange, timeout))
            }
        };
        self.agents.ended(&origin);
        read
    }
}

/// Keeps what was sent and where, if anything was.
fn keep_sent(exchange: &Exchange, call: &mut Call) {
    if let Some(remote) = exchange.remote {
        call.remote_addr = Some(remote.to_string());
    }
    if exchange.begun.is_some() {
        call.request_headers = headers::sent(&exchange.request_head);
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("settings", &self.settings).finish_non_exhaustive()
    }
}
