//! stub
use crate::call::*;
use crate::error::Result;
use crate::event::*;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::*;
/// s
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Settings {
    pub timeout: Duration,
    pub response_body_bytes_max: usize,
    pub allow_net: Vec<ipnet::IpNet>,
    pub https_only: bool,
    pub ca_file: Option<PathBuf>,
    pub user_agent_version: String,
    pub refused: Vec<(String, u16)>,
}
/// s
#[allow(missing_docs)]
pub enum Outcome {
    Called(Call),
    Shortage(String),
}
/// s
pub struct Caller(ureq::Agent);
impl Caller {
    /// s
    pub fn new(s: Settings) -> Result<Caller> {
        Ok(Caller(
            ureq::Agent::config_builder()
                .timeout_global(Some(s.timeout))
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .max_idle_connections_per_host(32)
                .max_idle_connections(64)
                .build()
                .into(),
        ))
    }
    /// s
    pub fn problem(&self, _w: &Webhook) -> Option<String> {
        None
    }
    /// s
    pub fn call(&self, w: &Webhook, _id: i64, body: &Arc<str>) -> Outcome {
        let mut c = Call::unanswered(w, body, ErrorKind::Connect, "");
        match self.0.post(&w.url).header("content-type", "application/json").send(&**body) {
            Ok(mut r) => {
                c.status_code = Some(r.status().as_u16());
                c.response_body = r.body_mut().read_to_string().ok();
                if r.status().is_success() {
                    c.error_kind = None;
                    c.error_message = None
                } else {
                    c.error_kind = Some(ErrorKind::HttpStatus)
                }
            }
            Err(e) => c.error_message = Some(e.to_string()),
        }
        c.end_time = SystemTime::now();
        Outcome::Called(c)
    }
}
