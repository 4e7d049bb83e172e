//! ureq's agents, one for each endpoint's origin, and how they are set.
//!
//! ureq's pool of idle connections is one list under one lock. So each pool is small, and only calls to the same origin share
//! it.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use ureq::Agent;
use ureq::config::{AutoHeaderValue, Config};
use ureq::unversioned::transport::Connector;

use crate::delivery::egress::Policy;
use crate::delivery::transport::dial::{Dial, Worked};
use crate::delivery::transport::names::Names;
use crate::delivery::transport::recorder::Recorder;
use crate::delivery::transport::repair::HEAD_BYTES_MAX;
use crate::delivery::transport::tls::Tls;
use crate::delivery::transport::tls_sessions::ENDPOINTS_MAX;
use crate::delivery::way_out::WayOut;

/// Idle connections rest for less than Node's Express leaves them open (5 s).
const IDLE_MAX: Duration = Duration::from_secs(3);
/// Idle connections of one endpoint: as many as it may have calls in flight by default.
const IDLE_CONNECTIONS: usize = 32;
/// Endpoints whose connections are kept: as many as have their TLS sessions kept. Beyond it the one that was called longest ago
/// goes.
const AGENTS_MAX: usize = ENDPOINTS_MAX;
/// More than the longest head: ureq must see that it is too long.
const INPUT_BYTES: usize = HEAD_BYTES_MAX + 4 * 1024;
/// Space for a request. A longer request goes out in pieces, but none of its lines does.
pub(crate) const OUTPUT_BYTES: usize = 4 * 1024;

/// The agents of all origins; shared by all threads.
pub(crate) struct Agents {
    config: Config,
    policy: Arc<Policy>,
    way_out: Arc<WayOut>,
    worked: Worked,
    tls: Tls,
    // All threads write it.
    by_origin: Mutex<HashMap<String, Arc<Origin>>>,
    since: Instant,
}

/// The connections to one origin.
pub(crate) struct Origin {
    /// Makes the calls.
    pub agent: Agent,
    /// When a call last began or ended, in milliseconds since the agents were made. The origin's calls write it;
    /// [`Agents`] reads it to close connections that rest.
    used_ms: AtomicU64,
}

impl Agents {
    /// For calls that take `timeout` at most, under this policy and with this configuration of TLS.
    pub(crate) fn new(
        timeout: Duration,
        user_agent_version: &str,
        policy: Arc<Policy>,
        way_out: Arc<WayOut>,
        tls: Arc<ClientConfig>,
    ) -> Agents {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // ureq's own would come from the environment, and would be told names. Ours is in `dial`.
            .proxy(None)
            .user_agent(format!("PromptPal-Webhook@{user_agent_version}"))
            .accept(AutoHeaderValue::None)
            .accept_encoding(AutoHeaderValue::None)
            .timeout_global(Some(timeout))
            .max_response_header_size(HEAD_BYTES_MAX)
            .input_buffer_size(INPUT_BYTES)
            .output_buffer_size(OUTPUT_BYTES)
            .max_idle_age(IDLE_MAX)
            .max_idle_connections(IDLE_CONNECTIONS)
            .max_idle_connections_per_host(IDLE_CONNECTIONS)
            .build();
        Agents {
            config,
            policy,
            way_out,
            worked: Worked::default(),
            tls: Tls::new(tls),
            by_origin: Mutex::default(),
            since: Instant::now(),
        }
    }

    /// The connections to an origin (scheme, host and port).
    pub(crate) fn of(&self, origin: &str) -> Arc<Origin> {
        let now = self.now_ms();
        let mut agents = self.lock();
        if let Some(known) = agents.get(origin) {
            known.used_ms.store(now, Ordering::Relaxed);
            return known.clone();
        }
        if agents.len() >= AGENTS_MAX {
            let used = |origin: &Origin| origin.used_ms.load(Ordering::Relaxed);
            let oldest = agents.iter().min_by_key(|(_, known)| used(known)).map(|(name, _)| name.clone());
            oldest.and_then(|name| agents.remove(&name));
        }
        let new = Arc::new(Origin { agent: self.agent(), used_ms: now.into() });
        agents.insert(origin.to_owned(), new.clone());
        new
    }

    /// Notes that a call to this origin has ended now.
    pub(crate) fn ended(&self, origin: &Origin) {
        origin.used_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Closes the connections that have rested for too long, and forgets TLS sessions whose time is over.
    pub(crate) fn close_resting(&self) {
        self.tls.forget_old_sessions();
        let now = self.now_ms();
        let rest = u64::try_from(IDLE_MAX.as_millis()).expect("some seconds");
        self.close(|origin| now.saturating_sub(origin.used_ms.load(Ordering::Relaxed)) >= rest);
    }

    /// Closes all connections that rest.
    pub(crate) fn close_all(&self) {
        self.close(|_| true);
    }

    /// Interrupts the calls in flight and lets no other begin.
    pub(crate) fn shutdown(&self) {
        let mut agents = self.lock();
        for origin in agents.values() {
            origin.agent.clone().shutdown();
        }
        agents.clear();
    }

    /// Forgets agents, which closes their idle connections. Calls that run keep theirs until they end.
    fn close(&self, which: impl Fn(&Origin) -> bool) {
        let mut agents = self.lock();
        let gone: Vec<_> = agents.extract_if(|_, origin| which(origin)).collect();
        // Closing many takes a while; the others need not wait for it.
        drop(agents);
        drop(gone);
    }

    fn agent(&self) -> Agent {
        let names = Names { policy: self.policy.clone() };
        let (policy, way_out, worked) = (self.policy.clone(), self.way_out.clone(), self.worked.clone());
        let dial = Dial { policy, way_out, worked };
        let chain = ().chain(dial).chain(self.tls.clone()).chain(Recorder);
        Agent::with_parts(self.config.clone(), chain, names)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Origin>>> {
        self.by_origin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Debug for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agents").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::egress::NAME_REFUSED;
    use crate::delivery::egress::tests::policy;
    use crate::delivery::sources::Sources;
    use crate::delivery::transport::exchange;

    #[test]
    fn the_address_that_is_dialled_is_looked_at_whatever_was_before() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let names = Names { policy: Arc::new(policy(&["127.0.0.0/8"])) };
        let way_out = Arc::new(WayOut::new(Sources::default(), None, Duration::from_secs(5)));
        let dial = Dial { policy: Arc::new(policy(&[])), way_out, worked: Worked::default() };
        let chain = ().chain(dial).chain(Recorder);
        let config = Agent::config_builder().timeout_global(Some(Duration::from_secs(5)));
        let agent = Agent::with_parts(config.build(), chain, names);
        let url = format!("http://a.example:{}/", listener.local_addr().expect("bound").port());
        exchange::take();
        assert!(agent.get(url).call().is_err());
        assert_eq!(exchange::take().refused.as_deref(), Some(NAME_REFUSED));
        listener.set_nonblocking(true).expect("an option");
        assert!(listener.accept().is_err(), "nothing was dialled");
    }
}
