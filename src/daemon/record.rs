//! Records that Postgres refuses, or that sessions are lost for: made shorter, then bare.
//!
//! Pure but for the journal. Decides nothing about when a record is written.

use crate::daemon::inbox::SET_ASIDE;
use crate::error::{Error, one_line};
use crate::model::call::{Call, ErrorKind};
use crate::model::row::Finished;

/// A record that Postgres refuses keeps so many bytes of each text of the answer. If it is refused again, none.
const REFUSED_ANSWER_BYTES: usize = 1024;
/// A record is large that has more bytes than this.
const LARGE_BYTES: usize = 256 * 1024;
/// How the message of a bare record begins.
const BARE: &str = "the call was made, its record could not be stored";

/// Makes the records of a row that Postgres refuses such that it may take them: their answers short, and when they are
/// short already, the records bare. False: they were bare already.
pub(super) fn make_storable(row: &mut Finished, error: &Error) -> bool {
    let is_bare = |call: &Call| call.error_message.as_deref().is_some_and(|text| text.starts_with(BARE));
    if row.calls.iter().all(is_bare) {
        tracing::error!(
            outbox_id = row.id,
            error = %one_line(error),
            "not even a bare record can be stored: it is tried again in {} s. Mend what refuses it (a constraint, a trigger)",
            SET_ASIDE.as_secs()
        );
        return false;
    }
    let before = row.record_bytes();
    let why = format!("the answer is kept shorter: {}", refusal(error));
    row.calls.iter_mut().for_each(|call| call.shorten(REFUSED_ANSWER_BYTES, &why));
    if row.record_bytes() + REFUSED_ANSWER_BYTES >= before {
        tracing::error!(outbox_id = row.id, error = %one_line(error), "a record could not be stored, a bare one is written");
        row.calls.iter_mut().for_each(|call| make_bare(call, error));
    } else {
        tracing::error!(outbox_id = row.id, error = %one_line(error), "a record could not be stored, a shorter one is written");
    }
    row.weigh();
    true
}

/// What the record says of it; the journal has what Postgres says.
fn refusal(error: &Error) -> String {
    match error.sqlstate() {
        Some(code) => format!("Postgres refused the record (SQLSTATE {})", code.code()),
        None => "the record is longer than one message to Postgres may be".into(),
    }
}

fn make_bare(call: &mut Call, error: &Error) {
    call.request_headers = "{}".into();
    call.response_headers = None;
    call.response_body = None;
    call.response_truncated = true;
    call.error_kind = Some(ErrorKind::Internal);
    call.error_message = Some(format!("{BARE}: {}", refusal(error)));
    call.remote_addr = None;
}

/// Takes a large record for what the session is lost for, again and again, and makes it shorter: something on the way
/// may not let it through.
pub(super) fn cut_suspect(row: &mut Finished) {
    if row.record_bytes() > LARGE_BYTES {
        tracing::error!(
            outbox_id = row.id,
            bytes = row.record_bytes(),
            "Postgres was lost again and again while this record was written: its answers are cut"
        );
        let why = "the answer is kept shorter: Postgres was lost while the record was written";
        row.calls.iter_mut().for_each(|call| call.shorten(REFUSED_ANSWER_BYTES, why));
        row.weigh();
    }
}
