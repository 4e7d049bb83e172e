//! The link in ureq's chain that encrypts. Opens no socket, and trusts what its configuration trusts.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
    time,
};

use crate::delivery::failure::NO_NAME;
use crate::delivery::transport::deadline::left;
use crate::delivery::transport::exchange::note;

/// The link. One for all connections: its configuration holds the trust store.
#[derive(Clone, Debug)]
pub(crate) struct Tls(pub Arc<ClientConfig>);

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
            .map_err(|_| ureq::Error::Tls(NO_NAME))?;
        let mut connection = ClientConnection::new(self.0.clone(), name.to_owned())?;
        let mut adapter = TransportAdapter::new(transport.boxed(), details.current_time.clone());
        adapter.set_timeout(NextTimeout { after: time::Duration::Exact(left(details)), ..details.timeout });
        note(|exchange| exchange.handshake = true);
        connection.complete_io(&mut adapter).map_err(bare)?;
        note(|exchange| exchange.handshake = false);
        let buffers =
            LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        let stream = StreamOwned::new(connection, adapter);
        Ok(Some(Either::B(Encrypted { stream, buffers })))
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

/// An encrypted connection.
pub(crate) struct Encrypted {
    stream: StreamOwned<ClientConnection, TransportAdapter>,
    buffers: LazyBuffers,
}

impl fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Encrypted").field(&self.stream.sock.inner()).finish()
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
        self.stream.sock.set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        io::Write::write_all(&mut self.stream, output).map_err(bare)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> std::result::Result<bool, ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let length = io::Read::read(&mut self.stream, input).map_err(bare)?;
        self.buffers.input_appended(length);
        Ok(length > 0)
    }

    /// Whether there is nothing to read: neither from the socket, nor among the encrypted bytes that have come, nor among the
    /// decrypted ones.
    fn is_open(&mut self) -> bool {
        let rest = self.stream.conn.process_new_packets();
        let socket = self.stream.sock.get_mut();
        rest.is_ok_and(|rest| rest.plaintext_bytes_to_read() == 0 && !rest.peer_has_closed())
            && socket.buffers().input().is_empty()
            && socket.is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
