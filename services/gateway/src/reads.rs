//! How fresh a caller wants its answers to be, and how far it has seen the regions: what makes reads at different gateways and
//! replicas go forwards only. The gateway keeps nothing of it: the caller brings it along as metadata, and gets more of it back.

use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;
use tidewall_client::Topology;
use tidewall_proto::{Seen, v1};
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

use crate::errors::ApiError;

/// The metadata that says how far a caller has seen the regions, as `{region}={incarnation}.{index}.{time}`, with commas between.
pub(crate) const SEEN: &str = "tidewall-seen";

/// Reads at standbys that a gateway may have under way.
pub(crate) const READS_MAX: usize = 2_048;
/// How old an answer may be when its caller does not say.
const AGE: Duration = Duration::from_secs(10);

/// How fresh an answer must be, and whether it must not show less than its caller has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Reading {
    /// How old it may be; `None`: it is the latest.
    pub(crate) age: Option<Duration>,
    pub(crate) session: bool,
}

impl Reading {
    /// What a request asks for.
    ///
    /// # Errors
    /// A consistency that this build does not have, or an age that makes no sense.
    pub(crate) fn of(consistency: i32, age: Option<prost_types::Duration>) -> Result<Self, ApiError> {
        let session = match v1::ReadConsistency::try_from(consistency) {
            // A number that no build knows yet must not be taken for something else.
            Err(_) => {
                let why = "is not a consistency that this server has: use LINEARIZABLE, SESSION or STALE";
                return Err(ApiError::field("consistency", why));
            }
            Ok(v1::ReadConsistency::Unspecified | v1::ReadConsistency::Linearizable) => {
                if age.is_some() {
                    let why = "is for SESSION and STALE: what is LINEARIZABLE has no age";
                    return Err(ApiError::field("max_age", why));
                }
                return Ok(Self::default());
            }
            Ok(v1::ReadConsistency::Session) => true,
            Ok(v1::ReadConsistency::Stale) => false,
        };
        let age = match age.map(Duration::try_from) {
            None => AGE,
            Some(Ok(age)) => age,
            Some(Err(_)) => return Err(ApiError::field("max_age", "is not a duration of 0 s or more")),
        };
        Ok(Self { age: Some(age), session })
    }
}

/// How far a caller has seen the regions, by group.
#[derive(Debug, Default)]
pub(crate) struct SeenRegions(Mutex<Vec<SeenRegion>>);

#[derive(Debug)]
struct SeenRegion {
    group: u32,
    /// What it brought along, and what it sees by its call.
    seen: Seen,
    /// What it sees by its call.
    by_call: Seen,
}

impl SeenRegions {
    /// What a caller brings along. Regions that this cluster does not have are left out.
    ///
    /// # Errors
    /// It is not what an answer has carried.
    pub(crate) fn brought(metadata: &MetadataMap, topology: &Topology) -> Result<Self, ApiError> {
        let seen = Self::default();
        for value in metadata.get_all(SEEN) {
            let wrong = || ApiError::field(SEEN, "is not what an answer has carried: send it as it came");
            for part in value.to_str().map_err(|_| wrong())?.split(',').map(str::trim) {
                let (region, come) = part.split_once('=').ok_or_else(wrong)?;
                let come = come.parse().map_err(|_| wrong())?;
                if let Some(known) = topology.regions.iter().find(|known| known.id == region) {
                    seen.and(known.group, come, Seen::default());
                }
            }
        }
        Ok(seen)
    }

    /// Notes that something of a region was seen.
    pub(crate) fn note(&self, group: u32, seen: Seen) {
        self.and(group, seen, seen);
    }

    fn and(&self, group: u32, seen: Seen, by_call: Seen) {
        let mut regions = self.0.lock();
        match regions.iter_mut().find(|known| known.group == group) {
            Some(known) => {
                (known.seen, known.by_call) = (known.seen.and(seen), known.by_call.and(by_call));
            }
            None => regions.push(SeenRegion { group, seen, by_call }),
        }
    }

