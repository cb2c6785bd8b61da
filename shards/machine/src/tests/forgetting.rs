//! What is forgotten under the byte cap, whose it is, and that nothing forgotten is ever decided again.

use super::*;
use crate::dedupe::share_of;

/// An outcome of these tests costs about this much.
const ONE: u64 = 300;

fn asked(principal: &str, n: u64, ms: u64) -> Command {
    Command::asking(principal, id(ms, n), ms + 5_000, &buy(1))
}

/// A group with a large event that remembers about `outcomes`.
fn remembering(outcomes: u64) -> Log {
    let mut log = Log { machine: Machine::remembering(outcomes * ONE), entries: Vec::new() };
    let Some(tickets::command::Op::CreateEvent(mut create)) = create().op else { panic!() };
    (create.tiers[0].capacity, create.quota_per_buyer) = (1_000_000, 100_000);
    log.entry(T0, vec![command(0, create.into())]);
    log
}

fn known(log: &Log, principal: &str, n: u64, ms: u64) -> bool {
    log.machine.outcome(principal, id(ms, n)).is_some()
}

#[test]
fn who_decides_the_most_is_forgotten_first_and_pushes_nobody_out() {
    let mut log = remembering(200);
    assert_ne!(share_of("flood"), share_of("quiet"));
    for n in 0..20 {
        log.one(T0 + n, asked("quiet", n, T0 + n));
    }
    let mut now = T0 + 100;
    for n in 0..1_000 {
        now += 1;
        log.one(now, asked("flood", n, now));
    }
    for n in 0..20 {
        assert!(known(&log, "quiet", n, T0 + n), "outcome {n} was pushed out");
        let again = log.one(now, asked("quiet", n, T0 + n));
        assert!(again.replayed);
    }
    assert!(!known(&log, "flood", 0, T0 + 101) && known(&log, "flood", 999, now));
    assert!(log.machine.forgotten("flood", id(T0 + 101, 0)) && !log.machine.forgotten("quiet", id(T0, 0)));
    // What was forgotten is refused, not decided again; and whoever else is of that time is not.
    let mut copy = asked("flood", 0, T0 + 101);
    copy.expires_ms = now + 5_000;
    assert_eq!(reason(&log.one(now, copy)), "IdForgotten");
    let mut late = asked("quiet", 77, T0 + 101);
    late.expires_ms = now + 5_000;
    assert_eq!(reason(&log.one(now, late)), "done");
}

#[test]
fn without_anybody_who_has_too_much_the_oldest_of_all_go() {
    let mut log = remembering(200);
    for n in 0..400 {
        log.one(T0 + n, asked(&format!("buyer-{n}"), n, T0 + n));
    }
    assert!(log.machine.shares_forgotten() == 0, "nobody had too much");
    assert!(!known(&log, "buyer-0", 0, T0) && known(&log, "buyer-399", 399, T0 + 399));
    assert!(log.machine.forgotten("anybody", id(T0, 1)));
}

impl Machine {
    fn rows_in(&self, table: u16) -> usize {
        self.freeze_all().pages.iter().filter(|page| page.table() == table).map(|page| page.rows()).sum()
    }

    /// Shares that were forgotten beyond the others.
    fn shares_forgotten(&self) -> usize {
        self.rows_in(14)
    }

    /// Outcomes that are remembered.
    fn outcomes(&self) -> usize {
        self.rows_in(11)
    }
}

/// What large shares lost before its turn must not cost those who come later their turn.
#[test]
fn gaps_that_a_flood_has_left_do_not_keep_others_from_being_forgotten() {
    let mut log = remembering(400);
    let mut now = T0;
    // Between any two outcomes of others lie many of the flood, which go before their turn.
    for n in 0..300 {
        now += 1;
        let flood = (0..40).map(|m| asked("flood", n * 100 + m, now));
        log.entry(now, flood.chain([asked(&format!("early-{n}"), n * 100 + 50, now)]).collect());
    }
    let most = log.machine.outcomes();
    for n in 0..60 {
        now += 1;
        let small = (0..20).map(|m| asked(&format!("late-{n}-{m}"), 1_000_000 + n * 100 + m, now));
        log.entry(now, small.collect());
    }
    let left = log.machine.outcomes();
    assert!(left <= most + 20, "{left} outcomes are remembered, {most} were after the flood");
}

