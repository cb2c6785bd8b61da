//! Which crate may know which: the dependency table of the workspace and the check that holds it.
//!
//! Dependencies point downwards only (docs/ARCHITECTURE.md). [`TABLE`] says what each crate may use and why,
//! [`BANS`] which third-party crates it must not. [`check`] compares both with what the manifests say. This
//! crate must never depend on one of the crates that it judges.

pub mod dependencies;

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata};

/// What one crate of the workspace may use.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    /// The crate.
    pub name: &'static str,
    /// Crates of this workspace that it may depend on, in code, build scripts and tests.
    pub may_use: &'static [&'static str],
    /// Crates of this workspace that only its tests may depend on.
    pub tests_may_use: &'static [&'static str],
    /// Why no more than this.
    pub why: &'static str,
}

/// The table of edges. An edge that is not here is a decision that nobody has made yet: make it, write the
/// reason down, then add it.
pub const TABLE: &[Layer] = &[
    Layer {
        name: "tidewall-mutant",
        may_use: &[],
        tests_may_use: &[],
        why: "defects for the simulation to find, a constant `false` elsewhere: under everything, so it knows nothing",
    },
    Layer {
        name: "tidewall-metrics",
        may_use: &[],
        tests_may_use: &[],
        why: "what the metrics of all processes have in common; what a process counts is its own business",
    },
    Layer {
        name: "tidewall-messages",
        may_use: &[],
        tests_may_use: &[],
        why: "what stands in the log, without a transport: known by those who build it and by those who decide it",
    },
    Layer {
        name: "tidewall-domain",
        may_use: &["tidewall-messages", "tidewall-mutant"],
        tests_may_use: &[],
        why: "pure rules over their messages: they know no network, disk or clock",
    },
    Layer {
        name: "tidewall-machine",
        may_use: &["tidewall-domain", "tidewall-messages", "tidewall-mutant"],
        tests_may_use: &[],
        why: "the deterministic state machine around the rules; it does no I/O, so it needs no seam to the world",
    },
    Layer {
        name: "tidewall-env",
        may_use: &[],
        tests_may_use: &[],
        why: "seams to the world, usable under everything, so under nothing itself",
    },
    Layer {
        name: "tidewall-proto",
        may_use: &["tidewall-messages"],
        tests_may_use: &[],
        why: "generated code only",
    },
    Layer {
        name: "tidewall-link",
        may_use: &["tidewall-mutant", "tidewall-proto", "tidewall-env"],
        tests_may_use: &[],
        why: "connections and multiplexing; it carries messages and understands none",
    },
    Layer {
        name: "tidewall-store",
        may_use: &["tidewall-mutant", "tidewall-machine", "tidewall-env"],
        tests_may_use: &["tidewall-messages"],
        why: "log, checkpoint and snapshots hold bytes and rows; consensus and transport sit above",
    },
    Layer {
        name: "tidewall-consensus",
        may_use: &[
            "tidewall-mutant",
            "tidewall-proto",
            "tidewall-machine",
            "tidewall-store",
            "tidewall-env",
            "tidewall-link",
        ],
        tests_may_use: &["tidewall-messages"],
        why: "the only crate that names openraft; it orders commands and knows no business rule",
    },
    Layer {
        name: "tidewall-actors",
        may_use: &["tidewall-mutant", "tidewall-machine", "tidewall-env"],
        tests_may_use: &["tidewall-domain", "tidewall-messages"],
        why: "row actors propose through a trait of their own, so that neither Raft nor the disk reaches them",
    },
    Layer {
        name: "tidewall-client",
        may_use: &["tidewall-mutant", "tidewall-proto", "tidewall-link", "tidewall-env"],
        tests_may_use: &["tidewall-messages"],
        why: "talks to shard nodes over the wire only; linking the server would make gateways stateful by accident",
    },
    Layer {
        name: "tidewall-node",
        may_use: &[
            "tidewall-proto",
            "tidewall-messages",
            "tidewall-domain",
            "tidewall-machine",
            "tidewall-metrics",
            "tidewall-env",
            "tidewall-store",
            "tidewall-consensus",
            "tidewall-actors",
            "tidewall-link",
            "tidewall-client",
        ],
        tests_may_use: &[],
        why: "the one place where the parts of a shard are put together",
    },
    Layer {
        name: "tidewall-gateway",
        may_use: &[
            "tidewall-mutant",
            "tidewall-proto",
            "tidewall-messages",
            "tidewall-client",
            "tidewall-metrics",
            "tidewall-env",
        ],
        // Its tests play a shard node, which needs the answering half of a link.
        tests_may_use: &["tidewall-link"],
        why: "stateless edge: what it knows of shards is their client",
    },
    Layer {
        name: "tidewall-load",
        may_use: &["tidewall-proto", "tidewall-workloads"],
        tests_may_use: &[],
        why: "the load generator sees what any client sees, or its audit would prove nothing",
    },
    Layer {
        name: "tidewall-sdk",
        may_use: &["tidewall-proto"],
        tests_may_use: &[],
        why: "what users link: the public protocol, and nothing of the servers behind it",
    },
    Layer {
        name: "tidewall",
        may_use: &[
            "tidewall-proto",
            "tidewall-client",
            "tidewall-env",
            "tidewall-gateway",
            "tidewall-load",
            "tidewall-node",
            "tidewall-sdk",
        ],
        tests_may_use: &[],
        why: "the binary starts every kind of process; it is the only service that may link the node",
    },
    Layer {
        name: "tidewall-bench",
        may_use: &["tidewall-proto", "tidewall-e2e", "tidewall-workloads"],
        tests_may_use: &[],
        why: "measures the real binary from outside, as a client does, with the harness of the end-to-end tests",
    },
    Layer {
        name: "tidewall-chaos",
        may_use: &["tidewall-proto", "tidewall-load"],
        tests_may_use: &[],
        why: "does harm to the real binary and judges it from outside, by what clients see; a doubter links nothing it doubts",
    },
    Layer {
        name: "tidewall-e2e",
        may_use: &["tidewall-proto"],
        // Its tests are a user of the client, too.
        tests_may_use: &["tidewall-sdk", "tidewall-workloads"],
        why: "tests the real binary from outside, as a client does",
    },
    Layer {
        name: "tidewall-simulation",
        may_use: &[
            "tidewall-mutant",
            "tidewall-proto",
            "tidewall-messages",
            "tidewall-env",
            "tidewall-machine",
            "tidewall-store",
            "tidewall-consensus",
            "tidewall-actors",
            "tidewall-link",
            "tidewall-client",
            "tidewall-node",
            "tidewall-gateway",
            "tidewall-workloads",
        ],
        tests_may_use: &[],
        why: "puts a whole cluster on one thread: it brings along what a node otherwise takes from the system",
    },
    Layer {
        name: "tidewall-workloads",
        may_use: &["tidewall-proto"],
        tests_may_use: &[],
        why: "what clients do and must be told, by the public API alone: a judge links nothing it judges",
    },
    Layer {
        name: "tidewall-edges",
        may_use: &[],
        tests_may_use: &[],
        why: "a judge depends on nobody whom it judges",
    },
];

