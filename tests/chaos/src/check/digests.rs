//! Replicas: at the end all of a region have applied the same and have the same rows; two of them never showed different
//! rows at the same index.

use std::collections::BTreeSet;

use super::{Evidence, SeenReplica, Verdict};

/// Checks.
pub fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("replicas have the same rows");
    let used: BTreeSet<&str> = evidence.planned.iter().map(|event| event.region.as_str()).collect();
    for region in used.into_iter().filter(|region| !evidence.replicas.contains_key(*region)) {
        verdict.add(|| format!("{region}: nobody looked at its replicas"));
    }
    for (region, looks) in &evidence.replicas {
        for replicas in looks {
            for (position, one) in replicas.iter().enumerate() {
                let differs = |other: &&SeenReplica| {
                    one.fault.is_empty()
                        && other.fault.is_empty()
                        && one.applied == other.applied
                        && one.digest != other.digest
                };
                if let Some(other) = replicas[position + 1..].iter().find(differs) {
                    verdict.add(|| {
                        format!(
                            "{region}: nodes {} and {} differ at index {}",
                            one.node, other.node, one.applied
                        )
                    });
                }
            }
        }
        let Some(last) = looks.last() else {
            verdict.add(|| format!("{region}: its replicas were never seen"));
            continue;
        };
        let sound: Vec<_> = last
            .iter()
            .filter(|replica| !evidence.lost_replicas.contains(&(region.clone(), replica.node)))
            .collect();
        for replica in &sound {
            verdict.looked_at += 1;
            if replica.fault.is_empty() && replica.digest.is_empty() {
                verdict.add(|| format!("{region}: node {} shows no digest", replica.node));
            }
            if !replica.fault.is_empty() {
                verdict.add(|| format!("{region}: node {} at the end: {}", replica.node, replica.fault));
            }
        }
        if sound.len() < 2 {
            verdict.add(|| format!("{region}: there are no two replicas to compare at the end"));
        }
        if sound.windows(2).any(|pair| pair[0].applied != pair[1].applied) {
            verdict.add(|| format!("{region}: replicas did not reach the same index: {sound:?}"));
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(node: u64, applied: u64, digest: &str) -> SeenReplica {
        SeenReplica { node, applied, digest: digest.into(), fault: String::new() }
    }

    fn evidence(looks: Vec<Vec<SeenReplica>>) -> Evidence {
        Evidence { replicas: [("r".to_owned(), looks)].into(), ..Evidence::default() }
    }

    #[test]
    fn replicas_that_come_together_pass() {
        let behind = vec![replica(1, 9, "a"), replica(2, 8, "b")];
        let verdict = check(&evidence(vec![behind, vec![replica(1, 9, "a"), replica(2, 9, "a")]]));
        assert!(verdict.ok(), "{verdict:?}");
        assert_eq!(verdict.looked_at, 2);
    }

    #[test]
    fn different_rows_are_found_also_when_they_pass() {
        let apart = vec![replica(1, 9, "a"), replica(2, 9, "b")];
        assert_eq!(check(&evidence(vec![apart.clone()])).violations, 1);
        let later = vec![replica(1, 10, "c"), replica(2, 10, "c")];
        assert_eq!(check(&evidence(vec![apart, later])).violations, 1);
    }

    #[test]
    fn laggards_faults_and_regions_that_nobody_saw_are_found() {
        assert_eq!(check(&evidence(vec![vec![replica(1, 9, "a"), replica(2, 8, "b")]])).violations, 1);
        assert_eq!(check(&evidence(vec![vec![replica(1, 9, "a")]])).violations, 1, "one is no comparison");
        assert_eq!(check(&evidence(vec![vec![replica(1, 9, ""), replica(2, 9, "")]])).violations, 2);
        let unseen = Evidence {
            planned: vec![crate::history::Planned {
                name: "e".into(),
                region: "r".into(),
                tiers: Vec::new(),
                traffic: crate::history::Traffic::Sale,
            }],
            ..Evidence::default()
        };
        assert_eq!(check(&unseen).violations, 1);
        assert_eq!(check(&evidence(Vec::new())).violations, 1);
        let mut halted = evidence(vec![vec![
            replica(1, 9, "a"),
            SeenReplica { fault: "quarantined".into(), ..replica(2, 9, "a") },
        ]]);
        assert_eq!(check(&halted).violations, 1);
        halted.replicas.get_mut("r").expect("it is there")[0].push(replica(3, 9, "a"));
        assert_eq!(check(&halted).violations, 1);
        halted.lost_replicas.insert(("r".into(), 2));
        assert!(check(&halted).ok(), "it was broken on purpose");
    }
}
