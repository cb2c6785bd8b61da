//! The short form of chaos: `./chaos run` with a few faults of the kinds that need no special rights. The full
//! counts, and the kinds that need root, are in docs/CHAOS.md.

use std::time::Duration;

use serde_json::Value;
use tidewall_e2e::process::{built, run_program};

use crate::alone;

/// How long all of it may take: a bound for a busy machine, an order of magnitude above what is normal.
const DONE_WITHIN: Duration = Duration::from_secs(600);

async fn chaos(arguments: &'static [&'static str]) -> (Option<i32>, Value, String) {
    let all = [&["run", "-o", "json"], arguments].concat();
    let program = built("tidewall-chaos").unwrap();
    let run = move || run_program(&program, &all, DONE_WITHIN);
    let output = tokio::task::spawn_blocking(run).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("standard output is no JSON ({error}); the run said: {said}"));
    (output.status.code(), report, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn promises_are_kept_while_processes_die_and_leads_move() {
    let _alone = alone().await;
    let runs: [(&str, u64, &'static [&'static str]); 4] = [
        ("leader-kill", 2, &["--scenario", "leader-kill", "--count", "2"]),
        ("transfer", 10, &["--scenario", "transfer", "--count", "10"]),
        ("cluster-kill", 1, &["--scenario", "cluster-kill", "--count", "1"]),
        ("drain-restart", 1, &["--scenario", "drain-restart", "--count", "1"]),
    ];
    for (name, count, arguments) in runs {
        let (code, report, said) = chaos(arguments).await;
        assert_eq!(code, Some(0), "{name}: {report:#}\n{said}");
        let scenario = &report["scenarios"][0];
        assert_eq!((&scenario["scenario"], &scenario["faults"]), (&name.into(), &count.into()));
        // Checkers that had nothing to look at would be satisfied, too.
        let verdicts = scenario["verdicts"].as_array().unwrap();
        assert!(verdicts.len() >= 9, "{verdicts:?}");
        for verdict in verdicts {
            assert!(verdict["looked_at"].as_u64() > Some(0), "{name}: {verdict}");
        }
        let acknowledged = scenario["acknowledged"].as_u64().unwrap();
        assert!(acknowledged > 200, "only {acknowledged} writes in {name} test nothing");
    }
}
