//! One connection and what happens beside its queries: notifications, notices, its end.
//!
//! Owns the task that moves the bytes. Keeps no message that the server sends unasked: a notification becomes a permit, a
//! notice a line in the log.

use std::future::poll_fn;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, oneshot, watch};
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::{AsyncMessage, Client, Connection};

use crate::error::{Error, one_line};
use crate::postgres::timeline::Timeline;

/// How long a dropped session may take to say goodbye and to see its last statement through. A session whose server no longer
/// answers must not keep its socket for longer.
const LINGER: Duration = Duration::from_secs(1);

/// A session: the client and what happens beside its queries. Dropping it closes the connection, within a second at
/// most whatever the server does.
#[derive(Debug)]
pub struct Session {
    /// For queries; the session dereferences to it.
    pub client: Client,
    /// Written by the task that drives the connection, read here.
    beside: Arc<Beside>,
    ended: watch::Receiver<bool>,
    role: String,
    /// The timeline that the server writes on; none where it does not tell.
    pub timeline: Option<Timeline>,
    /// Dropped with the session, which is what the task waits for.
    _held: oneshot::Sender<()>,
}

/// What comes from the server unasked.
#[derive(Debug, Default)]
struct Beside {
    /// Holds one permit, however many notifications came.
    notified: Notify,
    /// Why the connection ended. The first call of [`Session::closed`] takes it.
    reason: Mutex<Option<tokio_postgres::Error>>,
}

impl Session {
    /// Hands the connection to a task of its own.
    pub(super) fn start<S, T>(client: Client, connection: Connection<S, T>, role: &str) -> Session
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let beside = Arc::new(Beside::default());
        let (end, ended) = watch::channel(false);
        let (_held, released) = oneshot::channel();
        let task = (Arc::clone(&beside), role.to_owned());
        tokio::spawn(async move {
            let (beside, role) = task;
            let over = async {
                // Ends with an error by design: the other half is dropped, never used.
                let dropped = released.await;
                debug_assert!(dropped.is_err());
                tokio::time::sleep(LINGER).await;
            };
            tokio::select! {
                result = drive(connection, &beside, &role) => {
                    *beside.reason.lock().expect("nothing panics while holding it") = result.err();
                }
                () = over => {}
            }
            end.send_replace(true);
        });
        Session { client, beside, ended, role: role.to_owned(), timeline: None, _held }
    }

    /// Resolves when a NOTIFY has come since the last call; many are one. Never resolves once the connection is gone:
    /// wait for [`Session::closed`] beside it. For one waiter at a time. Cancelling loses nothing.
    pub async fn notified(&self) {
        self.beside.notified.notified().await;
    }

    /// Resolves when the connection is gone. The first call gets the reason.
    pub async fn closed(&self) -> Error {
        let mut ended = self.ended.clone();
        // An error means that the task is gone without a word (the runtime ends): closed as well.
        if ended.wait_for(|ended| *ended).await.is_err() {
            return Error::Failed(self.holding());
        }
        match self.beside.reason.lock().expect("nothing panics while holding it").take() {
            Some(source) => Error::Postgres { doing: self.holding().into(), source },
            None => Error::Failed(format!("{}: it is closed", self.holding())),
        }
    }

    fn holding(&self) -> String {
        format!("holding the {} session with Postgres", self.role)
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Moves bytes until the connection ends, and deals with what the server sends unasked.
async fn drive<S, T>(
    mut connection: Connection<S, T>,
    beside: &Beside,
    role: &str,
) -> std::result::Result<(), tokio_postgres::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = poll_fn(|context| connection.poll_message(context)).await.transpose()? {
        match message {
            AsyncMessage::Notification(_) => beside.notified.notify_one(),
            AsyncMessage::Notice(notice) => tell(&notice, role),
            _ => {}
        }
    }
    Ok(())
}

fn tell(notice: &DbError, role: &str) {
    let (code, text) = (notice.code().code(), one_line(notice));
    match notice.parsed_severity() {
        Some(Severity::Warning) => tracing::warn!(role, code, "Postgres warns: {text}"),
        _ => tracing::debug!(role, code, "Postgres notes: {text}"),
    }
}
