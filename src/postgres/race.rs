//! Candidates for a session: the hosts of a cluster, or the addresses of a host. The first that accepts is taken.
//!
//! One that does not answer holds up none of the others. Opens no session itself: an attempt is a function that it was given.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::error::{Error, Result};

/// A candidate that has not answered after this time lets the next one begin, and goes on itself. Longer than a login on
/// another continent's server takes, so that the order of the candidates holds as a rule.
const HEAD_START: Duration = Duration::from_millis(500);
/// A candidate that has refused is asked again after this time while another one has not answered at all: a standby may have
/// been promoted. Shorter than the longest pause between two tries of the daemon.
const AGAIN: Duration = Duration::from_secs(1);

/// One candidate.
struct Candidate<'a, T> {
    attempt: Option<Pin<Box<dyn Future<Output = Result<T>> + 'a>>>,
    begun: bool,
    /// What the last attempt has failed with, and when.
    failed: Option<(Error, Instant)>,
}

impl<T> Candidate<'_, T> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<T>> {
        let Some(attempt) = &mut self.attempt else { return Poll::Pending };
        let result = attempt.as_mut().poll(context);
        if result.is_ready() {
            self.attempt = None;
        }
        result
    }

    /// When the next attempt is due, after a failure.
    fn again(&self) -> Option<Instant> {
        self.failed.as_ref().filter(|_| self.attempt.is_none()).map(|(_, at)| *at + AGAIN)
    }
}

/// Tries `count` candidates in order and takes the first that accepts. `in_turn`: a candidate begins only when the one before
/// has failed, and each is tried once. Otherwise it begins, too, when the one before has not answered for [`HEAD_START`], and
/// those that have failed are tried again while another one has not answered.
///
/// # Errors
///
/// A failure that will not pass, alone, as soon as all candidates before it have failed. Otherwise the last failure of each,
/// in order, as soon as all have failed.
pub(super) async fn first<T>(
    count: usize,
    in_turn: bool,
    attempt: impl AsyncFn(usize) -> Result<T>,
) -> std::result::Result<T, Vec<Error>> {
    let attempt = &attempt;
    let mut candidates: Vec<Candidate<'_, T>> =
        (0..count).map(|_| Candidate { attempt: None, begun: false, failed: None }).collect();
    let mut last_begun = Instant::now();
    loop {
        let now = Instant::now();
        let begun = candidates.iter().filter(|candidate| candidate.begun).count();
        let is_next_due = begun == 0
            || candidates[begun - 1].failed.is_some()
            || !in_turn && now >= last_begun + HEAD_START;
        if begun < count && is_next_due && decided(&candidates).is_none() {
            candidates[begun].begun = true;
            candidates[begun].attempt = Some(Box::pin(attempt(begun)));
            last_begun = now;
            continue;
        }
        if let Some(failures) = decided(&candidates) {
            let failure = |at: usize| candidates[at].failed.take().map(|(error, _)| error);
            return Err(failures.filter_map(failure).collect());
        }
        let mut due = (!in_turn && begun < count).then_some(last_begun + HEAD_START);
        for (number, candidate) in candidates.iter_mut().enumerate().filter(|_| !in_turn) {
            let Some(again) = candidate.again() else { continue };
            if again <= now {
                candidate.attempt = Some(Box::pin(attempt(number)));
            } else {
                due = due.into_iter().chain([again]).min();
            }
        }
        let answer = poll_fn(|context| {
            for (number, candidate) in candidates.iter_mut().enumerate() {
                if let Poll::Ready(result) = candidate.poll(context) {
                    return Poll::Ready((number, result));
                }
            }
            Poll::Pending
        });
        tokio::select! {
            (number, result) = answer => match result {
                Ok(taken) => return Ok(taken),
                Err(error) => candidates[number].failed = Some((error, Instant::now())),
            },
            () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
        }
    }
}

/// The candidates whose failures are the result, once there is one: that which will not pass, or all.
fn decided<T>(candidates: &[Candidate<'_, T>]) -> Option<std::ops::Range<usize>> {
    let lasts =
        |candidate: &Candidate<'_, T>| candidate.failed.as_ref().is_some_and(|(error, _)| !error.may_pass());
    match candidates.iter().position(|candidate| candidate.failed.is_none() || lasts(candidate)) {
        None => Some(0..candidates.len()),
        Some(at) if lasts(&candidates[at]) => Some(at..at + 1),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::pending;

    use tokio::sync::Notify;

    use super::*;

    fn refused<T>(why: &str) -> Result<T> {
        Err(Error::Failed(why.to_owned()))
    }

    fn texts(failures: Vec<Error>) -> Vec<String> {
        failures.iter().map(Error::to_string).collect()
    }

    #[tokio::test]
    async fn one_that_does_not_answer_holds_up_no_other() {
        let attempt = async |number: usize| match number {
            0 => pending().await,
            1 => refused("standby"),
            number => Ok(number),
        };
        assert_eq!(first(3, false, attempt).await.map_err(texts), Ok(2));
    }

    #[tokio::test]
    async fn one_that_has_refused_is_asked_again_while_another_does_not_answer() {
        let asked = RefCell::new(0);
        let attempt = async |number: usize| {
            if number == 0 {
                return pending().await;
            }
            *asked.borrow_mut() += 1;
            if *asked.borrow() < 3 { refused("standby") } else { Ok("promoted") }
        };
        assert_eq!(first(2, false, attempt).await.map_err(texts), Ok("promoted"));
    }

    #[tokio::test]
    async fn in_turn_the_next_one_waits_and_each_is_asked_once() {
        let (begun, answer) = (RefCell::new(Vec::new()), Notify::new());
        let attempt = async |number: usize| {
            begun.borrow_mut().push(number);
            if number == 0 {
                return refused("away");
            }
            answer.notified().await;
            Ok(number)
        };
        let taken = first(3, true, attempt);
        let slow = async {
            tokio::time::sleep(AGAIN + HEAD_START).await;
            answer.notify_one();
        };
        let (taken, ()) = tokio::join!(taken, slow);
        assert_eq!(taken.map_err(texts), Ok(1));
        assert_eq!(*begun.borrow(), [0, 1]);
    }

    #[tokio::test]
    async fn a_refusal_for_good_counts_when_those_before_have_failed() {
        let answer = Notify::new();
        let attempt = async |number: usize| match number {
            0 => {
                answer.notified().await;
                Ok("the first")
            }
            _ => {
                answer.notify_one();
                Err(Error::Config("password".to_owned()))
            }
        };
        assert_eq!(first(2, false, attempt).await.map_err(texts), Ok("the first"));
        let attempt = async |number: usize| match number {
            0 => refused("away"),
            1 => Err(Error::Config("password".to_owned())),
            _ => Ok(()),
        };
        assert_eq!(first(3, false, attempt).await.map_err(texts), Err(vec!["password".to_owned()]));
    }

    #[tokio::test]
    async fn when_all_have_failed_all_are_told_in_order() {
        let attempt = async |number: usize| refused::<()>(["away", "standby"][number]);
        let told = first(2, false, attempt).await.map_err(texts);
        assert_eq!(told, Err(vec!["away".to_owned(), "standby".to_owned()]));
    }
}
