//! The same seed gives the same run. One test, because a process runs one simulation at a time.
#![cfg(tokio_unstable)]

use std::collections::BTreeSet;
use tidewall_simulation::plan::Plan;
use tidewall_simulation::run::run;

/// What happens in the runs that are compared, between them.
const KINDS: [&str; 10] = [
    "crash",
    "cut",
    "gateway-crash",
    "lost-messages",
    "reset",
    "failing-disk",
    "node-replace",
    "old-state",
    "twin",
    "poison",
];

#[test]
fn the_same_seed_gives_the_same_trace_and_another_one_another() {
    let mut missing = BTreeSet::from(KINDS);
    let (mut traces, mut runs, mut halted) = (BTreeSet::new(), 0, 0);
    for seed in 0..100 {
        let plan = Plan::new(seed);
        if !plan.faults.iter().any(|(_, fault)| missing.contains(fault.kind())) {
            continue;
        }
        let (first, second) = (run(seed, false), run(seed, false));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(first.violations, [], "seed {seed}");
        traces.insert(first.trace);
        runs += 1;
        missing.retain(|kind| !first.tally.contains_key(kind));
        halted += first.halted;
    }
    assert_eq!(missing, BTreeSet::new(), "is planned, and never happens");
    assert_eq!(traces.len(), runs);
    assert!(halted > 0, "the poison entry halts its group");
}
