//! Signatures of calls, by the Standard Webhooks specification (version 1, symmetric).

use std::ops::RangeInclusive;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::model::event::Secret;

/// Longest `signing_secret`, with all its secrets. The claim reads no more than a little beyond it.
const SECRETS_BYTES_MAX: usize = 8 * 1024;

/// Bytes of a key: 192 to 512 bits, as the specification says.
const KEY_BYTES: RangeInclusive<usize> = 24..=64;

/// What a signed call has besides its `webhook-id`, which is signed, too.
#[derive(Debug)]
pub struct Signed {
    /// `webhook-timestamp`: seconds since 1970 at the time of sending.
    pub timestamp: String,
    /// `webhook-signature`: one for each secret, separated by spaces.
    pub signature: String,
}

/// Signs a body. `secrets` is one secret, or several separated by spaces while they are being exchanged. Each is a key of 24 to
/// 64 bytes in base64, after an optional `whsec_`, as the specification writes it. Only the usual alphabet and padding are
/// taken: from other forms the receivers' libraries make another key, or none. `relay.secret_problem(text)` says the same of a
/// secret.
///
/// # Errors
///
/// A text without the secret, when one of the keys cannot sign, or there is none. Then the call must not go out, neither unsigned
/// nor with the other keys alone.
pub fn sign(secrets: &Secret, id: &str, now: SystemTime, body: &str) -> Result<Signed, &'static str> {
    if secrets.0.len() > SECRETS_BYTES_MAX {
        return Err("the webhook's signing_secret is longer than 8192 bytes");
    }
    let timestamp = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().to_string();
    let mut signatures = Vec::new();
    for secret in secrets.0.split_ascii_whitespace() {
        let key = STANDARD
            .decode(secret.strip_prefix("whsec_").unwrap_or(secret))
            .map_err(|_| "a key in the webhook's signing_secret is not base64 after whsec_")?;
        if !KEY_BYTES.contains(&key.len()) {
            return Err(
                "a key in the webhook's signing_secret has less than 24 or more than 64 bytes; make a new one of 32",
            );
        }
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("HMAC takes keys of any length");
        for part in [id, ".", &timestamp, ".", body] {
            mac.update(part.as_bytes());
        }
        signatures.push(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())));
    }
    if signatures.is_empty() {
        return Err("the webhook's signing_secret is empty; set it to null for calls without a signature");
    }
    Ok(Signed { timestamp, signature: signatures.join(" ") })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_vector_of_the_specification() {
        let secret = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into());
        let at = UNIX_EPOCH + Duration::from_secs(1_614_265_330);
        let signed = sign(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", at, r#"{"test": 2432232314}"#)
            .expect("a good secret");
        assert_eq!(signed.signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(signed.timestamp, "1614265330");
    }

    #[test]
    fn two_secrets_give_two_signatures() {
        let secret =
            Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw  c2Vjb25kIHNlY3JldCBvZiB0aGUgdGVzdHM=".into());
        let signed = sign(&secret, "a", SystemTime::now(), "b").expect("good secrets");
        assert_eq!(signed.signature.split(' ').count(), 2);
    }

    #[test]
    fn a_bad_secret_is_told_without_being_shown() {
        let long = "A".repeat(SECRETS_BYTES_MAX + 4);
        for bad in ["not base64!", "", " ", &long] {
            let text = sign(&Secret(bad.into()), "a", SystemTime::now(), "b").expect_err("bad");
            assert!(!text.contains("not base64!") && text.len() < 100);
        }
    }
}
