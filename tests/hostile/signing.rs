//! Signed calls, checked as a receiver checks them.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use promptpal_relay::inside::delivery::sign;
use promptpal_relay::inside::model::Message;
use promptpal_relay::inside::model::Room;
use promptpal_relay::inside::model::Secret;
use promptpal_relay::inside::model::TraceParent;
use sha2::Sha256;
use test_support::http::Message as Request;
use uuid::Uuid;

use crate::support::{OK, PATIENT, Receiver, caller, event, kind, made, signed, webhook};

/// The secret of the specification's own example.
const FIRST: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SECOND: &str = "whsec_c2Vjb25kIHNlY3JldCBvZiB0aGUgdGVzdHM=";

/// A receiver that keeps its requests.
fn keeping() -> (Receiver, Arc<Mutex<Vec<Request>>>) {
    let kept: Arc<Mutex<Vec<Request>>> = Arc::default();
    let keep = kept.clone();
    let receiver = Receiver::start(move |peer| {
        while let Some(request) = peer.request() {
            keep.lock().unwrap().push(request);
            peer.send(OK);
        }
    });
    (receiver, kept)
}

/// Whether one of the signatures was made with this secret, checked as the specification's libraries check it.
fn verifies(request: &Request, secret: &str) -> bool {
    let header = |name| request.header(name).unwrap();
    let key = STANDARD.decode(secret.trim_start_matches("whsec_")).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    mac.update(format!("{}.{}.", header("webhook-id"), header("webhook-timestamp")).as_bytes());
    mac.update(&request.body);
    let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    header("webhook-signature").split(' ').any(|signature| signature == expected)
}

#[test]
fn the_vectors_of_the_specifications_libraries() {
    for (secret, id, at, body, expected) in [
        (
            FIRST,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
        // Without the prefix it is the same secret.
        (
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
    ] {
        let now = UNIX_EPOCH + Duration::from_secs(at);
        assert_eq!(sign(&Secret(secret.into()), id, now, body).unwrap().signature, expected);
    }
}

#[test]
fn a_receiver_can_verify_with_each_of_the_secrets() {
    let (receiver, kept) = keeping();
    let caller = caller(PATIENT);
    for (secrets, valid, invalid) in [
        (FIRST.to_owned(), vec![FIRST], vec![SECOND]),
        (format!("{FIRST} {SECOND}"), vec![FIRST, SECOND], vec!["whsec_b3RoZXI="]),
        (format!("  {SECOND}\n{FIRST} "), vec![FIRST, SECOND], vec![]),
    ] {
        let call = made(caller.call(
            &signed(&receiver.url(), &secrets),
            &event("{\"é\":1}"),
            &mut Room::without_end(),
        ));
        assert_eq!(kind(&call), "success");
        let request = kept.lock().unwrap().pop().unwrap();
        assert!(valid.iter().all(|secret| verifies(&request, secret)), "{request:?}");
        assert!(!invalid.iter().any(|secret| verifies(&request, secret)), "{request:?}");
        assert_eq!(request.header("webhook-id"), Some("msg_0000000000000000000000000000002a_7"));
        let sent: u64 = request.header("webhook-timestamp").unwrap().parse().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(now.abs_diff(sent) < 60, "seconds since 1970");
    }
    // Without a secret it has its identity, and no signature.
    assert_eq!(
        kind(&made(caller.call(&webhook(&receiver.url()), &event("{}"), &mut Room::without_end()))),
        "success"
    );
    let request = kept.lock().unwrap().pop().unwrap();
    let names: HashSet<String> = request.headers.iter().map(|(name, _)| name.to_lowercase()).collect();
    let plain = ["host", "content-type", "content-length", "user-agent", "webhook-id"];
    assert_eq!(names, plain.map(str::to_owned).into());
}

#[test]
fn the_id_is_of_the_event_and_the_webhook() {
    let (receiver, kept) = keeping();
    let caller = caller(PATIENT);
    for webhook in [signed(&receiver.url(), FIRST), webhook(&receiver.url())] {
        for number in [1, 1, 2] {
            let message = Message { event_id: Uuid::from_u128(number), ..event("{}") };
            let call = made(caller.call(&webhook, &message, &mut Room::without_end()));
            assert!(call.request_headers.contains("webhook-id"), "the log has it, too: {call:?}");
        }
        let sent: Vec<_> = kept.lock().unwrap().drain(..).collect();
        let ids: Vec<_> = sent.iter().map(|request| request.header("webhook-id").unwrap()).collect();
        let id = |number: u128| format!("msg_{number:032x}_7");
        assert_eq!(ids, [id(1), id(1), id(2)], "the same for a repeat");
    }
}

#[test]
fn each_call_goes_on_with_the_trace_of_the_event_in_a_span_of_its_own() {
    let (receiver, kept) = keeping();
    let caller = caller(PATIENT);
    let parent = TraceParent::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    for traceparent in [parent.clone(), parent, None] {
        let message = Message { traceparent, ..event("{}") };
        made(caller.call(&webhook(&receiver.url()), &message, &mut Room::without_end()));
    }
    let sent: Vec<_> = kept.lock().unwrap().drain(..).collect();
    let headers: Vec<_> = sent.iter().map(|request| request.header("traceparent")).collect();
    let [Some(first), Some(second), None] = headers[..] else { panic!("{headers:?}") };
    let parts = |header: &str| header.split('-').map(str::to_owned).collect::<Vec<_>>();
    let (first, second) = (parts(first), parts(second));
    assert_eq!((first[1].as_str(), first[3].as_str()), ("0af7651916cd43dd8448eb211c80319c", "01"));
    assert_ne!(first[2], second[2]);
    assert!(![&first[2], &second[2]].contains(&&"b7ad6b7169203331".to_owned()), "not the application's");
}

#[test]
fn a_secret_shows_nowhere() {
    let (receiver, _) = keeping();
    let caller = caller(PATIENT);
    for secret in [FIRST, "no base64 at all!"] {
        let webhook = signed(&receiver.url(), secret);
        let call = made(caller.call(&webhook, &event("{}"), &mut Room::without_end()));
        let shown = format!("{webhook:?} {call:?} {caller:?} {:?}", caller.problem(&webhook));
        assert!(!shown.contains("MfKQ9r8") && !shown.contains("at all"), "{shown}");
    }
}
