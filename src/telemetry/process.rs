//! What this process takes of the machine, under the names that Prometheus' own libraries give it.
//!
//! Read from `/proc/self` with each scrape, which the unit's fences leave readable (`ProcSubset=pid`). What cannot be read is
//! left out.

use std::fmt::Error;
use std::fs;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Ticks a second in `/proc/self/stat` (USER_HZ): the kernel tells all programs 100 on the processors that Postgres runs on,
/// whatever it counts by itself.
const TICKS: f64 = 100.0;

/// This process.
#[derive(Debug)]
pub(crate) struct Process {
    // When the daemon began to count. The kernel knows a few milliseconds earlier, and tells it against its own start, which
    // is not to be read inside the unit's fences.
    start: Duration,
}

impl Process {
    /// Begins now.
    pub(crate) fn new() -> Process {
        Process { start: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        if let Some(seconds) = told(read("stat").map(|stat| cpu_seconds(&stat))) {
            let text = "Time that the process spent on a processor, in user and in kernel mode.";
            counter(&mut encoder, "process_cpu_seconds", text, seconds)?;
        }
        if let Some(bytes) = told(read("status").map(|status| resident_bytes(&status))) {
            gauge(
                &mut encoder,
                "process_resident_memory_bytes",
                "Memory of the process that is resident.",
                bytes,
            )?;
        }
        if let Some(files) = told(open_fds().map(Some)) {
            gauge(&mut encoder, "process_open_fds", "File descriptors that are open.", files)?;
        }
        if let Some(files) = told(read("limits").map(|limits| max_fds(&limits))) {
            gauge(&mut encoder, "process_max_fds", "File descriptors that may be open.", files)?;
        }
        let text = "When the process started, in seconds since 1970.";
        gauge(&mut encoder, "process_start_time_seconds", text, self.start.as_secs_f64())
    }
}

fn counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: f64) -> Result<(), Error> {
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: f64) -> Result<(), Error> {
    let metric = ConstGauge::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn read(file: &str) -> io::Result<String> {
    fs::read_to_string(format!("/proc/self/{file}"))
}

/// What was read, if it could be read and understood.
fn told(value: io::Result<Option<f64>>) -> Option<f64> {
    match value {
        Ok(Some(value)) => return Some(value),
        Ok(None) => tracing::debug!("/proc/self is not as expected"),
        Err(error) => tracing::debug!(%error, "/proc/self cannot be read"),
    }
    None
}

/// User and system time in `/proc/self/stat` (proc_pid_stat(5), fields 14 and 15). The second field is the program's name in
/// brackets, which may have blanks and brackets of its own.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(14 - 3);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) as f64 / TICKS)
}

/// `VmRSS:    7796 kB` in `/proc/self/status`.
fn resident_bytes(status: &str) -> Option<f64> {
    let size = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(size.trim().strip_suffix(" kB")?.parse::<u64>().ok()? as f64 * 1024.0)
}

/// `Max open files   1024   524288   files` in `/proc/self/limits`: the first one is in force.
fn max_fds(limits: &str) -> Option<f64> {
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match limit.split_whitespace().next()? {
        "unlimited" => Some(f64::INFINITY),
        number => Some(number.parse::<u64>().ok()? as f64),
    }
}

/// Descriptors that are open, but for the one that the folder is read by.
fn open_fds() -> io::Result<f64> {
    let mut count = 0;
    for entry in fs::read_dir("/proc/self/fd")? {
        entry?;
        count += 1;
    }
    Ok(f64::from(count - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_understood() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 100 0 0 0 250 75 9 9 20 0 4 0 777 1000 200 18446744073709551615";
        assert_eq!(cpu_seconds(stat), Some(3.25));
        assert_eq!(
            resident_bytes("Name:\tx\nVmHWM:\t 9 kB\nVmRSS:\t    7796 kB\nRssAnon:\t 1 kB\n"),
            Some(7_983_104.0)
        );
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax processes  1  2  processes\nMax open files            1024                 524288               files\n";
        assert_eq!(max_fds(limits), Some(1024.0));
        assert_eq!(max_fds("Max open files  unlimited  unlimited  files"), Some(f64::INFINITY));
        for broken in ["", "12 (a", "12 (a) S 1", "VmRSS: x kB", "Max open files"] {
            assert_eq!(
                (cpu_seconds(broken), resident_bytes(broken), max_fds(broken)),
                (None, None, None),
                "{broken}"
            );
        }
    }

    #[test]
    fn this_process_is_told() {
        // Other tests run meanwhile in the same process, and open files.
        assert!(open_fds().expect("/proc is there") > 2.0);
        assert!(cpu_seconds(&read("stat").expect("/proc is there")).is_some());
        assert!(resident_bytes(&read("status").expect("/proc is there")) > Some(100_000.0));
        assert!(max_fds(&read("limits").expect("/proc is there")) > Some(10.0));
    }
}
