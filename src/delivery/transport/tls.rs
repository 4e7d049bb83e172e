//! The link in ureq's chain that encrypts. Opens no socket, and trusts what its configuration trusts.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned, client};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
    time,
};

use crate::delivery::failure::NO_NAME;
use crate::delivery::transport::deadline::left;
use crate::delivery::transport::exchange::note;
use crate::delivery::transport::resumption::{Endpoint, Offer, Resumption};

/// The port of a URL without one.
const HTTPS: u16 = 443;

/// The link. One for all connections: its configuration holds the trust store.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    resumption: Resumption,
}

impl Tls {
    /// Trusts what this configuration trusts, and keeps sessions itself.
    pub(crate) fn new(config: Arc<ClientConfig>) -> Tls {
        Tls { config, resumption: Resumption::default() }
    }

    /// Forgets the sessions that may be resumed no longer.
    pub(crate) fn forget_old_sessions(&self) {
        self.resumption.forget_old();
    }
}

impl<In: Transport> Connector<In> for Tls {
    type Out = Either<In, Encrypted>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<In>,
    ) -> std::result::Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or_default();
        let name = ServerName::try_from(host.trim_start_matches('[').trim_end_matches(']'))
            .map_err(|_| ureq::Error::Tls(NO_NAME))?
            .to_owned();
        let port = details.uri.port_u16().unwrap_or(HTTPS);
        let offer = self.resumption.offer(Endpoint { name: name.clone(), port });
        // The copy shares all that is large, and the verifier, by which rustls knows that a session is of the same trust.
        let mut config = ClientConfig::clone(&self.config);
        config.resumption = client::Resumption::store(offer.clone());
        let mut connection = ClientConnection::new(Arc::new(config), name)?;
        let mut adapter = TransportAdapter::new(transport.boxed(), details.current_time.clone());
        adapter.set_timeout(NextTimeout { after: time::Duration::Exact(left(details)), ..details.timeout });
        let mut wire = Wire { adapter, read: 0 };
        note(|exchange| exchange.handshake = true);
        connection.complete_io(&mut wire).map_err(bare)?;
        note(|exchange| exchange.handshake = false);
        offer.handshake_over(&connection);
        offer.keep(wire.read);
        let sizes = (details.config.input_buffer_size(), details.config.output_buffer_size());
        let stream = StreamOwned::new(connection, wire);
        let buffers = LazyBuffers::new(sizes.0, sizes.1);
        Ok(Some(Either::B(Encrypted { stream, buffers, sizes, offer })))
    }
}

/// An error without its wrapping for `io`, and the end of a connection without rustls's explanation of it.
fn bare(error: io::Error) -> ureq::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => ureq::Error::Rustls(tls.clone()),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection").into()
        }
        None => error.into(),
    }
}

/// The encrypted bytes, as rustls reads and writes them.
struct Wire {
    adapter: TransportAdapter,
    /// Bytes that were read since the connection began.
    read: usize,
}

impl io::Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.adapter.read(buffer)?;
        self.read = self.read.saturating_add(length);
        Ok(length)
    }
}

impl io::Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.adapter.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.adapter.flush()
    }
}

/// An encrypted connection.
pub(crate) struct Encrypted {
    stream: StreamOwned<ClientConnection, Wire>,
    buffers: LazyBuffers,
    sizes: (usize, usize),
    /// Takes the sessions that come with the answers.
    offer: Arc<Offer>,
}

impl fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Encrypted").field(&self.stream.sock.adapter.inner()).finish()
    }
}

impl Transport for Encrypted {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(
        &mut self,
        amount: usize,
        timeout: NextTimeout,
    ) -> std::result::Result<(), ureq::Error> {
        self.stream.sock.adapter.set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        self.stream.write_all(output).map_err(bare)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> std::result::Result<bool, ureq::Error> {
        self.stream.sock.adapter.set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let length = self.stream.read(input);
        self.offer.keep(self.stream.sock.read);
        let length = length.map_err(bare)?;
        self.buffers.input_appended(length);
        Ok(length > 0)
    }

    /// Whether there is nothing to read: neither from the socket, nor among the encrypted bytes that have come, nor among the
    /// decrypted ones. A connection that rests needs no buffers, so it has none until its next call.
    fn is_open(&mut self) -> bool {
        let rest = self.stream.conn.process_new_packets();
        let socket = self.stream.sock.adapter.get_mut();
        let is_open = rest.is_ok_and(|rest| rest.plaintext_bytes_to_read() == 0 && !rest.peer_has_closed())
            && socket.buffers().input().is_empty()
            && socket.is_open();
        if is_open && self.buffers.input().is_empty() {
            self.buffers = LazyBuffers::new(self.sizes.0, self.sizes.1);
        }
        is_open
    }

    fn is_tls(&self) -> bool {
        true
    }
}