/// Third-party crates that some of our crates must not use.
#[derive(Debug, Clone, Copy)]
pub struct Ban {
    /// The third-party crates.
    pub crates: &'static [&'static str],
    /// Who must not use them.
    pub who: Who,
    /// Whether reaching one through another dependency is forbidden, too.
    pub reach: Reach,
    /// Why.
    pub why: &'static str,
}

/// Whom a [`Ban`] concerns.
#[derive(Debug, Clone, Copy)]
pub enum Who {
    /// These crates.
    These(&'static [&'static str]),
    /// Every crate of the workspace but these.
    AllBut(&'static [&'static str]),
}

/// How far a [`Ban`] looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Only the crate's own manifest.
    Direct,
    /// Everything that ends up in the crate's library, however deep. Tests do not count.
    Transitive,
}

/// The third-party crates that must stay out of some of our crates.
pub const BANS: &[Ban] = &[
    Ban {
        crates: &["tokio", "actix", "tonic", "openraft", "sled", "rand", "parking_lot"],
        who: Who::These(&["tidewall-domain", "tidewall-machine"]),
        reach: Reach::Transitive,
        why: "apply is deterministic: no runtime, no network, no disk, no chance, no locks",
    },
    Ban {
        crates: &["tonic"],
        who: Who::These(&["tidewall-store", "tidewall-actors", "tidewall-env"]),
        reach: Reach::Transitive,
        why: "storage, actors and seams know no transport, so that the simulator can run them without one",
    },
    Ban {
        crates: &["openraft"],
        who: Who::AllBut(&["tidewall-consensus"]),
        reach: Reach::Direct,
        why: "an alpha, pinned: one crate names it, so that an upgrade is a change of one crate",
    },
    Ban {
        crates: &["openraft", "sled"],
        who: Who::These(&["tidewall-actors", "tidewall-client", "tidewall-gateway"]),
        reach: Reach::Transitive,
        why: "actors propose through a trait, gateways hold no state",
    },
    Ban {
        crates: &["sled"],
        who: Who::AllBut(&["tidewall-store"]),
        reach: Reach::Direct,
        why: "the checkpoint engine stays behind the store's trait, so that a better one can replace it",
    },
    Ban {
        crates: &["actix"],
        who: Who::AllBut(&["tidewall-actors", "tidewall-node"]),
        reach: Reach::Direct,
        why: "actors live in one crate; the node starts them",
    },
];

