//! The same seed gives the same run. One test, because a process runs one simulation at a time.
#![cfg(tokio_unstable)]

use tidewall_simulation::run::run;

#[test]
fn the_same_seed_gives_the_same_trace_and_another_one_another() {
    // Between them: crashes of nodes and gateways, cuts, lost messages and resets, slow and failing disks, a replaced node,
    // a poison entry, and nothing at all.
    let seeds = [33, 45, 48, 54];
    let mut traces = std::collections::BTreeSet::new();
    let (mut kinds, mut halted) = (std::collections::BTreeSet::new(), 0);
    for seed in seeds {
        let (first, second) = (run(seed, false), run(seed, false));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(first.violations, [], "seed {seed}");
        assert!(first.calls > 50, "seed {seed} hardly asked anything: {} calls", first.calls);
        traces.insert(first.trace);
        kinds.extend(first.tally.into_keys());
        halted += first.halted;
    }
    assert_eq!(traces.len(), seeds.len());
    for kind in
        ["crash", "cut", "gateway-crash", "lost-messages", "reset", "failing-disk", "node-replace", "poison"]
    {
        assert!(kinds.contains(kind), "{kind} is not among {kinds:?}: choose other seeds");
    }
    assert_eq!(halted, 1, "the poison entry halts its group");
}
