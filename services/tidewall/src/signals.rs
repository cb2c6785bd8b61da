//! The signals that ask this process to stop: SIGINT (Ctrl-C), SIGTERM, SIGHUP (the terminal is gone).
//!
//! A process that was started with SIGHUP ignored, as `nohup` does, outlives its terminal. SIGINT is listened to in any
//! case: a shell that starts a job in the background of a script ignores it there, and the job is to be stopped all the
//! same.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Exit, Failure};

/// Lets signals through that whoever started this process has blocked, as a program may that waits for its own: a blocked SIGTERM
/// would stop nothing. Must be called before there are other threads, which inherit what is blocked.
pub fn unblock() {
    if let Err(error) = nix::sys::signal::SigSet::all().thread_unblock() {
        crate::output::note(&format!("cannot unblock signals: {error}"));
    }
}

/// Listens from its creation on; nothing that arrives after that is lost.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None`: to be ignored.
    hangup: Option<Signal>,
}

impl Signals {
    /// Starts listening; from here on these signals do not end the process by themselves. Must be called in
    /// a tokio runtime.
    pub fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|e| Failure::new(Exit::Environment, format!("cannot listen for signals: {e}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: if ignores_hangup() { None } else { Some(listen(SignalKind::hangup())?) },
        })
    }

    /// The name of the next signal. Cancelling this loses nothing.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "SIGTERM",
            () = heard(&mut self.hangup) => "SIGHUP",
        }
    }
}

/// Waits for a signal; for ever for one that is ignored.
async fn heard(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Whether SIGHUP is ignored, as it was inherited. Must be asked before anybody listens for it.
fn ignores_hangup() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignored_by(&status, 1))
}

/// Whether a process with this `/proc` status ignores a signal.
fn ignored_by(status: &str, signal: u32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        let status = "Name:\ttidewall\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n";
        assert!(ignored_by(status, 1) && ignored_by(status, 13));
        assert!(!ignored_by(status, 2) && !ignored_by("", 1));
    }
}