/// What part of a crate needs a dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The library or binary, or its build script.
    Code,
    /// Tests and examples only.
    Tests,
}

/// One dependency edge from a crate of the workspace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dependency {
    /// Crate of the workspace.
    pub from: String,
    /// What it depends on: a crate of ours or of somebody else.
    pub to: String,
    /// Which part of `from` needs it.
    pub part: Part,
}

/// What the manifests say.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    /// Names of the crates of the workspace.
    pub members: BTreeSet<String>,
    /// Dependencies declared by members, on members and on third-party crates.
    pub edges: BTreeSet<Dependency>,
    /// For each member, every crate that its code reaches through dependencies of any depth.
    pub reached: BTreeMap<String, BTreeSet<String>>,
}

impl Workspace {
    /// Takes what the check needs out of the output of `cargo metadata`, which must contain the resolved
    /// graph (so not `--no-deps`).
    ///
    /// # Panics
    /// When the metadata has no resolved graph.
    pub fn of(metadata: &Metadata) -> Self {
        let name_of: BTreeMap<_, _> =
            metadata.packages.iter().map(|package| (&package.id, package.name.to_string())).collect();
        let mut workspace = Self::default();
        for package in metadata.workspace_packages() {
            let from = package.name.to_string();
            for dependency in &package.dependencies {
                let part =
                    if dependency.kind == DependencyKind::Development { Part::Tests } else { Part::Code };
                workspace.edges.insert(Dependency { from: from.clone(), to: dependency.name.clone(), part });
            }
            workspace.members.insert(from);
        }
        let resolve = metadata.resolve.as_ref().expect("cargo metadata was asked for the resolved graph");
        let next: BTreeMap<_, Vec<_>> = resolve
            .nodes
            .iter()
            .map(|node| {
                let of_code = node.deps.iter().filter(|dependency| {
                    dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
                });
                (&node.id, of_code.map(|dependency| &dependency.pkg).collect())
            })
            .collect();
        for member in &metadata.workspace_members {
            let mut seen = BTreeSet::new();
            let mut left = vec![member];
            while let Some(id) = left.pop() {
                for &dependency in next.get(id).into_iter().flatten() {
                    if seen.insert(dependency) {
                        left.push(dependency);
                    }
                }
            }
            let names = seen.iter().filter_map(|id| name_of.get(*id).cloned()).collect();
            workspace.reached.insert(name_of[member].clone(), names);
        }
        workspace
    }
}

