//! How far this client has seen the regions. Answers say it, reads bring it along: so no read with SESSION shows less than an
//! earlier answer did, whichever gateway and replica gives it.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tidewall_proto::Seen;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

/// The metadata that carries it.
pub(crate) const SEEN: &str = "tidewall-seen";

/// How far the regions were seen, by their ids.
#[derive(Debug, Default)]
pub(crate) struct SeenRegions(Mutex<BTreeMap<String, Seen>>);

impl SeenRegions {
    /// Notes what an answer says. Answers of calls that ran at the same time come in any order.
    pub(crate) fn note(&self, metadata: &MetadataMap) {
        let Some(text) = metadata.get(SEEN).and_then(|value| value.to_str().ok()) else { return };
        let mut regions = self.0.lock();
        for (region, seen) in text.split(',').filter_map(|part| part.split_once('=')) {
            // What a later service says in other words is left out.
            let Ok(seen) = seen.parse::<Seen>() else { continue };
            match regions.get_mut(region) {
                Some(known) => *known = known.and(seen),
                None => drop(regions.insert(region.to_owned(), seen)),
            }
        }
    }

    /// What a read brings along; `None`: nothing was seen yet.
    pub(crate) fn value(&self) -> Option<AsciiMetadataValue> {
        let regions = self.0.lock();
        let parts: Vec<String> = regions.iter().map(|(region, seen)| format!("{region}={seen}")).collect();
        parts.join(",").try_into().ok().filter(|_| !parts.is_empty())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_seen_never_falls() {
        let seen = SeenRegions::default();
        assert_eq!(seen.value(), None);
        for text in ["north=1.5.70", "south=2.1.9,north=1.7.60", "north=1.6.65", "garbage,north=x,=,east=1"] {
            let mut metadata = MetadataMap::new();
            metadata.insert(SEEN, text.parse().unwrap());
            seen.note(&metadata);
        }
        seen.note(&MetadataMap::new());
        assert_eq!(seen.value().unwrap(), "north=1.7.70,south=2.1.9");
    }
}
