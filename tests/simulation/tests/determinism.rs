//! The same seed gives the same run. One test, because a process runs one simulation at a time.
#![cfg(tokio_unstable)]

use tidewall_simulation::plan::Plan;
use tidewall_simulation::run::run;

#[test]
fn the_same_seed_gives_the_same_trace_and_another_one_another() {
    // Between them: crashes of one and of all, cuts, slow and failing disks, checkpoints.
    let seeds = [1, 5, 12, 19];
    let mut traces = std::collections::BTreeSet::new();
    for seed in seeds {
        let (first, second) = (run(seed, false), run(seed, false));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(first.violations, [], "seed {seed}");
        assert!(first.calls > 50, "seed {seed} hardly asked anything: {} calls", first.calls);
        traces.insert(first.trace);
    }
    assert_eq!(traces.len(), seeds.len());
    assert!(seeds.iter().map(|seed| Plan::new(*seed).faults.len()).sum::<usize>() > 10);
}
