//! Which TLS session a connection may resume, and until when: the side of rustls of
//! [`tls_sessions`](crate::delivery::transport::tls_sessions).
//!
//! A handshake with a session costs much less than one without it. The server proves by the session that it is the same one, and
//! rustls looks at no certificate again. So three rules say what a session is good for:
//!
//! - Only the endpoint that gave it is offered it: the name that its certificate was verified for, and the port. It is kept in
//!   memory. So another `--ca-file`, another trust store of the system or another way out begin without sessions, because each
//!   needs a restart.
//! - The server's certificate counts as verified for [`VERIFIED_FOR`], and never after its own end. A session that comes out of a
//!   resumed one inherits that time. So a server that is called each second is verified anew after an hour, too. The time stands
//!   still while the machine is suspended.
//! - rustls does not tell how large a session is. It has a ticket and the server's certificates. No ticket is longer than what was
//!   read on the connection that brought it ([`Offer::keep`]), and rustls tells the certificates of a connection.

use std::fmt;
use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConnection, HandshakeKind, NamedGroup};

use crate::delivery::transport::tls_sessions::{Session, Sessions, TICKETS_MAX};
use crate::tls::verifier::valid_until;

/// How long a certificate counts as verified for connections that resume a session: a server whose certificate was replaced
/// (a key was lost) is looked at again within the hour. An hour's calls share the cost of that.
const VERIFIED_FOR: Duration = Duration::from_secs(3600);
/// What a session takes besides its ticket and certificates: a value of rustls, and four small pieces of the heap. These are a
/// secret of 48 bytes at most, counters and lists.
const SESSION_BYTES: usize =
    size_of::<Tls13ClientSessionValue>() + size_of::<Tls12ClientSessionValue>() + 256;
/// What each certificate takes besides its bytes: its place in a list, and what the allocator adds.
const CERTIFICATE_BYTES: usize = size_of::<CertificateDer<'_>>() + 24;

/// The server that a session is resumed with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Endpoint {
    /// The name that its certificate was verified for.
    pub name: ServerName<'static>,
    pub port: u16,
}

/// A session, and the group of the key exchange that the server chose. The next connection offers it first, which saves a round trip
/// where it is not the usual one.
type With<S> = (S, Option<NamedGroup>);
type Kept = Sessions<Endpoint, With<Tls13ClientSessionValue>, With<Tls12ClientSessionValue>>;

/// The sessions of all endpoints. Cheap to clone; all clones are one. All threads read and write it.
#[derive(Clone, Default)]
pub(crate) struct Resumption(Arc<Mutex<Kept>>);

impl Resumption {
    /// What a new connection to this endpoint may resume, and where its new sessions go.
    pub(crate) fn offer(&self, endpoint: Endpoint) -> Arc<Offer> {
        Arc::new(Offer { kept: self.clone(), endpoint, state: Mutex::default() })
    }

    /// Forgets the sessions that may be resumed no longer.
    pub(crate) fn forget_old(&self) {
        self.lock().forget_old(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Resumption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resumption").finish_non_exhaustive()
    }
}

/// The sessions of one connection's endpoint, as rustls sees them.
pub(crate) struct Offer {
    kept: Resumption,
    endpoint: Endpoint,
    // Only the thread that makes the call of the connection reads and writes it.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Until when the session counts as verified that rustls has taken last.
    taken_until: Option<Instant>,
    /// The group of the key exchange, of that session or of this connection.
    group: Option<NamedGroup>,
    /// What is known of the server when the handshake is over.
    server: Option<Server>,
    /// Sessions whose size is not known yet.
    new: Vec<New>,
}

#[derive(Clone, Copy)]
struct Server {
    verified_until: Instant,
    /// What its certificates take in memory: each session has a copy.
    certificates_bytes: usize,
    /// How much of what was read were its certificates: none where a session was resumed.
    certificates_read: usize,
}

enum New {
    Ticket(Tls13ClientSessionValue),
    Session(Tls12ClientSessionValue),
}

impl Offer {
    /// Says that the handshake is over.
    pub(crate) fn handshake_over(&self, connection: &ClientConnection) {
        let certificates = connection.peer_certificates().unwrap_or_default();
        let now = Instant::now();
        // They are not compressed: `delivery::tls` accepts no such certificates.
        let sent: usize = certificates.iter().map(|certificate| certificate.len()).sum();
        let mut state = self.state();
        let (verified_until, certificates_read) = match connection.handshake_kind() {
            Some(HandshakeKind::Resumed) => (state.taken_until.unwrap_or(now), 0),
            _ => (verified_until(certificates.first(), now), sent),
        };
        let certificates_bytes = sent + certificates.len() * CERTIFICATE_BYTES;
        state.server = Some(Server { verified_until, certificates_bytes, certificates_read });
    }