/// Compares a workspace with [`TABLE`] and [`BANS`]; each string of the result is one violation, said so that
/// its reader knows what to do. Empty means all is well.
pub fn check(workspace: &Workspace) -> Vec<String> {
    let mut violations = Vec::new();
    let rows: BTreeMap<&str, &Layer> = TABLE.iter().map(|row| (row.name, row)).collect();
    for member in &workspace.members {
        if !rows.contains_key(member.as_str()) {
            violations.push(format!("{member} has no row in TABLE (tests/edges): decide what it may use"));
        }
    }
    for row in TABLE {
        if !workspace.members.contains(row.name) {
            violations
                .push(format!("TABLE has a row for {}, which is not in the workspace: remove it", row.name));
        }
    }
    for edge in &workspace.edges {
        let Some(row) = rows.get(edge.from.as_str()) else {
            continue;
        };
        if !workspace.members.contains(&edge.to) {
            continue;
        }
        let to = edge.to.as_str();
        let allowed =
            row.may_use.contains(&to) || (edge.part == Part::Tests && row.tests_may_use.contains(&to));
        if !allowed {
            violations.push(format!(
                "{} must not depend on {} ({}): {}. Move the code, or change TABLE with a reason",
                edge.from,
                edge.to,
                if edge.part == Part::Tests { "in its tests" } else { "in its code" },
                row.why
            ));
        }
    }
    for ban in BANS {
        let concerned: Vec<&String> = workspace
            .members
            .iter()
            .filter(|member| match ban.who {
                Who::These(these) => these.contains(&member.as_str()),
                Who::AllBut(but) => !but.contains(&member.as_str()),
            })
            .collect();
        for member in concerned {
            for &banned in ban.crates {
                let direct = workspace
                    .edges
                    .iter()
                    .any(|edge| edge.from == *member && edge.to == banned && edge.part == Part::Code);
                let reached = ban.reach == Reach::Transitive
                    && workspace.reached.get(member).is_some_and(|names| names.contains(banned));
                if direct {
                    violations.push(format!("{member} must not depend on {banned}: {}", ban.why));
                } else if reached {
                    violations.push(format!(
                        "{member} must not reach {banned} (`cargo tree -p {member} -i {banned}` shows the way): {}",
                        ban.why
                    ));
                }
            }
        }
    }
    violations
}

/// Crates that know domain modules through their trait alone.
pub const KERNEL: &[&str] = &["machine", "actors", "node", "link", "client", "consensus", "store"];

