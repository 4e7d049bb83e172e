//! A job and its call: one POST, as the relay makes it, and the record of it.

use std::error::Error;
use std::time::{Duration, SystemTime};

use reqwest::Url;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, USER_AGENT};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// As the relay's `--timeout`.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is queued: everything that the call needs, so that the job looks nothing up.
#[derive(Clone, Deserialize, Serialize)]
pub struct Job {
    pub id: i64,
    pub webhook_id: i64,
    pub url: String,
    pub event_id: Uuid,
    pub body: Body,
}

/// The relay's payload: the same keys in the same order.
#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Body {
    pub event: String,
    pub project_id: i64,
    pub prompt_id: i64,
    pub user_id: String,
    pub result: i16,
    pub timestamp: String,
    pub duration: i64,
    pub tokens: Tokens,
    pub cached: bool,
    pub ip: String,
    pub user_agent: String,
}

#[derive(Clone, Deserialize, Serialize)]
pub struct Tokens {
    pub prompt: i32,
    pub completion: i32,
    pub total: i64,
}

impl Job {
    /// The job of the relay's benchmark.
    pub fn new(id: i64, url: &str) -> Job {
        Job {
            id,
            webhook_id: 1,
            url: url.to_owned(),
            event_id: Uuid::new_v4(),
            body: Body {
                event: "onPromptFinished".to_owned(),
                project_id: 0,
                prompt_id: 0,
                user_id: "user-123".to_owned(),
                result: 0,
                timestamp: "2024-01-15T10:30:00Z".to_owned(),
                duration: 1250,
                tokens: Tokens { prompt: 150, completion: 300, total: 450 },
                cached: false,
                ip: String::new(),
                user_agent: String::new(),
            },
        }
    }
}

/// What becomes a row of the call log.
pub struct Call {
    pub job: Job,
    pub request_headers: String,
    pub request_body: String,
    pub status: u16,
    pub response_headers: String,
    pub response_body: String,
    pub remote_addr: Option<String>,
    pub start: SystemTime,
    pub end: SystemTime,
}

/// Makes the calls, over connections that stay open.
#[derive(Clone, Debug)]
pub struct Caller {
    client: reqwest::Client,
}

impl Caller {
    pub fn new() -> Result<Caller, reqwest::Error> {
        Ok(Caller { client: reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build()? })
    }

    /// The headers that go out are given here, so that the log has all of them.
    pub async fn call(&self, job: Job) -> Result<Call, Box<dyn Error + Send + Sync>> {
        let start = SystemTime::now();
        let request_body = serde_json::to_string(&job.body).expect("numbers and texts have a JSON form");
        let url = Url::parse(&job.url)?;
        let request = self
            .client
            .post(url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, "PromptPal-Webhook@0.1.0")
            .header(HOST, url.authority())
            .header(CONTENT_LENGTH, request_body.len())
            .header("webhook-id", format!("msg_{}_{}", job.event_id.simple(), job.webhook_id))
            .body(request_body.clone())
            .build()?;
        let request_headers = json(request.headers());
        let response = self.client.execute(request).await?;
        let (status, response_headers) = (response.status().as_u16(), json(response.headers()));
        let remote_addr = response.remote_addr().map(|address| address.to_string());
        let response_body = response.text().await?;
        let end = SystemTime::now();
        Ok(Call {
            job,
            request_headers,
            request_body,
            status,
            response_headers,
            response_body,
            remote_addr,
            start,
            end,
        })
    }
}

/// An object with lower-case names, as the call log has it.
fn json(headers: &HeaderMap) -> String {
    let entries = headers.iter().map(|(name, value)| {
        (name.as_str().to_owned(), serde_json::Value::from(String::from_utf8_lossy(value.as_bytes())))
    });
    serde_json::Value::Object(entries.collect()).to_string()
}
