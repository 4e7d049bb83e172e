//! What this thread has had of a processor, as the kernel counts it. Read from `/proc/thread-self`, which the unit's fences leave
//! readable (`ProcSubset=pid`). Busy processors and a container's limit look the same: the thread waits.

use std::fs;

use crate::daemon::deference::Processor;

/// This thread's times so far; none where the kernel does not tell them.
pub(super) fn read() -> Option<Processor> {
    parse(&fs::read_to_string("/proc/thread-self/schedstat").ok()?)
}

/// The time that it ran and the time that it waited, in nanoseconds; then how often it ran.
fn parse(text: &str) -> Option<Processor> {
    let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
    Some(Processor { ran: numbers.next()??, waited: numbers.next()?? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_run() {
        let times = parse("1200300 4500 17\n").expect("as the kernel writes it");
        assert_eq!((times.ran, times.waited), (1_200_300, 4500));
        assert!(parse("").is_none() && parse("1200300\n").is_none());
    }
}