    /// What a read of a region must not go back behind: what was seen before, when that is asked for; in any case what the same
    /// call has shown.
    pub(crate) fn least(&self, group: u32, reading: Reading) -> Seen {
        let regions = self.0.lock();
        let known = regions.iter().find(|known| known.group == group);
        known.map_or_else(Seen::default, |known| if reading.session { known.seen } else { known.by_call })
    }

    /// What the caller takes along.
    pub(crate) fn value(&self, topology: &Topology) -> Option<AsciiMetadataValue> {
        let mut text = String::new();
        for SeenRegion { group, seen, .. } in self.0.lock().iter() {
            let Some(region) = topology.regions.iter().find(|region| region.group == *group) else {
                continue;
            };
            let comma = if text.is_empty() { "" } else { "," };
            // Writing to a string does not fail.
            let _ = write!(text, "{comma}{}={seen}", region.id);
        }
        AsciiMetadataValue::try_from(text).ok().filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tidewall_client::topology::Region;

    use super::*;

    fn topology() -> Topology {
        let region = |id: &str, group| Region { id: id.into(), display_name: id.into(), group };
        Topology::new([7; 16], vec![region("north", 1), region("south", 2)], Vec::new())
    }

    fn brought(texts: &[&str]) -> Result<SeenRegions, ApiError> {
        let mut metadata = MetadataMap::new();
        for text in texts {
            metadata.append(SEEN, text.parse().unwrap());
        }
        SeenRegions::brought(&metadata, &topology())
    }

    fn text(seen: &SeenRegions) -> String {
        seen.value(&topology()).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    }

    #[test]
    fn what_was_seen_goes_round_and_grows() {
        let seen = brought(&[]).unwrap();
        assert_eq!(text(&seen), "");
        seen.note(2, Seen { incarnation: 1, index: 5, steady_ms: 70 });
        assert_eq!(text(&seen), "south=1.5.70");
        let seen = brought(&["south=1.5.70"]).unwrap();
        let (session, stale) = (Reading { age: None, session: true }, Reading::default());
        assert_eq!(seen.least(2, session), Seen { incarnation: 1, index: 5, steady_ms: 70 });
        assert_eq!((seen.least(2, stale), seen.least(1, session)), (Seen::default(), Seen::default()));
        seen.note(1, Seen { incarnation: 3, index: 9, steady_ms: 0 });
        seen.note(2, Seen { incarnation: 1, index: 4, steady_ms: 80 });
        assert_eq!(text(&seen), "south=1.5.80,north=3.9.0");
        assert_eq!(seen.least(2, stale).index, 4, "within a call nothing goes back");
        // Whoever keeps several, of calls that ran at the same time, sends them all.
        let seen = brought(&["south=1.5.70,north=3.9.0", "south=1.7.60, east=1.1.1"]).unwrap();
        assert_eq!(text(&seen), "south=1.7.70,north=3.9.0");
    }

    #[test]
    fn what_no_answer_has_carried_is_refused() {
        for wrong in ["", "north", "north=1", "north=1.2", "north=1.2.x", "north=-1.2.3", ","] {
            assert!(brought(&[wrong]).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn ages_are_for_what_may_be_old() {
        use v1::ReadConsistency::{Linearizable, Session, Stale, Unspecified};
        let of = |consistency: v1::ReadConsistency, age: Option<(i64, i32)>| {
            let age = age.map(|(seconds, nanos)| prost_types::Duration { seconds, nanos });
            Reading::of(consistency.into(), age).ok()
        };
        let within = |age, session| Some(Reading { age: Some(age), session });
        assert_eq!(of(Unspecified, None), Some(Reading::default()));
        assert_eq!(of(Linearizable, None), Some(Reading::default()));
        assert_eq!(of(Linearizable, Some((1, 0))), None);
        assert_eq!(of(Session, None), within(AGE, true));
        assert_eq!(of(Stale, Some((0, 1_000_000))), within(Duration::from_millis(1), false));
        assert_eq!(of(Stale, Some((-1, 0))), None);
        assert!(Reading::of(99, None).is_err());
    }
}