    /// Keeps the sessions that have come, if they are not too large; `read` are the bytes that were read on the connection since
    /// its beginning. Before the handshake is over it keeps none.
    pub(crate) fn keep(&self, read: usize) {
        let mut state = self.state();
        let Some(server) = state.server.filter(|_| !state.new.is_empty()) else { return };
        let (new, group) = (take(&mut state.new), state.group);
        drop(state);
        let others = read.saturating_sub(server.certificates_read);
        let bytes = SESSION_BYTES.saturating_add(server.certificates_bytes).saturating_add(others);
        let verified_until = server.verified_until;
        let mut kept = self.kept.lock();
        for new in new {
            match new {
                New::Ticket(ticket) => {
                    let value = (ticket, group);
                    kept.add_ticket(&self.endpoint, Session { value, bytes, verified_until });
                }
                New::Session(session) => {
                    let value = (session, group);
                    kept.set_session(&self.endpoint, Session { value, bytes, verified_until });
                }
            }
        }
    }

    /// Notes which session is resumed, and gives it to rustls.
    fn resume<S>(&self, session: Session<With<S>>) -> S {
        let mut state = self.state();
        let (value, group) = session.value;
        (state.taken_until, state.group) = (Some(session.verified_until), group);
        value
    }

    /// Takes a session whose size will be known later. A server sends as many as it likes, and each has a copy of its
    /// certificates. So before these are known one is held, and none when they are too large.
    fn hold(&self, session: New) {
        let mut state = self.state();
        let most = match state.server {
            None => 1,
            Some(server) if Kept::fits(SESSION_BYTES + server.certificates_bytes) => TICKETS_MAX,
            Some(_) => return,
        };
        if state.new.len() >= most {
            state.new.remove(0);
        }
        state.new.push(session);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until when a server counts as verified whose certificate has been verified now. A certificate whose end cannot be read is
/// verified each time.
fn verified_until(certificate: Option<&CertificateDer<'_>>, now: Instant) -> Instant {
    let end = certificate.and_then(valid_until);
    let left = end.and_then(|end| end.duration_since(SystemTime::now()).ok()).unwrap_or_default();
    now + left.min(VERIFIED_FOR)
}

impl ClientSessionStore for Offer {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.state().group = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.state().group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.hold(New::Session(session));
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let session = self.kept.lock().session(&self.endpoint, Instant::now())?;
        Some(self.resume(session))
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.kept.lock().remove_session(&self.endpoint);
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.hold(New::Ticket(ticket));
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let ticket = self.kept.lock().take_ticket(&self.endpoint, Instant::now())?;
        Some(self.resume(ticket))
    }
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};

    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::{PrivateKeyDer, UnixTime};
    use rustls::server::ProducesTickets;
    use rustls::{ClientConfig, ServerConfig, ServerConnection, client};

    use super::*;
    use crate::delivery::transport::tls_sessions::ENDPOINT_BYTES;
    use crate::tls::verifier::{Demands, client_config, provider};

