//! Changes as they come from a region, translated once for all who watch.

use std::collections::HashMap;

use prost::Message as _;
use tidewall_messages::Change;
use tidewall_mutant::{Mutant, active};
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;

use super::Place;
use crate::convert;
use crate::errors::ApiError;

/// Changes that follow each other.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Everything up to here comes before.
    pub(super) from: Place,
    /// With these changes, everything up to here was heard.
    pub(super) to: Place,
    /// About how many bytes they are.
    pub(super) bytes: usize,
    /// In order.
    pub(super) changes: Vec<Told>,
    /// By event, their numbers in that list.
    by_event: HashMap<String, Vec<usize>>,
}

/// One change.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) place: Place,
    pub(super) change: v1::Change,
}

impl Batch {
    /// The answer of a region that was asked for what comes behind `from`.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn new(region: &str, from: Place, to: Place, answer: &pb::Changes) -> Result<Self, ApiError> {
        /// About what a change takes beside its bytes, once it is translated.
        const TRANSLATED_BYTES: usize = 400;
        let mut batch = Self { from, to, bytes: 0, changes: Vec::new(), by_event: HashMap::new() };
        for entry in &answer.entries {
            batch.bytes += entry.changes.len();
            let mut rest = entry.changes.clone();
            let mut number = entry.first;
            while !rest.is_empty() {
                let change = Change::decode_length_delimited(&mut rest).map_err(|_| convert::mismatch())?;
                number = number.saturating_add(1);
                let place = Place { incarnation: to.incarnation, index: entry.index, changes: number };
                // What a later build tells is passed over, not what follows it.
                if let Some(shown) = convert::change(region, &change, place, entry.log_ms)? {
                    batch.bytes += TRANSLATED_BYTES + 2 * shown.encoded_len();
                    // Another module may call a row of its own the same.
                    if !shown.event.is_empty() {
                        batch.by_event.entry(change.row).or_default().push(batch.changes.len());
                    }
                    batch.changes.push(Told { place, change: shown });
                }
            }
        }
        Ok(batch)
    }

    /// The changes behind a place, of one event or of all.
    pub(super) fn behind<'a>(
        &'a self,
        heard: Place,
        event: Option<&str>,
    ) -> Box<dyn Iterator<Item = &'a Told> + Send + 'a> {
        let later = move |told: &&Told| {
            told.place > heard || active(Mutant::WatchRepeats) && told.place.index == heard.index
        };
        match event {
            None => Box::new(self.changes.iter().filter(later)),
            Some(event) => {
                let numbers = self.by_event.get(event).map(Vec::as_slice).unwrap_or_default();
                Box::new(numbers.iter().filter_map(|number| self.changes.get(*number)).filter(later))
            }
        }
    }
}
