//! The time of a group: what its log makes of the clocks of its actives. Pure.
//!
//! Two times pass together. *Steady time* never goes back and is never corrected: what lasts is kept in it (holds, how long
//! outcomes are remembered). *Log time* is steady time plus an offset: what is compared with times that clocks and people
//! outside the group set (expiries, request ids, opening hours). When log time was found to be ahead of the world, a *rebase*
//! changes the offset alone: writes go on at once, and no hold ends early or late for it.
//!
//! A stamp that leaps ahead of log time moves nothing until the clocks of a majority of the nodes have confirmed it: until
//! then, time passes as that clock passes, from where log time stands.

use tidewall_domain::codec::{DecodeError, Reader, Writer};
use tidewall_messages::Seen;

/// A stamp that is further ahead of log time than this is a leap, milliseconds.
pub const LEAP_MS_MIN: u64 = 5_000;

/// A reading of a node's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Unix milliseconds.
    pub ms: u64,
    /// The clocks of a majority of the nodes agree with it.
    pub confirmed: bool,
}

impl Stamp {
    /// A reading that a majority confirms.
    pub fn confirmed(ms: u64) -> Self {
        Self { ms, confirmed: true }
    }

    /// A reading that nobody has confirmed.
    pub fn unconfirmed(ms: u64) -> Self {
        Self { ms, confirmed: false }
    }
}

/// The time as of which somebody looks at rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AsOf {
    /// What the clock of the node shows.
    pub stamp: Stamp,
    /// What was seen before: the time does not go back behind it.
    pub seen: Seen,
}

impl From<Stamp> for AsOf {
    fn from(stamp: Stamp) -> Self {
        Self { stamp, seen: Seen::default() }
    }
}

/// Where a group's time stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupTime {
    /// Steady time, milliseconds. As log time until the first rebase.
    pub steady_ms: u64,
    /// Log time less steady time, milliseconds.
    pub offset_ms: i64,
    /// The last stamp that leapt and was not confirmed.
    pub(crate) leapt_ms: Option<u64>,
    /// How often log time was corrected.
    pub rebases: u32,
    /// Log index of the last correction; 0 when there was none.
    pub rebased_at: u64,
}

impl GroupTime {
    /// Log time, Unix milliseconds.
    pub fn log_ms(&self) -> u64 {
        self.steady_ms.saturating_add_signed(self.offset_ms)
    }

    /// Log time at which steady time will be `steady_ms`.
    pub fn log_ms_at(&self, steady_ms: u64) -> u64 {
        steady_ms.saturating_add_signed(self.offset_ms)
    }

    /// Whether time passes from where it stood, because nobody has confirmed a stamp that leapt.
    pub fn is_leap_unconfirmed(&self) -> bool {
        self.leapt_ms.is_some()
    }

    /// The time as it is when a clock shows this.
    #[must_use]
    pub fn at(self, stamp: Stamp) -> Self {
        let now_ms = self.log_ms();
        let begins = self.steady_ms == 0;
        let leaps = !begins && stamp.ms > now_ms.saturating_add(LEAP_MS_MIN);
        let (passed_ms, leapt_ms) = if !leaps || stamp.confirmed {
            (stamp.ms.saturating_sub(now_ms), None)
        } else {
            let passed_ms = self.leapt_ms.map_or(0, |leapt_ms| stamp.ms.saturating_sub(leapt_ms));
            (passed_ms.min(LEAP_MS_MIN), Some(stamp.ms))
        };
        Self { steady_ms: self.steady_ms.saturating_add(passed_ms), leapt_ms, ..self }
    }

    /// The time after a correction: it was ahead, and is `log_ms`. `None` when it is not ahead.
    pub(crate) fn rebased(self, log_ms: u64, index: u64) -> Option<Self> {
        if log_ms >= self.log_ms() {
            return None;
        }
        let offset_ms = self.offset_ms.checked_sub_unsigned(self.log_ms() - log_ms)?;
        let rebases = self.rebases + 1;
        Some(Self { offset_ms, leapt_ms: None, rebases, rebased_at: index, ..self })
    }