    /// Trusts all: what is demanded is tried elsewhere.
    #[derive(Debug)]
    struct All;

    impl Demands for All {
        fn check(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: UnixTime,
        ) -> Result<(), rustls::Error> {
            Ok(())
        }
    }

    /// Makes tickets that are so many bytes too long.
    #[derive(Debug)]
    struct Long(usize);

    impl ProducesTickets for Long {
        fn enabled(&self) -> bool {
            true
        }

        fn lifetime(&self) -> u32 {
            3600
        }

        fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
            Some([plain, &vec![7; self.0]].concat())
        }

        fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
            Some(ticket[..ticket.len() - self.0].to_vec())
        }
    }

    fn certificate(until: SystemTime) -> (CertificateDer<'static>, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(["a.example".to_owned()]).expect("a name");
        params.not_after = until.into();
        (params.self_signed(&key).expect("a certificate").der().clone(), key)
    }

    fn server(
        ticket: usize,
        between: usize,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> ServerConfig {
        let (certificate, key) = certificate(SystemTime::now() + 10 * VERIFIED_FOR);
        let chain = vec![certificate, CertificateDer::from(vec![7; between])];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate");
        config.ticketer = Arc::new(Long(ticket));
        config.send_tls13_tickets = 1;
        config
    }

    /// One end's view of what the other end has sent.
    struct Pipe<'a>(&'a mut Vec<u8>, usize);

    impl Read for Pipe<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            // As much as comes at a time over a network.
            let length = buffer.len().min(self.0.len()).min(1400);
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0.drain(..length);
            self.1 += length;
            Ok(length)
        }
    }

    /// Makes a connection, and reads what comes behind the handshake. Returns how it was made.
    fn connect(resumption: &Resumption, client: &ClientConfig, server: &Arc<ServerConfig>) -> HandshakeKind {
        let name = ServerName::try_from("a.example").expect("a name");
        let offer = resumption.offer(endpoint());
        let mut config = client.clone();
        config.resumption = client::Resumption::store(offer.clone());
        let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut server = ServerConnection::new(server.clone()).expect("a server");
        let (mut there, mut back, mut read) = (Vec::new(), Vec::new(), 0);
        server.writer().write_all(b"an answer").expect("it is buffered");
        let mut is_over = false;
        for _ in 0..400 {
            while client.wants_write() {
                client.write_tls(&mut there).expect("memory");
            }
            while !there.is_empty() {
                server.read_tls(&mut Pipe(&mut there, 0)).expect("memory");
                server.process_new_packets().expect("a good client");
            }
            while server.wants_write() {
                server.write_tls(&mut back).expect("memory");
            }
            let mut pipe = Pipe(&mut back, 0);
            client.read_tls(&mut pipe).expect("memory");
            read += pipe.1;
            client.process_new_packets().expect("a good server");
            client.reader().read_to_end(&mut Vec::new()).ok();
            if !is_over {
                offer.keep(read);
                assert!(client.is_handshaking() || offer.state().server.is_none());
            }
            if !client.is_handshaking() {
                if !is_over {
                    offer.handshake_over(&client);
                    is_over = true;
                }
                offer.keep(read);
            }
        }
        client.handshake_kind().expect("the handshake is over")
    }

    fn endpoint() -> Endpoint {
        Endpoint { name: ServerName::try_from("a.example").expect("a name"), port: 443 }
    }

    fn client() -> ClientConfig {
        client_config(All).with_no_client_auth()
    }

    #[test]
    fn a_certificate_counts_as_verified_for_an_hour_and_no_longer_than_it_is_valid() {
        let now = Instant::now();
        let of = |until: SystemTime| verified_until(Some(&certificate(until).0), now).duration_since(now);
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        assert_eq!(of(SystemTime::now() + minutes(600)), VERIFIED_FOR);
        let short = of(SystemTime::now() + minutes(10));
        assert!(minutes(9) < short && short <= minutes(10), "{short:?}");
        assert_eq!(of(SystemTime::now() - minutes(10)), Duration::ZERO);
        assert_eq!(verified_until(Some(&CertificateDer::from(vec![7; 100])), now), now);
        assert_eq!(verified_until(None, now), now);
    }

    #[test]
    fn a_session_that_comes_out_of_a_resumed_one_is_good_for_no_longer() {
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let (resumption, client, server) =
                (Resumption::default(), client(), Arc::new(server(0, 10, &[version])));
            assert_eq!(connect(&resumption, &client, &server), HandshakeKind::Full);
            let soon = Instant::now() + Duration::from_secs(30);
            let newest = || {
                let (mut kept, now) = (resumption.lock(), Instant::now());
                let ticket = kept.take_ticket(&endpoint(), now).map(|ticket| ticket.verified_until);
                ticket.or_else(|| kept.session(&endpoint(), now).map(|session| session.verified_until))
            };
            {
                let (mut kept, now) = (resumption.lock(), Instant::now());
                if let Some(ticket) = kept.take_ticket(&endpoint(), now) {
                    while kept.take_ticket(&endpoint(), now).is_some() {}
                    kept.add_ticket(&endpoint(), Session { verified_until: soon, ..ticket });
                }
                if let Some(session) = kept.session(&endpoint(), now) {
                    kept.set_session(&endpoint(), Session { verified_until: soon, ..session });
                }
            }
            assert_eq!(connect(&resumption, &client, &server), HandshakeKind::Resumed);
            assert_eq!(newest(), Some(soon), "{version:?}");
        }
    }

    #[test]
    fn a_session_is_counted_with_its_ticket_and_its_certificates_and_a_large_one_is_not_kept() {
        let client = client();
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            for (ticket, between) in [
                (0, 10),
                (3_000, 10),
                (10, 3_000),
                (3_000, 1_000),
                (ENDPOINT_BYTES, 10),
                (60_000, 10),
                (10, 60_000),
            ] {
                let (resumption, server) =
                    (Resumption::default(), Arc::new(server(ticket, between, &[version])));
                // The second one is resumed, if the first one left a session.
                for _ in 0..2 {
                    connect(&resumption, &client, &server);
                    let (mut kept, now) = (resumption.lock(), Instant::now());
                    let found = kept.take_ticket(&endpoint(), now).map(|ticket| ticket.bytes);
                    let found = found.or_else(|| kept.session(&endpoint(), now).map(|session| session.bytes));
                    let (is, may_be) = (found.unwrap_or_default(), ticket + between <= 2 * 3_000);
                    assert_eq!(found.is_some(), may_be, "{version:?} {ticket} {between}: {is}");
                    assert!(!may_be || is >= ticket + between, "{version:?} {ticket} {between}: {is}");
                }
            }
        }
    }

    #[test]
    fn before_the_certificates_are_known_one_session_is_held() {
        let (resumption, client) = (Resumption::default(), client());
        let tls12 = Arc::new(server(0, 10, &[&rustls::version::TLS12]));
        connect(&resumption, &client, &tls12);
        let session = resumption.lock().session(&endpoint(), Instant::now()).expect("it was kept").value.0;
        let offer = resumption.offer(endpoint());
        let held = |certificates_bytes: Option<usize>| {
            let verified_until = Instant::now() + VERIFIED_FOR;
            offer.state().server = certificates_bytes.map(|certificates_bytes| Server {
                verified_until,
                certificates_bytes,
                certificates_read: 0,
            });
            offer.state().new.clear();
            for _ in 0..100 {
                offer.hold(New::Session(session.clone()));
            }
            offer.state().new.len()
        };
        assert_eq!(held(None), 1);
        assert_eq!(held(Some(1_000)), TICKETS_MAX);
        assert_eq!(held(Some(ENDPOINT_BYTES)), 0);
    }
}
