//! Which groups of a node are due for a checkpoint. Pure: loads and times come in as arguments.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// A checkpoint is due after so many bytes of commands.
const BYTES: u64 = 16 << 20;
/// Or after so long, when anything has changed.
const AGE: Duration = Duration::from_secs(60);
/// A restart shall not have to apply more than this again, over all groups of the node, as apply is measured here: at half
/// of it checkpoints are due, beyond it new work is refused.
pub(crate) const REPLAY_MAX: Duration = Duration::from_secs(5);

/// What a group's checkpoint does not cover.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Behind {
    /// Index of the checkpoint.
    pub index: u64,
    /// Bytes of commands since.
    pub bytes: u64,
    /// Pages that changed since.
    pub pages: u64,
    /// How long it would take to apply them again.
    pub replay: Duration,
    /// Up to which index the group should let go of the log, if it should.
    pub pinned: Option<u64>,
}

/// Since when each group has had its checkpoint, and its index.
#[derive(Default)]
pub(crate) struct Ages(BTreeMap<u32, (Instant, u64)>);

impl Ages {
    /// The groups that are due, of those that may take checkpoints on a node that has `replicas` of them.
    pub(crate) fn due(&mut self, behind: &BTreeMap<u32, Behind>, replicas: usize, now: Instant) -> Vec<u32> {
        let total: Duration = behind.values().map(|group| group.replay).sum();
        // The share of a group that is behind as much as the average when a checkpoint is due.
        let share = REPLAY_MAX / 2 / replicas.max(1) as u32;
        let mut due = Vec::new();
        for (number, group) in behind {
            let (since, index) = self.0.entry(*number).or_insert((now, group.index));
            if *index != group.index {
                (*since, *index) = (now, group.index);
            }
            let aged = group.pages > 0 && now.saturating_duration_since(*since) > AGE;
            let pins = group.pinned.is_some_and(|upto| upto > group.index);
            let slow = total > REPLAY_MAX / 2 && group.replay > share && group.bytes > 0;
            if group.bytes > BYTES || aged || pins || slow {
                due.push(*number);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Behind = Behind { index: 10, bytes: 0, pages: 0, replay: Duration::ZERO, pinned: None };

    /// Which of these groups are due, numbered from 1, so many seconds after they were looked at first.
    fn due(groups: &[Behind], after_s: u64) -> Vec<u32> {
        let (mut ages, began) = (Ages::default(), Instant::now());
        let groups: BTreeMap<u32, Behind> = (1..).zip(groups.iter().copied()).collect();
        ages.due(&groups, groups.len(), began);
        ages.due(&groups, groups.len(), began + Duration::from_secs(after_s))
    }

    #[test]
    fn a_checkpoint_is_due_after_much_work_and_after_a_while() {
        assert_eq!(due(&[Behind { bytes: BYTES, ..IDLE }, Behind { bytes: BYTES + 1, ..IDLE }], 1), [2]);
        let changed = Behind { pages: 1, ..IDLE };
        assert_eq!(due(&[changed, IDLE], 60), [0; 0]);
        assert_eq!(due(&[changed, IDLE], 61), [1], "nothing has changed in the other one");
    }

    #[test]
    fn a_new_checkpoint_is_young_again() {
        let (mut ages, began) = (Ages::default(), Instant::now());
        let mut at = |index, s| {
            let group = BTreeMap::from([(1, Behind { index, pages: 5, ..IDLE })]);
            !ages.due(&group, 1, began + Duration::from_secs(s)).is_empty()
        };
        assert!(!at(10, 0));
        assert!(at(10, 61));
        assert!(!at(20, 61), "it was taken");
        assert!(!at(20, 121));
        assert!(at(20, 122));
    }

    #[test]
    fn who_pins_old_segments_is_due_unless_its_checkpoint_lets_them_go_already() {
        let pinning = |upto| Behind { pinned: Some(upto), ..IDLE };
        assert_eq!(due(&[pinning(10), pinning(11)], 1), [2]);
    }

    #[test]
    fn checkpoints_are_due_where_most_would_have_to_be_applied_again() {
        let takes = |ms| Behind { bytes: 1, replay: Duration::from_millis(ms), ..IDLE };
        assert_eq!(due(&[takes(2_400), takes(100)], 1), [0; 0], "half of what is allowed is not reached");
        assert_eq!(due(&[takes(2_400), takes(101)], 1), [1], "the other one has less than its share");
        assert_eq!(due(&[takes(1_251), takes(1_251)], 1), [1, 2]);
        let covered = Behind { bytes: 0, ..takes(3_000) };
        assert_eq!(due(&[covered], 1), [0; 0], "a checkpoint would cover nothing more");
    }
}