/// Where a text of the kernel names a domain: line numbers from 1. Tests may, and they stand at the end of a file.
pub fn names_of_domains(text: &str, domains: &[String]) -> Vec<usize> {
    let code = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
    let words = |line: &str| -> Vec<String> {
        line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').map(str::to_lowercase).collect()
    };
    let named = code.enumerate().filter(|(_, line)| words(line).iter().any(|word| domains.contains(word)));
    named.map(|(at, _)| at + 1).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use cargo_metadata::MetadataCommand;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    /// What the manifests of this checkout say. Works without network: only the host's packages are
    /// resolved, and those are here because this test was compiled from them.
    fn metadata() -> Metadata {
        let version = Command::new("rustc").arg("-vV").output().unwrap();
        let version = String::from_utf8(version.stdout).unwrap();
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
        MetadataCommand::new()
            .manifest_path(root().join("Cargo.toml"))
            .other_options(vec!["--offline".into(), "--filter-platform".into(), host.into()])
            .exec()
            .unwrap()
    }

    fn this_workspace() -> Workspace {
        Workspace::of(&metadata())
    }

    #[test]
    fn dependencies_have_licences_that_we_can_live_with_and_no_needless_versions() {
        let mut metadata = metadata();
        let violations = dependencies::check(&metadata);
        assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
        // It sees what it looks at.
        let foreign = metadata.packages.iter_mut().find(|package| package.name.as_str() == "prost").unwrap();
        foreign.license = Some("GPL-3.0".into());
        assert_eq!(dependencies::check(&metadata).len(), 1);
    }

    /// A workspace in which every row uses exactly what the table grants.
    fn exemplary() -> Workspace {
        let mut workspace = Workspace::default();
        for row in TABLE {
            workspace.members.insert(row.name.into());
            for to in row.may_use {
                workspace.edges.insert(edge(row.name, to, Part::Code));
            }
        }
        workspace
    }

    fn edge(from: &str, to: &str, part: Part) -> Dependency {
        Dependency { from: from.into(), to: to.into(), part }
    }

    #[test]
    fn the_workspace_has_only_the_edges_of_the_table() {
        let workspace = this_workspace();
        // The check must have seen something: an empty graph would always pass.
        assert!(workspace.edges.contains(&edge("tidewall-machine", "tidewall-domain", Part::Code)));
        assert!(workspace.reached["tidewall-store"].contains("tidewall-domain"));
        let violations = check(&workspace);
        assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
    }

    #[test]
    fn the_table_grants_no_cycle() {
        let rows: BTreeMap<&str, &Layer> = TABLE.iter().map(|row| (row.name, row)).collect();
        for row in TABLE {
            let mut left: Vec<&str> = row.may_use.to_vec();
            let mut seen = BTreeSet::new();
            while let Some(name) = left.pop() {
                assert_ne!(name, row.name, "{} may use itself through its dependencies", row.name);
                if seen.insert(name) {
                    left.extend(rows[name].may_use);
                }
            }
        }
    }

    #[test]
    fn an_exemplary_workspace_passes() {
        assert_eq!(check(&exemplary()), Vec::<String>::new());
    }

    #[test]
    fn an_edge_that_the_table_lacks_is_found() {
        for (from, to) in [
            ("tidewall-domain", "tidewall-env"),
            ("tidewall-gateway", "tidewall-store"),
            ("tidewall-gateway", "tidewall-node"),
            ("tidewall-consensus", "tidewall-client"),
            ("tidewall-e2e", "tidewall-machine"),
        ] {
            for part in [Part::Code, Part::Tests] {
                let mut doctored = exemplary();
                doctored.edges.insert(edge(from, to, part));
                let violations = check(&doctored);
                assert_eq!(violations.len(), 1, "{from} -> {to}: {violations:?}");
                assert!(violations[0].contains(from) && violations[0].contains(to), "{violations:?}");
            }
        }
    }

    #[test]
    fn a_banned_crate_is_found_directly_and_behind_another() {
        let mut direct = exemplary();
        direct.edges.insert(edge("tidewall-node", "openraft", Part::Code));
        assert_eq!(check(&direct).len(), 1, "{:?}", check(&direct));

        let mut behind = exemplary();
        behind.reached.entry("tidewall-domain".into()).or_default().insert("rand".into());
        assert_eq!(check(&behind).len(), 1, "{:?}", check(&behind));

        // Tests may draw random cases.
        let mut in_tests = exemplary();
        in_tests.edges.insert(edge("tidewall-domain", "rand", Part::Tests));
        assert_eq!(check(&in_tests), Vec::<String>::new());

        // What the node reaches through consensus is no edge of its own.
        let mut reached = exemplary();
        reached.reached.entry("tidewall-node".into()).or_default().insert("openraft".into());
        assert_eq!(check(&reached), Vec::<String>::new());
    }

    #[test]
    fn a_crate_without_a_row_and_a_row_without_a_crate_are_found() {
        let mut doctored = exemplary();
        doctored.members.insert("tidewall-backdoor".into());
        doctored.members.remove("tidewall-link");
        let violations = check(&doctored);
        assert!(violations.iter().any(|v| v.contains("tidewall-backdoor")), "{violations:?}");
        assert!(violations.iter().any(|v| v.contains("row for tidewall-link")), "{violations:?}");
    }

    #[test]
    fn the_pure_crates_carry_the_lints_that_keep_them_pure() {
        for name in ["domain", "machine"] {
            let file = root().join("shards").join(name).join("clippy.toml");
            let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            for word in ["SystemTime::now", "Instant::now", "collections::HashMap", "collections::HashSet"] {
                assert!(text.contains(word), "{} does not forbid {word}", file.display());
            }
        }
    }

    fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().unwrap() != "tests" {
                rust_files(&path, into);
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
                into.push(path);
            }
        }
    }

    /// A new domain must not need a change here, or every one would: it is known by its rows.
    #[test]
    fn the_kernel_names_no_domain() {
        let shards = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shards");
        let folders = std::fs::read_dir(shards.join("domain/src")).unwrap();
        let folders = folders.map(|entry| entry.unwrap().path()).filter(|path| path.join("model").exists());
        let domains: Vec<String> =
            folders.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        assert!(
            domains.iter().any(|domain| domain == "tickets"),
            "the domains are looked for in the wrong place"
        );
        let mut found = Vec::new();
        for part in KERNEL {
            let mut files = Vec::new();
            rust_files(&shards.join(part).join("src"), &mut files);
            assert!(!files.is_empty(), "{part} has no code");
            for file in files {
                let lines = names_of_domains(&std::fs::read_to_string(&file).unwrap(), &domains);
                found.extend(lines.into_iter().map(|line| format!("{}:{line}", file.display())));
            }
        }
        assert!(found.is_empty(), "these lines name a domain; say it through the module's trait: {found:#?}");
    }

    #[test]
    fn a_domain_is_named_by_a_word_of_its_own_outside_of_tests() {
        let domains = ["tickets".to_owned()];
        let text =
            "use a::tickets;\nsend_tls13_tickets = 0;\n// Tickets!\n#[cfg(test)]\nmod tests { use tickets; }";
        assert_eq!(names_of_domains(text, &domains), [1, 3]);
    }
}
