//! Rules about foreign bytes and texts, tried with thousands of them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use clap::Parser;
use promptpal_relay::inside::cli::{Cli, Command, Run};
use promptpal_relay::inside::delivery::Caller;
use promptpal_relay::inside::model::Call;
use promptpal_relay::inside::model::storable;
use promptpal_relay::inside::model::without_credentials;
use proptest::prelude::*;
use url::{Host, Url};

use crate::support::{
    PATIENT, Receiver, assert_storable, caller, caller_to, cases, kind, post, settings, webhook,
};

/// No name has an address. For [`call_nobody`].
static NAMELESS: LazyLock<Caller> = LazyLock::new(|| {
    let mut settings = settings(PATIENT);
    settings.allow_net.clear();
    caller_to(settings, |_| Err(io::Error::other("no name here")))
});

/// A call that connects nowhere; none where the URL is an address that may be called.
fn call_nobody(url: &str) -> Option<Call> {
    let is_address = Url::parse(url).is_ok_and(|url| !matches!(url.host(), Some(Host::Domain(_)) | None));
    let connects = is_address && NAMELESS.problem(&webhook(url)).is_none();
    (!connects).then(|| post(&NAMELESS, url))
}

/// Answers with the bytes it was last told, and closes.
static ECHO: LazyLock<(Receiver, Arc<Mutex<Vec<u8>>>)> = LazyLock::new(|| {
    let bytes: Arc<Mutex<Vec<u8>>> = Arc::default();
    let answer = bytes.clone();
    let receiver = Receiver::start(move |peer| {
        if peer.request().is_some() {
            let answer = answer.lock().unwrap().clone();
            peer.send(answer);
        }
    });
    (receiver, bytes)
});

fn answered(bytes: Vec<u8>) -> Call {
    static CALLER: LazyLock<Caller> = LazyLock::new(|| caller(PATIENT));
    // One at a time: the answer belongs to the call.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (receiver, answer) = &*ECHO;
    *answer.lock().unwrap() = bytes;
    post(&CALLER, &receiver.url())
}

/// Text that is nearly a URL.
fn nearly_url() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("http://".to_owned()),
        Just("https://".to_owned()),
        Just("user:s3cret@".to_owned()),
        Just("a.example".to_owned()),
        Just("10.0.0.1".to_owned()),
        Just("0x7f.1".to_owned()),
        Just("[::1]".to_owned()),
        Just(":80".to_owned()),
        Just("/path?query#fragment".to_owned()),
        "[!-~]{0,3}",
        "\\PC{0,3}",
        any::<char>().prop_map(String::from),
    ];
    (prop_oneof![Just("http://"), Just("https:"), Just("")], prop::collection::vec(part, 0..6))
        .prop_map(|(start, parts)| format!("{start}{}", parts.concat()))
}

/// The value of the flag; none when the program refuses it.
fn typed(flag: &str, text: &str) -> Option<Run> {
    let typed = Cli::try_parse_from(["promptpal-relay", "run", &format!("--{flag}={text}")]).ok()?;
    let Command::Run(run) = typed.command else { panic!("it is run that was typed") };
    Some(*run)
}

/// The longest and the largest that flags take.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
const SIZE_MAX: usize = 16 * 1024 * 1024;

/// Units, in nanoseconds and in bytes.
const TIMES: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("sec", 1_000_000_000),
    ("m", 60_000_000_000),
    ("min", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
    ("w", 604_800_000_000_000),
];
const SIZES: &[(&str, u64)] = &[
    ("", 1),
    ("B", 1),
    ("k", 1000),
    ("kB", 1000),
    ("KiB", 1024),
    ("MB", 1_000_000),
    ("MiB", 1024 * 1024),
    ("GiB", 1024 * 1024 * 1024),
];