    /// The time of rows that come from elsewhere, in a group where it is `here`: log time stays as it is here, and what
    /// passed between the two has passed for the rows.
    pub(crate) fn moved_to(self, here: Self) -> Self {
        let passed_ms = here.log_ms().saturating_sub(self.log_ms());
        let steady_ms = self.steady_ms.saturating_add(passed_ms);
        let offset_ms = i128::from(here.log_ms()) - i128::from(steady_ms);
        Self {
            steady_ms,
            offset_ms: i64::try_from(offset_ms).unwrap_or(i64::MIN),
            leapt_ms: here.leapt_ms,
            rebases: here.rebases,
            rebased_at: here.rebased_at,
        }
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        w.u64(self.steady_ms);
        // Zigzag: small numbers of either sign are short.
        w.u64(((self.offset_ms << 1) ^ (self.offset_ms >> 63)).cast_unsigned());
        w.option(self.leapt_ms.as_ref(), |w, ms| w.u64(*ms));
        w.u32(self.rebases);
        w.u64(self.rebased_at);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let steady_ms = r.u64()?;
        let folded = r.u64()?;
        let offset_ms = (folded >> 1).cast_signed() ^ -(folded & 1).cast_signed();
        let leapt_ms = r.option(Reader::u64)?;
        Ok(Self { steady_ms, offset_ms, leapt_ms, rebases: r.u32()?, rebased_at: r.u64()? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const T0: u64 = 1_700_000_000_000;
    const MINUTES: u64 = 60_000;

    fn begun() -> GroupTime {
        GroupTime::default().at(Stamp::unconfirmed(T0))
    }

    #[test]
    fn time_begins_with_the_first_stamp_and_never_goes_back() {
        let time = begun();
        assert_eq!((time.log_ms(), time.steady_ms), (T0, T0));
        assert_eq!(time.at(Stamp::confirmed(T0 - 1)), time);
        assert_eq!(time.at(Stamp::unconfirmed(T0 + LEAP_MS_MIN)).log_ms(), T0 + LEAP_MS_MIN);
    }

    #[test]
    fn a_leap_counts_when_a_majority_confirms_it() {
        let hour = T0 + 60 * MINUTES;
        assert_eq!(begun().at(Stamp::confirmed(hour)).log_ms(), hour);
        let leapt = begun().at(Stamp::unconfirmed(hour));
        assert_eq!((leapt.log_ms(), leapt.is_leap_unconfirmed()), (T0, true));
        // Until then, time passes as that clock does.
        let later = leapt.at(Stamp::unconfirmed(hour + 700));
        assert_eq!(later.log_ms(), T0 + 700);
        let much_later = later.at(Stamp::unconfirmed(hour + 700 + 9 * MINUTES));
        assert_eq!(much_later.log_ms(), T0 + 700 + LEAP_MS_MIN, "a leap of the leap");
        // Somebody with a right clock leads: it goes on as if nothing had been.
        let right = much_later.at(Stamp::unconfirmed(T0 + 8_000));
        assert_eq!((right.log_ms(), right.is_leap_unconfirmed()), (T0 + 8_000, false));
        assert_eq!(much_later.at(Stamp::confirmed(hour + 10 * MINUTES)).log_ms(), hour + 10 * MINUTES);
    }

    #[test]
    fn a_rebase_corrects_log_time_and_leaves_steady_time_alone() {
        let ahead = begun().at(Stamp::confirmed(T0 + 10 * MINUTES));
        assert_eq!(ahead.rebased(T0 + 10 * MINUTES, 9), None, "nothing to correct");
        let right = ahead.rebased(T0 + 3_000, 9).unwrap();
        assert_eq!((right.log_ms(), right.steady_ms), (T0 + 3_000, ahead.steady_ms));
        let later = right.at(Stamp::confirmed(T0 + 5_000));
        assert_eq!((later.log_ms(), later.steady_ms), (T0 + 5_000, ahead.steady_ms + 2_000));
        assert_eq!(right.log_ms_at(right.steady_ms + 50), T0 + 3_050);
    }

    #[test]
    fn time_that_passed_elsewhere_has_passed_and_time_from_the_future_has_not() {
        let file = begun();
        let here = begun().at(Stamp::confirmed(T0 + 10 * MINUTES)).rebased(T0 + MINUTES, 9).unwrap();
        let moved = file.moved_to(here);
        assert_eq!((moved.log_ms(), moved.steady_ms), (T0 + MINUTES, T0 + MINUTES));
        let from_the_future = begun().at(Stamp::confirmed(T0 + 60 * MINUTES)).moved_to(here);
        assert_eq!((from_the_future.log_ms(), from_the_future.steady_ms), (T0 + MINUTES, T0 + 60 * MINUTES));
    }

    proptest! {
        /// Steady time never goes back; nothing that is not confirmed moves it by more than the clock that stamps or by a
        /// leap's least length; log time is steady time plus an offset that only a rebase changes.
        #[test]
        fn steady_time_is_steady(stamps in proptest::collection::vec((0..40 * MINUTES, any::<bool>()), 1..40)) {
            let mut time = begun();
            let mut last: Option<u64> = None;
            for (after, confirmed) in stamps {
                let stamp = Stamp { ms: T0 + after, confirmed };
                let next = time.at(stamp);
                prop_assert!(next.steady_ms >= time.steady_ms);
                prop_assert_eq!(next.offset_ms, time.offset_ms);
                if !confirmed {
                    prop_assert!(next.steady_ms - time.steady_ms <= LEAP_MS_MIN);
                } else {
                    prop_assert_eq!(next.log_ms(), time.log_ms().max(stamp.ms));
                }
                let mut w = Writer::new();
                next.encode(&mut w);
                prop_assert_eq!(GroupTime::decode(&mut Reader::new(w.as_slice())).unwrap(), next);
                last = Some(stamp.ms);
                time = next;
            }
            if let Some(rebased) = last.and_then(|ms| time.rebased(ms, 9)) {
                let mut w = Writer::new();
                rebased.encode(&mut w);
                prop_assert_eq!(GroupTime::decode(&mut Reader::new(w.as_slice())).unwrap(), rebased);
                prop_assert_eq!(rebased.steady_ms, time.steady_ms);
            }
        }
    }
}
