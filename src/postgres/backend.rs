//! Whether a session keeps one backend. Behind a pooler that gives backends away between two transactions it does not:
//! LISTEN, advisory locks and settings would be left to others.
//!
//! Sets nothing on the server, and knows no pooler by name. A server announces a process id when a session begins. When the
//! backend has this id, no pooler is in between. A pooler announces an id of its own, even one that keeps sessions (session
//! mode). Then a second session, the witness, is asked in turns with the first. One backend must serve each of them all the
//! time, and the two backends must differ. While both sessions are open, a backend that is kept for one cannot serve the
//! other.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::{self, Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::Mutex;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::error::{Error, Result};
use crate::postgres::session::Session;

/// How often the two sessions are asked in turns. The first round discovers a pooler without other clients, whether it takes
/// the backend that was used last or the one that has rested longest. With other clients on N backends, a pooler stays
/// undiscovered with a chance of N to the power of -24 at most. Then the daemon ends when it meets another backend.
const ROUNDS: u32 = 8;
/// How long the witness may take: a pool in session mode may have no backend for it.
const WITNESS_MAX: Duration = Duration::from_secs(3);
/// Servers that are remembered, at most. Beyond it all are forgotten, and proved again.
const PROVED_MAX: usize = 64;

/// Whether it was proved of one server that its sessions keep their backends. Who holds the lock proves it, and other sessions
/// with that server wait meanwhile.
type Proof = Arc<Mutex<bool>>;

/// Servers whose sessions keep their backends, as was proved. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Proved(Arc<sync::Mutex<HashMap<String, Proof>>>);

impl Proved {
    /// What is known of this server.
    pub(super) fn of(&self, server: String) -> Proof {
        let mut servers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if servers.len() >= PROVED_MAX && !servers.contains_key(&server) {
            servers.clear();
        }
        servers.entry(server).or_default().clone()
    }
}

/// Whether the session keeps its backend. `witness` opens another one in the same way, when it is needed.
pub(super) async fn is_kept(
    session: &Session,
    witness: impl Future<Output = Result<Session>>,
) -> Result<bool> {
    let backend = serving(session).await?;
    if announced(session).await.map_err(Error::io("reading the announced process id"))? == backend {
        return Ok(true);
    }
    let judged = async {
        let witness = witness.await?;
        let other = serving(&witness).await?;
        for _ in 0..ROUNDS {
            // The first session twice in a row: among two backends that take turns it meets both.
            let seen = [serving(session).await?, serving(session).await?, serving(&witness).await?];
            if other == backend || seen != [backend, backend, other] {
                return Ok(false);
            }
        }
        Ok(true)
    };
    tokio::time::timeout(WITNESS_MAX, judged).await.unwrap_or_else(|_| {
        Err(Error::Failed(format!(
            "a pooler answers, and has given no second session within {} s to tell whether it keeps them",
            WITNESS_MAX.as_secs()
        )))
    })
}

/// The backend that serves the session at this moment.
async fn serving(session: &Session) -> Result<i32> {
    let doing = "asking which backend serves the session";
    let messages = session
        .simple_query(include_str!("../../sql/queries/postgres/backend.sql"))
        .await
        .map_err(Error::postgres(doing))?;
    let pid = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    pid.ok_or_else(|| Error::Failed(format!("{doing}: no number came")))
}

/// The process id that the server announced when the session began. The client shows it in one place only, the request that
/// cancels a statement. So this function lets the client write that request, and reads it itself.
async fn announced(client: &Client) -> io::Result<i32> {
    /// Instead of a process id: a request for TLS, which is another message.
    const TLS: i32 = 80_877_103;
    let (ours, mut theirs) = tokio::io::duplex(64);
    let token = client.cancel_token();
    let hear = async {
        loop {
            let length = theirs.read_i32().await?;
            let code = theirs.read_i32().await?;
            if code == TLS {
                theirs.write_all(b"S").await?;
                continue;
            }
            let pid = theirs.read_i32().await?;
            let mut rest = vec![0; usize::try_from(length - 12).unwrap_or(0)];
            theirs.read_exact(&mut rest).await?;
            return Ok(pid);
        }
    };
    let (said, pid) = tokio::join!(token.cancel_query_raw(ours, Through), hear);
    said.map_err(io::Error::other)?;
    pid
}

/// Stands in for TLS and encrypts nothing, for [`announced`].
struct Through;

struct Plain(DuplexStream);

impl TlsConnect<DuplexStream> for Through {
    type Stream = Plain;
    type Error = Infallible;
    type Future = Ready<std::result::Result<Plain, Infallible>>;

    fn connect(self, stream: DuplexStream) -> Self::Future {
        ready(Ok(Plain(stream)))
    }
}

impl TlsStream for Plain {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Plain {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Plain {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