/// Text that is nearly a duration or a size.
fn nearly_quantity() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[0-9]{1,3}",
        "[0-9]{1,25}",
        "[0-9]{0,3}[.,][0-9]{0,25}",
        "[-+ ]",
        prop::sample::select(TIMES).prop_map(|(unit, _)| unit.to_owned()),
        prop::sample::select(SIZES).prop_map(|(unit, _)| unit.to_owned()),
        "(years?|month|inf|nan|e[0-9]{1,4}|0x[0-9a-f]+|TB|PiB|EiB)",
        "\\PC{0,3}",
    ];
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(cases(3000))]

    #[test]
    fn any_text_is_stored_without_nul_and_valid_text_unchanged(bytes: Vec<u8>, text in "\\PC*") {
        let stored = storable(&*bytes);
        prop_assert!(!stored.contains('\0'));
        prop_assert!(stored.len() <= 3 * bytes.len());
        prop_assert_eq!(storable(stored.as_bytes()), stored.clone(), "stored once, stored for good");
        prop_assert_eq!(storable(text.as_bytes()), text);
    }

    #[test]
    fn a_url_that_has_no_problem_is_never_a_bad_one_at_the_call(url in nearly_url()) {
        let problem = NAMELESS.problem(&webhook(&url));
        let Some(call) = call_nobody(&url) else { return Ok(()) };
        assert_storable(&call);
        let kind = kind(&call);
        prop_assert_eq!(problem.is_some(), ["bad_url", "blocked_address"].contains(&kind), "{:?} {:?}", problem, call);
        if let Some(problem) = problem {
            prop_assert_eq!(Some(problem.replace('\0', "\u{FFFD}")), call.error_message);
        } else {
            prop_assert_eq!(kind, "dns", "{:?}", call);
        }
    }

    #[test]
    fn no_password_of_a_url_is_shown(
        user in "[a-z]{0,3}",
        password in "[!-~]{1,12}",
        host in "[a-z.]{0,4}|10\\.0\\.0\\.1|\\PC{0,3}",
        rest in "[/?#]?[a-z]{0,3}",
    ) {
        let password = format!("s3cret{}", password.replace(['/', '\\', '?', '#'], ""));
        let url = format!("http://{user}:{password}@{host}{rest}");
        let shown = without_credentials(&url);
        prop_assert!(!shown.contains("s3cret") && !shown.contains('\0'), "{url} {shown}");
        let call = call_nobody(&url);
        prop_assert!(!format!("{call:?}").contains("s3cret"), "{url} {call:?}");
    }

    #[test]
    fn durations_and_sizes_are_what_they_say_or_refused(
        text in nearly_quantity(),
        number in prop_oneof![0u64..2000, any::<u64>().prop_map(|bits| bits >> (bits % 64))],
        (unit, nanoseconds) in prop::sample::select(TIMES),
        (measure, bytes) in prop::sample::select(SIZES),
        space in " ?",
    ) {
        // Whatever is typed: an error, or a value within the bounds that is the same when it is written out and typed.
        if let Some(time) = typed("timeout", &text).map(|run| run.timeout) {
            prop_assert!(time > Duration::ZERO && time <= CENTURY, "{:?} {:?}", text, time);
            let again = typed("timeout", &humantime::format_duration(time).to_string());
            prop_assert_eq!(again.map(|run| run.timeout), Some(time), "{:?}", text);
        }
        if let Some(size) = typed("max-response-body", &text).map(|run| run.max_response_body) {
            prop_assert!(size <= SIZE_MAX, "{:?} {}", text, size);
            let again = typed("max-response-body", &size.to_string());
            prop_assert_eq!(again.map(|run| run.max_response_body), Some(size), "{:?}", text);
        }
        // A number and a unit: what they say, or refused for being too much or nothing.
        let time = u64::try_from(u128::from(number) * u128::from(nanoseconds)).ok().map(Duration::from_nanos);
        let time = time.filter(|time| *time > Duration::ZERO && *time <= CENTURY);
        let found = typed("timeout", &format!("{number}{space}{unit}")).map(|run| run.timeout);
        prop_assert_eq!(found, time, "{}{}{}", number, space, unit);
        let size = number.checked_mul(bytes).and_then(|size| usize::try_from(size).ok());
        let space = if measure.is_empty() { "" } else { &*space };
        let found = typed("max-response-body", &format!("{number}{space}{measure}")).map(|run| run.max_response_body);
        prop_assert_eq!(found, size.filter(|size| *size <= SIZE_MAX), "{}{}{}", number, space, measure);
    }
}

/// Bytes that are nearly an answer.
fn nearly_answer() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just(b"HTTP/1.1 200 OK\r\n".to_vec()),
        Just(b"HTTP/1.1 500 Oops\r\n".to_vec()),
        Just(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()),
        Just(b"Content-Length: 5\r\n".to_vec()),
        Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\r\n\r\n".to_vec()),
        Just(b"2\r\nhi\r\n".to_vec()),
        Just(b"0\r\n\r\n".to_vec()),
        ("[!-9;-~]{1,5}", prop::collection::vec(any::<u8>(), 0..10)).prop_map(|(name, value)| [
            name.as_bytes(),
            b": ",
            &value,
            b"\r\n"
        ]
        .concat()),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    (any::<bool>(), prop::collection::vec(line, 0..8)).prop_map(|(good, lines)| {
        let start = if good { &b"HTTP/1.1 200 OK\r\n"[..] } else { b"" };
        [start, &lines.concat()].concat()
    })
}

proptest! {
    #![proptest_config(cases(1500))]

    #[test]
    fn any_answer_is_one_storable_record(bytes in nearly_answer()) {
        let call = answered(bytes.clone());
        assert_storable(&call);
        let kind = kind(&call);
        prop_assert!(["success", "http_status", "protocol", "connect"].contains(&kind), "{bytes:?} {call:?}");
        prop_assert_eq!(call.status_code.is_some(), ["success", "http_status"].contains(&kind));
        prop_assert_eq!(kind == "connect", bytes.is_empty(), "{:?} {:?}", bytes, call);
        prop_assert!(call.response_bytes <= bytes.len() as u64);
        prop_assert!(kind == "success" || call.error_message.is_some());
        prop_assert!(kind == "success" || !bytes.starts_with(b"HTTP/1.1 200 OK\r\n"), "the status decides: {:?}", call);
    }

    #[test]
    fn header_values_survive_as_far_as_they_are_text(
        pairs in prop::collection::vec(("[a-zA-Z][a-zA-Z0-9-]{0,8}", "[!-~]([ -~]{0,8}[!-~])?"), 0..20),
    ) {
        // These have a meaning of their own.
        let own = ["connection", "content-length", "transfer-encoding"];
        let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut head = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n".to_owned();
        for (name, value) in pairs.iter().filter(|(name, _)| !own.contains(&&*name.to_lowercase())) {
            head.push_str(&format!("{name}: {value}\r\n"));
            expected.entry(name.to_lowercase()).or_default().push(value.clone());
        }
        let call = answered(format!("{head}\r\n").into_bytes());
        prop_assert_eq!(kind(&call), "success", "{:?}", call);
        let got: serde_json::Value = serde_json::from_str(&call.response_headers.unwrap()).unwrap();
        for (name, values) in expected {
            let value = match values.as_slice() {
                [one] => serde_json::json!(one),
                many => serde_json::json!(many),
            };
            prop_assert_eq!(&got[&name], &value, "{}", name);
        }
    }
}
