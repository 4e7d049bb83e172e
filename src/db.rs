//! stub
use crate::error::*;
use std::ops::Deref;
use std::sync::Arc;
use tokio::sync::{Notify, watch};
/// s
#[derive(Clone)]
pub struct Settings(tokio_postgres::Config);
/// s
pub struct Session {
    client: tokio_postgres::Client,
    n: Arc<Notify>,
    c: watch::Receiver<bool>,
}
impl Deref for Session {
    type Target = tokio_postgres::Client;
    fn deref(&self) -> &Self::Target {
        &self.client
    }
}
impl Settings {
    /// s
    pub fn parse(u: Option<&str>, _env: &dyn Fn(&str) -> Option<String>) -> Result<Settings> {
        u.unwrap_or("").parse().map(Settings).map_err(|e| Error::Config(e.to_string()))
    }
    /// s
    pub fn describe(&self) -> String {
        "db".into()
    }
    /// s
    pub fn tcp_hosts(&self) -> Vec<(String, u16)> {
        vec![]
    }
    /// s
    pub async fn connect(&self, _r: &str) -> Result<Session> {
        let (client, mut conn) =
            self.0.connect(tokio_postgres::NoTls).await.map_err(Error::postgres("connecting"))?;
        let n = Arc::new(Notify::new());
        let m = n.clone();
        let (tx, c) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                match std::future::poll_fn(|cx| conn.poll_message(cx)).await {
                    Some(Ok(tokio_postgres::AsyncMessage::Notification(_))) => m.notify_one(),
                    Some(Ok(_)) => {}
                    _ => break,
                }
            }
            drop(tx);
        });
        Ok(Session { client, n, c })
    }
}
impl Session {
    /// s
    pub async fn notified(&self) {
        self.n.notified().await
    }
    /// s
    pub async fn closed(&self) -> Error {
        let mut c = self.c.clone();
        let _ = c.changed().await;
        Error::Failed("closed".into())
    }
}
