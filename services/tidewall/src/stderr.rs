//! The way of this program to standard error: lines wait in a bounded queue for a thread of their own.
//!
//! Standard error may be a pipe that nobody reads. A supervisor that waits there for room restarts nothing, and a node
//! sells nothing. So nobody waits: what the queue has no room for is dropped and counted, and the count is written when
//! somebody reads again.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// What may wait to be written, bytes.
const WAITING_MAX: usize = 1 << 20;
/// How long the end of a process, or something for the same terminal, waits for lines that are under way.
pub const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: u64,
    /// The thread is writing.
    busy: bool,
}

/// A queue and the thread that empties it.
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Queue {
    const fn new() -> Self {
        let waiting = Waiting { lines: VecDeque::new(), bytes: 0, dropped: 0, busy: false };
        Self { waiting: Mutex::new(waiting), changed: Condvar::new() }
    }

    fn put(&self, line: &[u8]) {
        let mut waiting = self.waiting.lock();
        if waiting.bytes + line.len() > WAITING_MAX {
            waiting.dropped += 1;
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line.to_vec());
        self.changed.notify_all();
    }

    /// Writes what waits, for ever.
    fn empty_into(&self, target: &mut dyn Write) {
        loop {
            let (lines, dropped) = {
                let mut waiting = self.waiting.lock();
                waiting.busy = false;
                self.changed.notify_all();
                while waiting.lines.is_empty() && waiting.dropped == 0 {
                    self.changed.wait(&mut waiting);
                }
                waiting.busy = true;
                waiting.bytes = 0;
                (std::mem::take(&mut waiting.lines), std::mem::take(&mut waiting.dropped))
            };
            // A closed standard error is no reason to stop.
            for line in lines {
                let _ = target.write_all(&line);
            }
            if dropped > 0 {
                let _ = writeln!(target, "{dropped} messages were dropped here: nobody read standard error");
            }
            let _ = target.flush();
        }
    }

    fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut waiting = self.waiting.lock();
        while waiting.busy || !waiting.lines.is_empty() {
            if self.changed.wait_until(&mut waiting, deadline).timed_out() {
                return;
            }
        }
    }
}

static QUEUE: Queue = Queue::new();

/// Whether there is a thread; without one everybody writes directly.
fn has_thread() -> bool {
    static STARTED: OnceLock<bool> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let thread = std::thread::Builder::new().name("stderr".into());
        thread.spawn(|| QUEUE.empty_into(&mut io::stderr())).is_ok()
    })
}

/// Standard error as a writer that never waits and never fails.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if has_thread() {
            QUEUE.put(bytes);
        } else {
            let _ = io::stderr().write_all(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until everything is written, but no longer than [`PATIENCE`].
pub fn flush() {
    QUEUE.flush(PATIENCE);
}

/// A panic is told the same way: its message must not keep the thread that other regions need.
pub fn tell_panics() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let text = format!(
            "thread '{}' {info}\n{}\n",
            thread.name().unwrap_or("unnamed"),
            std::backtrace::Backtrace::capture()
        );
        let _ = Stderr.write_all(text.as_bytes());
        // Nothing may come after it there.
        if thread.name() == Some("main") {
            flush();
        }
    }));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::sync::mpsc;

    use super::*;

    /// A pipe whose reader begins when it is told to.
    struct Pipe {
        begin: mpsc::Receiver<()>,
        begun: bool,
        seen: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if !self.begun {
                self.begin.recv().unwrap();
                self.begun = true;
            }
            self.seen.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_pipe_that_is_not_read_and_what_was_dropped_is_counted() {
        let queue = Arc::new(Queue::new());
        let (begin, begins) = mpsc::channel();
        let (seen, lines) = mpsc::channel();
        let emptying = Arc::clone(&queue);
        std::thread::spawn(move || {
            emptying.empty_into(&mut Pipe { begin: begins, begun: false, seen });
        });
        queue.put(b"first\n");
        // The thread takes it and stands before the pipe.
        while !queue.waiting.lock().busy {
            std::thread::yield_now();
        }
        let line = vec![b'x'; 1 << 10];
        for _ in 0..(WAITING_MAX >> 10) + 3 {
            queue.put(&line);
        }
        queue.flush(Duration::from_millis(1));
        begin.send(()).unwrap();
        queue.flush(Duration::from_secs(20));
        let told: Vec<u8> = lines.try_iter().flatten().collect();
        let text = String::from_utf8(told).unwrap();
        assert!(
            text.starts_with("first\n") && text.contains("3 messages were dropped here"),
            "{}",
            text.len()
        );
        assert_eq!(text.matches('x').count(), WAITING_MAX, "what there was room for is there");
    }
}
