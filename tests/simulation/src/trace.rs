//! What happened in a run, as lines and as one hash: equal hashes mean equal runs.

use std::cell::RefCell;
use std::rc::Rc;

/// Collects lines; clones write to the same trace.
#[derive(Clone)]
pub struct Trace(Rc<RefCell<Lines>>);

struct Lines {
    hasher: blake3::Hasher,
    count: u64,
    print: bool,
}

impl Trace {
    /// An empty trace that also prints its lines, or not.
    pub fn new(print: bool) -> Self {
        Self(Rc::new(RefCell::new(Lines { hasher: blake3::Hasher::new(), count: 0, print })))
    }

    /// Adds a line.
    pub fn note(&self, at_us: u64, who: &str, what: std::fmt::Arguments<'_>) {
        let line = format!("{:>10.3} {who:<8} {what}", at_us as f64 / 1_000.0);
        let mut lines = self.0.borrow_mut();
        lines.hasher.update(line.as_bytes());
        lines.hasher.update(b"\n");
        lines.count += 1;
        if lines.print {
            println!("{line}");
        }
    }

    /// Number of lines and hash over them.
    pub fn digest(&self) -> (u64, String) {
        let lines = self.0.borrow();
        (lines.count, lines.hasher.finalize().to_hex()[..16].to_owned())
    }
}