/// Ids that are ahead of the clock cannot be forgotten yet; they must not keep everything else from it.
#[test]
fn a_principal_with_ids_from_the_future_keeps_nobody_elses_outcomes_from_being_forgotten() {
    let mut log = remembering(400);
    let mut now = T0;
    for n in 0..400 {
        now += 1;
        let ahead = now + ID_AHEAD_MS_MAX - 1_000;
        let fast = (0..2).map(|m| Command { expires_ms: now + 5_000, ..asked("fast", n * 10 + m, ahead) });
        let others = (0..4).map(|m| asked(&format!("buyer-{n}-{m}"), n * 10 + 5 + m, now));
        log.entry(now, fast.chain(others).collect());
    }
    // 800 of the fast one stay, because their time has not come; of the others no more than have room, and a few.
    let kept = (0..400).flat_map(|n| (0..4).map(move |m| (n, m)));
    let others =
        kept.filter(|(n, m)| known(&log, &format!("buyer-{n}-{m}"), n * 10 + 5 + m, T0 + n + 1)).count();
    assert!(others < 200, "{others} outcomes of others are remembered, {} in all", log.machine.outcomes());
    for n in [0, 399] {
        let ahead = T0 + n + 1 + ID_AHEAD_MS_MAX - 1_000;
        assert!(known(&log, "fast", n * 10, ahead), "what is ahead of the clock was forgotten");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever is asked by whom and in which order: nothing is decided twice under one id, what is remembered stays under the cap
    /// and comes back from the pages, and who asks little is remembered.
    #[test]
    fn nothing_that_was_forgotten_is_decided_again(
        asks in proptest::collection::vec((0..4usize, 0..600u64, 0..4u64, any::<bool>()), 100..500),
    ) {
        let mut log = remembering(60);
        let who = ["flood", "flood", "flood", "quiet"];
        let mut decided = std::collections::BTreeSet::new();
        let mut now = T0;
        for (at, (of, n, passes, again)) in asks.iter().enumerate() {
            now += passes;
            let n = if *again { *n } else { 1_000 + at as u64 };
            // Ids up to a minute ahead of log time, and some of the past.
            let ms = if *again { T0 + n * 40 } else { now };
            if ms > now + ID_AHEAD_MS_MAX { continue; }
            let ask = Command { expires_ms: now + 5_000, ..asked(who[*of], n, ms) };
            let decision = log.one(now, ask);
            if reason(&decision) == "done" && !decision.replayed {
                prop_assert!(decided.insert((who[*of], n)), "{} {n} was decided twice", who[*of]);
            }
        }
        // A few entries have room to forget what the last ones brought.
        for _ in 0..4 { log.one(now, tick()); }
        let quiet: u64 = decided.iter().filter(|(who, _)| *who == "quiet").count() as u64;
        if quiet * ONE < 60 * ONE / 8 {
            let lost = decided.iter().filter(|(who, n)| *who == "quiet" && {
                let ms = T0 + n * 40;
                *n < 1_000 && !known(&log, "quiet", *n, ms)
            });
            prop_assert_eq!(lost.count(), 0);
        }
        let loaded = {
            let frozen = log.machine.freeze_all();
            let mut loader = Machine::loader();
            for page in &frozen.pages { loader.page(page.table(), &page.encode().unwrap()).unwrap(); }
            loader.finish(frozen.head.clone(), frozen.digest).unwrap()
        };
        prop_assert_eq!(loaded.digest(), log.machine.digest());
        for (who, n) in &decided {
            let ms = T0 + n * 40;
            prop_assert_eq!(loaded.outcome(who, id(ms, *n)), log.machine.outcome(who, id(ms, *n)));
        }
    }
}
