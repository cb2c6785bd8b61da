//! What was sent and has no known outcome yet: written down *before* it is sent, so that a process that dies in
//! between finds it again. A journal must never report a request as written before it is safe, and must never
//! forget one by itself. It holds no tokens and no contents, only which request went where.

mod file;
mod format;
mod memory;

use std::fmt;
use std::io;
use std::path::PathBuf;

use async_trait::async_trait;

pub use file::{FileJournal, FileJournalOptions};
pub use memory::MemoryJournal;

use crate::RequestId;

/// How many open requests a journal takes unless told otherwise.
const OPEN_MAX_DEFAULT: usize = 100_000;

/// A request that was, or is about to be, sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Its id.
    pub request_id: RequestId,
    /// The method, such as `tidewall.v1.TicketService/BuyTickets`.
    pub method: String,
    /// The resource that it was sent to: the `parent` or `name` of the request. It carries the region.
    pub resource: String,
    /// Unix time in ms, by this machine's clock, after which no attempt of it was to be executed any more.
    pub expires_at_unix_ms: u64,
}

impl Sent {
    /// What to keep when the same id begins again: a copy of the earlier call may still be under way.
    fn merged(&self, earlier: Option<&Self>) -> Self {
        let earlier = earlier.map_or(0, |sent| sent.expires_at_unix_ms);
        Self { expires_at_unix_ms: self.expires_at_unix_ms.max(earlier), ..self.clone() }
    }

    /// The region that decides, `regions/{region}`.
    pub fn region(&self) -> &str {
        region_of(&self.resource)
    }
}

/// The region in a resource name.
pub(crate) fn region_of(resource: &str) -> &str {
    let end = resource.match_indices('/').nth(1).map_or(resource.len(), |(position, _)| position);
    &resource[..end]
}

/// Remembers requests from before they are sent until their outcome is known.
///
/// One journal belongs to one principal: outcomes are asked for with the token of the client that uses it.
#[async_trait]
pub trait RequestJournal: Send + Sync + fmt::Debug {
    /// Writes requests down; when it returns `Ok` they are as safe as this journal makes them. Of an id that is
    /// there already, the later expiry counts.
    ///
    /// # Errors
    /// When they could not be made safe. The caller must not send them then.
    async fn begin(&self, requests: &[Sent]) -> Result<(), JournalError>;

    /// The outcomes of these requests are known. May be made safe later than `begin` is: a request that is
    /// listed once more than necessary does no harm.
    fn end(&self, request_ids: &[RequestId]);

    /// Requests without a known outcome, oldest first. Those of calls that are still running are among them.
    fn unfinished(&self) -> Vec<Sent>;
}

/// Why a journal cannot do what it was asked to do. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Too many requests without a known outcome.
    #[error(
        "the request journal holds {open} requests without a known outcome, and takes {max}: resolve those that \
         `unfinished` lists before sending more"
    )]
    Full {
        /// How many there are.
        open: usize,
        /// How many it takes.
        max: usize,
    },
    /// A name does not fit into a record.
    #[error(
        "{what} has {bytes} bytes, more than the {max} that a request journal takes: nothing has such a name"
    )]
    TooLong {
        /// Which field.
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        max: usize,
    },
    /// Another process, or another journal of this one, has the file open.
    #[error("the request journal {} is in use: give each process a file of its own", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{} is not a request journal: name another file", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A record that was safe once is not readable. What a crash leaves behind looks different and is no error.
    #[error(
        "the request journal {} is damaged at byte {offset}: the disk or somebody changed it. Keep the file, look \
         at what it names (strings), and start with a new one",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the first unreadable record begins.
        offset: u64,
    },
    /// Reading or writing failed.
    #[error("the request journal {} failed ({doing}): {source}; nothing was sent", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It failed before in a way after which nobody knows what is on the disk.
    #[error(
        "the request journal {} failed earlier ({why}) and takes no more requests: open it again, which \
         reads what is really there",
        path.display()
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// What happened.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::region_of;

    #[test]
    fn every_resource_names_its_region() {
        assert_eq!(region_of("regions/north"), "regions/north");
        assert_eq!(region_of("regions/north/events/gala/holds/ga-h1"), "regions/north");
        assert_eq!(region_of("nonsense"), "nonsense");
        assert_eq!(region_of(""), "");
    }
}
