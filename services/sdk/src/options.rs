//! What a client can be told. Every default is usable; values that cannot work are refused at the start.

use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::budget::RetryBudget;
use crate::error::ConnectError;
use crate::journal::{MemoryJournal, RequestJournal};

/// The longest deadline that a gateway honours.
const DEADLINE_HONOURED: Duration = Duration::from_secs(60);

/// How a [`Client`](crate::Client) behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a call may take, all attempts and pauses together. [`Client::within`](crate::Client::within) sets
    /// another for single calls.
    pub deadline: Duration,
    /// How long one attempt may take; at most 60 s. A gateway that says nothing for so long is left for
    /// another. Longer than a failover takes, or the gateway cannot ride it out.
    pub attempt_timeout: Duration,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How often a connection is probed (HTTP/2 PING), also while idle.
    pub keepalive_interval: Duration,
    /// How long the answer to a probe may take before the connection counts as dead.
    pub keepalive_timeout: Duration,
    /// Pauses before retries for which the service names no delay.
    pub backoff: Backoff,
    /// How many retries all calls of the client may make together.
    pub budget: RetryBudget,
    /// Where requests are written down before they are sent. The default keeps them in memory only: use a
    /// [`FileJournal`](crate::FileJournal) where the end of the process may not lose them.
    pub journal: Arc<dyn RequestJournal>,
}

impl Default for Options {
    /// 10 s for a call, 4 s for an attempt, 1 s to connect, a probe every 5 s that is waited for 3 s, and a
    /// journal in memory.
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(4),
            connect_timeout: Duration::from_secs(1),
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(3),
            backoff: Backoff::default(),
            budget: RetryBudget::default(),
            journal: Arc::new(MemoryJournal::default()),
        }
    }
}

impl Options {
    /// These options with another journal.
    #[must_use]
    pub fn with_journal(self, journal: impl RequestJournal + 'static) -> Self {
        Self { journal: Arc::new(journal), ..self }
    }

    /// Refuses what cannot work.
    pub(crate) fn check(&self) -> Result<(), ConnectError> {
        let refuse = |option, value: String, why| Err(ConnectError::Option { option, value, why });
        for (option, value) in [
            ("deadline", self.deadline),
            ("attempt_timeout", self.attempt_timeout),
            ("connect_timeout", self.connect_timeout),
            ("keepalive_interval", self.keepalive_interval),
            ("keepalive_timeout", self.keepalive_timeout),
            ("backoff.first", self.backoff.first),
        ] {
            if value.is_zero() {
                return refuse(option, format!("{value:?}"), "it must be longer than nothing");
            }
        }
        if self.attempt_timeout > DEADLINE_HONOURED {
            let value = format!("{:?}", self.attempt_timeout);
            return refuse("attempt_timeout", value, "gateways honour at most 60 s");
        }
        if self.backoff.max < self.backoff.first {
            return refuse("backoff.max", format!("{:?}", self.backoff.max), "it is below backoff.first");
        }
        let budget = self.budget;
        if !(2..=1000).contains(&budget.max_tokens) {
            return refuse("budget.max_tokens", budget.max_tokens.to_string(), "it must be 2 to 1000");
        }
        if !(1..=1000).contains(&budget.token_ratio_thousandths) {
            let value = budget.token_ratio_thousandths.to_string();
            return refuse("budget.token_ratio_thousandths", value, "it must be 1 to 1000");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let refused = |change: fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            options.check().unwrap_err().to_string()
        };
        assert!(Options::default().check().is_ok());
        assert!(refused(|o| o.deadline = Duration::ZERO).contains("deadline"));
        assert!(refused(|o| o.attempt_timeout = Duration::from_secs(61)).contains("60 s"));
        assert!(refused(|o| o.backoff.max = Duration::from_millis(1)).contains("backoff.max"));
        assert!(refused(|o| o.budget.max_tokens = 1001).contains("max_tokens"));
        assert!(refused(|o| o.budget.token_ratio_thousandths = 0).contains("token_ratio"));
    }
}
