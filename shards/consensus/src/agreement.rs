//! Whether the replicas of a group have the same rows.
//!
//! Each replica notes its state digest at *agreed indices*, the multiples of [`EVERY`], and where it stands still. Nodes
//! tell each other what they noted; [`Ledger::judge`] compares. One index with a majority for another
//! digest than ours means that this replica has diverged; one where no majority is possible any more, or none is
//! in sight while two replicas differ, means that nobody knows who is right. This module decides nothing
//! beyond that: it knows no network and stops nobody.

use std::collections::{BTreeMap, BTreeSet};

/// Digests are noted at multiples of this log index.
pub const EVERY: u64 = 64;
/// Notes kept of each replica.
const KEPT: usize = 128;
/// Newest notes told to the others at a time.
const TOLD: usize = 8;

/// A log index and the state digest at the end of its entry.
pub type Note = (u64, u128);

/// Digests of one replica, newest last.
#[derive(Debug, Default, Clone)]
pub struct Notes(BTreeMap<u64, u128>);

impl Notes {
    /// Notes a digest; the oldest goes when there are too many.
    pub fn add(&mut self, (index, digest): Note) {
        self.0.insert(index, digest);
        while self.0.len() > KEPT {
            self.0.pop_first();
        }
    }

    /// The newest ones.
    pub fn newest(&self) -> impl Iterator<Item = Note> + '_ {
        self.0.iter().rev().take(TOLD).map(|(index, digest)| (*index, *digest))
    }
}

/// What a comparison says about this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing speaks against it.
    Sound,
    /// A majority has other rows at this index: this replica must not serve.
    Diverged {
        /// The index.
        index: u64,
    },
    /// Replicas differ at this index and no digest has a majority: nobody may decide anything.
    Split {
        /// The index.
        index: u64,
    },
}

/// What a replica knows of its own digests and of those of the others.
#[derive(Debug, Default)]
pub struct Ledger {
    own: Notes,
    others: BTreeMap<u64, Notes>,
    /// Incarnation that all notes belong to.
    incarnation: u64,
}

impl Ledger {
    fn enter(&mut self, incarnation: u64) {
        if self.incarnation != incarnation {
            *self = Self { incarnation, ..Self::default() };
        }
    }

    /// Notes this replica's digest.
    pub fn note(&mut self, incarnation: u64, note: Note) {
        self.enter(incarnation);
        self.own.add(note);
    }

    /// Takes in what another replica told. Another incarnation's digests say nothing about ours.
    pub fn hear(&mut self, node: u64, incarnation: u64, notes: impl IntoIterator<Item = Note>) {
        if incarnation == self.incarnation {
            let known = self.others.entry(node).or_default();
            notes.into_iter().for_each(|note| known.add(note));
        }
    }

    /// What to tell the others: the newest notes.
    pub fn tell(&self) -> Vec<Note> {
        self.own.newest().collect()
    }

    /// Incarnation that the notes belong to.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Compares this replica, `me`, with the other `voters` wherever at least two were heard.
    pub fn judge(&self, me: u64, voters: &BTreeSet<u64>) -> Verdict {
        let majority = voters.len() / 2 + 1;
        let mut split = None;
        for (index, own) in self.own.0.iter().rev() {
            let mut votes: BTreeMap<u128, usize> = BTreeMap::new();
            if voters.contains(&me) {
                votes.insert(*own, 1);
            }
            let others = self.others.iter().filter(|(node, _)| **node != me && voters.contains(node));
            for digest in others.filter_map(|(_, notes)| notes.0.get(index)) {
                *votes.entry(*digest).or_default() += 1;
            }
            match votes.iter().find(|(_, count)| **count >= majority) {
                Some((digest, _)) if digest == own => {
                    // Newer agreement tells nothing about older notes: rows that differ may have been overwritten.
                }
                Some(_) => return Verdict::Diverged { index: *index },
                None if votes.len() > 1 => split = split.or(Some(*index)),
                None => {}
            }
        }
        split.map_or(Verdict::Sound, |index| Verdict::Split { index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOTERS: [u64; 3] = [1, 2, 3];

    fn ledger(own: &[Note], others: &[(u64, &[Note])]) -> Ledger {
        let mut ledger = Ledger::default();
        own.iter().for_each(|note| ledger.note(1, *note));
        for (node, notes) in others {
            ledger.hear(*node, 1, notes.iter().copied());
        }
        ledger
    }

    fn judge(own: &[Note], others: &[(u64, &[Note])]) -> Verdict {
        ledger(own, others).judge(1, &VOTERS.into())
    }

    #[test]
    fn equal_digests_are_sound_and_so_is_knowing_nothing() {
        assert_eq!(judge(&[(64, 7)], &[]), Verdict::Sound);
        assert_eq!(judge(&[(64, 7)], &[(2, &[(64, 7)]), (3, &[(64, 7)])]), Verdict::Sound);
        assert_eq!(judge(&[(64, 7)], &[(2, &[(128, 8)]), (3, &[(192, 9)])]), Verdict::Sound);
    }

    #[test]
    fn the_minority_sees_that_it_diverged_and_the_majority_goes_on() {
        let odd: &[Note] = &[(64, 7), (128, 1)];
        let even: &[Note] = &[(64, 7), (128, 2)];
        assert_eq!(judge(odd, &[(2, even), (3, even)]), Verdict::Diverged { index: 128 });
        assert_eq!(judge(even, &[(2, even), (3, odd)]), Verdict::Sound);
    }

    #[test]
    fn a_difference_that_was_overwritten_since_still_counts() {
        let odd: &[Note] = &[(64, 1), (128, 9)];
        let even: &[Note] = &[(64, 2), (128, 9)];
        assert_eq!(judge(odd, &[(2, even), (3, even)]), Verdict::Diverged { index: 64 });
    }

    #[test]
    fn without_a_majority_nobody_knows() {
        assert_eq!(judge(&[(64, 1)], &[(2, &[(64, 2)])]), Verdict::Split { index: 64 });
        assert_eq!(judge(&[(64, 1)], &[(2, &[(64, 2)]), (3, &[(64, 3)])]), Verdict::Split { index: 64 });
        // The third one settles it.
        assert_eq!(judge(&[(64, 1)], &[(2, &[(64, 2)]), (3, &[(64, 1)])]), Verdict::Sound);
    }

    #[test]
    fn learners_and_strangers_have_no_vote_but_a_learner_can_find_itself_wrong() {
        assert_eq!(judge(&[(64, 1)], &[(8, &[(64, 2)]), (9, &[(64, 2)])]), Verdict::Sound);
        let same: &[Note] = &[(64, 2)];
        let learner = ledger(&[(64, 1)], &[(1, same), (2, same)]);
        assert_eq!(learner.judge(9, &VOTERS.into()), Verdict::Diverged { index: 64 });
    }

    #[test]
    fn notes_of_another_incarnation_are_not_compared() {
        let mut ledger = ledger(&[(64, 1)], &[(2, &[(64, 2)]), (3, &[(64, 2)])]);
        ledger.note(2, (70, 5));
        ledger.hear(2, 1, [(70, 6)]);
        ledger.hear(3, 1, [(70, 6)]);
        assert_eq!(ledger.judge(1, &VOTERS.into()), Verdict::Sound);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut ledger = Ledger::default();
        for index in 0..10 * KEPT as u64 {
            ledger.note(1, (index, 1));
            ledger.hear(2, 1, [(index, 1)]);
        }
        assert_eq!((ledger.own.0.len(), ledger.others[&2].0.len()), (KEPT, KEPT));
        assert_eq!(ledger.tell().len(), TOLD);
    }
}
