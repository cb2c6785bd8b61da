//! What the system knows of this process, under the names that all client libraries of Prometheus use.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Reads what it shows when it is asked; what cannot be read is left out.
#[derive(Debug, Default)]
pub(crate) struct Process {}

/// One look at the process.
struct Look {
    cpu_seconds: f64,
    start_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    threads: u64,
    open_fds: u64,
    max_fds: u64,
}

#[cfg(target_os = "linux")]
fn look() -> Option<Look> {
    use procfs::WithCurrentSystemInfo as _;
    let process = procfs::process::Process::myself().ok()?;
    let stat = process.stat().ok()?;
    let ticks = procfs::ticks_per_second() as f64;
    let max_fds = match process.limits().ok()?.max_open_files.soft_limit {
        procfs::process::LimitValue::Value(files) => files,
        procfs::process::LimitValue::Unlimited => u64::MAX,
    };
    Some(Look {
        cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
        start_seconds: procfs::boot_time_secs().ok()? as f64 + stat.starttime as f64 / ticks,
        resident_bytes: stat.rss_bytes().get(),
        virtual_bytes: stat.vsize,
        threads: u64::try_from(stat.num_threads).unwrap_or(0),
        open_fds: process.fd_count().ok()? as u64,
        max_fds,
    })
}

#[cfg(not(target_os = "linux"))]
fn look() -> Option<Look> {
    None
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(look) = look() else { return Ok(()) };
        let cpu = ConstCounter::new(look.cpu_seconds);
        let help = "CPU time of this process, user and system";
        cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?)?;
        for (name, help, value) in [
            ("process_start_time_seconds", "When this process started, since 1970", look.start_seconds),
            ("process_resident_memory_bytes", "Resident memory", look.resident_bytes as f64),
            ("process_virtual_memory_bytes", "Virtual memory", look.virtual_bytes as f64),
            ("process_threads", "Threads", look.threads as f64),
            ("process_open_fds", "Open files and connections", look.open_fds as f64),
            ("process_max_fds", "Most files and connections that may be open", look.max_fds as f64),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[test]
    fn what_is_shown_of_the_process_is_true() {
        let shown = || {
            let text = crate::text(&crate::registry("tidewall_test", "1.2.3"));
            let value = |name: &str| -> f64 {
                let line = text.lines().find(|line| line.split(' ').next() == Some(name));
                line.unwrap_or_else(|| panic!("{name} is not in {text}"))
                    .rsplit_once(' ')
                    .unwrap()
                    .1
                    .parse()
                    .unwrap()
            };
            assert!(text.contains("tidewall_test_build_info{version=\"1.2.3\"} 1"), "{text}");
            assert!(value("process_max_fds") >= value("process_open_fds"));
            assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            let age = now.as_secs_f64() - value("process_start_time_seconds");
            assert!((-2.0..86_400.0).contains(&age), "it started {age} s ago");
            (value("process_open_fds"), value("process_cpu_seconds_total"), value("process_threads"))
        };
        let before = shown();
        let files: Vec<_> = (0..20).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let began = std::time::Instant::now();
        while began.elapsed().as_millis() < 50 {
            std::hint::spin_loop();
        }
        let (wake, sleep) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || sleep.recv());
        let after = shown();
        drop(wake);
        let _ = thread.join();
        assert!(after.0 >= before.0 + 20.0, "{after:?} {before:?} {}", files.len());
        assert!(after.1 > before.1 && after.2 >= 2.0, "{after:?} {before:?}");
    }
}
