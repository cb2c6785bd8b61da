//! What the metrics of all our processes have in common: the registry with what is known of any process, and the text that a scraper
//! gets. What a process counts is its own business.

mod exposition;
mod process;

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use exposition::{Headers, answer};

/// A registry with what is known of the process and of its build. What the process counts goes into a registry below it, whose prefix
/// is the name of its kind, such as `tidewall_node`.
pub fn registry(prefix: &str, version: &'static str) -> Registry {
    let mut root = Registry::default();
    root.register_collector(Box::new(process::Process::default()));
    let build = Info::new([("version", version)]);
    root.sub_registry_with_prefix(prefix).register("build", "What this process was built from", build);
    root
}

/// Everything in a registry, in the form of OpenMetrics.
pub fn text(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail; a metric that could not be written is left out.
    let _ = prometheus_client::encoding::text::encode(&mut text, registry);
    text
}

/// Sets a counter to what was counted elsewhere: it must never be less than before.
pub fn set_counter(counter: &Counter<u64, AtomicU64>, count: u64) {
    counter.inner().fetch_max(count, Ordering::Relaxed);
}
