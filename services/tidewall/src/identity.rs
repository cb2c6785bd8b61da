//! `tidewall cluster`: what makes a cluster this one and no other. Lays one out, gives its processes certificates, and makes a copy of its
//! data another cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use tidewall_client::topology::Topology;

use crate::certificates::{self, Authority};
use crate::datadir::{Contents, DataDir, Lock};
use crate::exit::{Exit, Failure};
use crate::layout::{self, InitArgs};
use crate::output::{self, Format};
use crate::serve;

/// Arguments of `tidewall cluster`.
#[derive(Debug, Args)]
pub struct ClusterCommand {
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done with the identity of a cluster.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Lay out a new cluster without starting it: topology, keys, certificates
    #[command(
        after_help = "Examples:\n  tidewall cluster init --data ./cluster --host 10.0.0.1 --host 10.0.0.2 --host 10.0.0.3\n  tidewall cluster init --data ./cluster -o json\n\nIt says where everything is; start the processes with `tidewall serve`."
    )]
    Init(InitArgs),
    /// Issue certificates for all processes of a topology, by an authority that is made with the first ones
    #[command(
        after_help = "Example:\n  tidewall cluster certify --topology topology.json --tls tls\n\n`tidewall up` does this by itself. Give each host ca.pem and what is named like its process; keep ca.key away from all of them."
    )]
    Certify(CertifyArgs),
    /// Make the data of a stopped cluster those of another cluster
    #[command(
        after_help = "Example:\n  cp -a ./tidewall-data ./trial && tidewall cluster fork --data ./trial && tidewall up --data ./trial --listen 127.0.0.1:7500\n\nA copy of a whole cluster cannot be recognised from inside: run it as it is, and clients may get answers of both. After a fork neither takes the other for itself. All nodes must have been copied while all of them were stopped: copies of different age are refused, as far as that can be seen. Keys that sign tokens stay the same. May be repeated, also after it was interrupted."
    )]
    Fork(ForkArgs),
}

/// Arguments of `cluster certify`.
#[derive(Debug, Args)]
pub struct CertifyArgs {
    /// Topology of the cluster
    #[arg(long, value_name = "FILE")]
    pub topology: PathBuf,
    /// Directory of certificates [default: tls beside the topology]
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
}

/// Arguments of `cluster fork`.
#[derive(Debug, Args)]
pub struct ForkArgs {
    /// Data directory of the copy
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
}

#[derive(Serialize)]
struct Certified {
    directory: PathBuf,
    names: Vec<String>,
}

#[derive(Serialize)]
struct Forked {
    data: PathBuf,
    was: String,
    cluster: String,
}

/// Runs the command.
pub fn run(command: &ClusterCommand, format: Format) -> Result<(), Failure> {
    match &command.verb {
        Verb::Init(arguments) => layout::run(arguments, format),
        Verb::Certify(arguments) => certify(arguments, format),
        Verb::Fork(arguments) => {
            let forked = fork(&arguments.data)?;
            match format {
                Format::Json => output::json(&forked),
                Format::Table => output::text(&format!(
                    "{} was cluster {} and is cluster {} now\n",
                    forked.data.display(),
                    forked.was,
                    forked.cluster
                )),
            }
        }
    }
}

fn certify(arguments: &CertifyArgs, format: Format) -> Result<(), Failure> {
    let environment = |error: &dyn std::fmt::Display| Failure::new(Exit::Environment, error);
    let topology = Topology::load(&arguments.topology).map_err(|e| environment(&e))?;
    let beside = arguments.topology.with_file_name("tls");
    let directory = arguments.tls.clone().unwrap_or(beside);
    let cluster = topology.cluster_bytes().unwrap_or_default();
    let authority = Authority::ensure(&directory, cluster).map_err(|e| environment(&e))?.ok_or_else(|| {
        let text = format!(
            "{} has ca.pem without ca.key: somebody else issues certificates there; choose another directory with --tls",
            directory.display()
        );
        Failure::new(Exit::Usage, text)
    })?;
    let names = authority.issue_all(&topology).map_err(|e| environment(&e))?;
    // An authority of another cluster would have issued what nobody believes.
    certificates::load(&directory, certificates::OPERATOR, cluster).map_err(|e| environment(&e))?;
    match format {
        Format::Json => output::json(&Certified { directory, names }),
        Format::Table => output::text(&format!("{}: ca, {}\n", directory.display(), names.join(", "))),
    }
}

/// Gives the cluster in a directory a new id. A fork that is cut short leaves nodes that refuse to start, and is done again.
fn fork(data: &Path) -> Result<Forked, Failure> {
    let environment = |error: &dyn std::fmt::Display| Failure::new(Exit::Environment, error);
    let of_node = |error: tidewall_node::NodeError| Failure::with_code(error.exit_code(), error);
    let directory = DataDir::new(data);
    let Contents::Cluster(mut topology) = directory.examine().map_err(|e| environment(&e))? else {
        return Err(Failure::new(
            Exit::Usage,
            format!("{} holds no cluster: nothing was forked", data.display()),
        ));
    };
    // Whoever runs a node holds its lock, also without a supervisor.
    let ids: Vec<u64> = topology.nodes.iter().map(|node| node.id).collect();
    let mut locks = vec![Lock::take(&directory.lock_file(), Duration::ZERO).map_err(|e| environment(&e))?];
    for id in &ids {
        let file = serve::lock_file(&directory.node(*id))?;
        locks.push(Lock::take(&file, Duration::ZERO).map_err(|e| environment(&e))?);
    }
    // A node that has never been started has nothing.
    let made: Vec<u64> = ids.into_iter().filter(|id| serve::was_made(&directory.node(*id))).collect();
    let mut seen = Vec::new();
    for id in &made {
        seen.push((*id, tidewall_node::age(&directory.node(*id), *id).map_err(of_node)?));
    }
    same_age(&seen)?;
    let was = topology.cluster.clone();
    certificates::remove(&directory.certificates()).map_err(|e| environment(&e))?;
    match std::fs::remove_file(directory.endpoints()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(environment(&error)),
        _ => {}
    }
    topology.cluster = uuid::Uuid::now_v7().simple().to_string();
    topology.save(&directory.topology()).map_err(|e| environment(&e))?;
    for id in made {
        tidewall_node::fork(&directory.node(id), id, &topology.cluster).map_err(of_node)?;
    }
    Ok(Forked { data: data.to_owned(), was, cluster: topology.cluster })
}

/// Refuses nodes of which one knows the other further on than it is: entries could be missing that both have acknowledged.
fn same_age(nodes: &[(u64, tidewall_node::Age)]) -> Result<(), Failure> {
    for (knows, age) in nodes {
        for (older, of) in nodes {
            if let Some(met) = age.met.get(older).filter(|met| met.reached > of.reached) {
                return Err(Failure::new(
                    Exit::DataUnusable,
                    format!(
                        "the copies are of different age: node {knows} has seen the log of node {older} at position {}, and it is at \
                         {}. As one cluster they could lose what was acknowledged. Copy all nodes while all are stopped; nothing was \
                         forked",
                        met.reached, of.reached
                    ),
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::datadir::Wanted;

    #[test]
    fn a_fork_is_another_cluster_with_certificates_of_its_own() {
        let parent = tempfile::tempdir().unwrap();
        let data = DataDir::new(parent.path());
        let (lock, topology, _ports) = data.prepare(&Wanted::default(), Duration::ZERO).unwrap();
        let failure = fork(parent.path()).err().unwrap();
        assert!(failure.to_string().contains("in use"), "{failure}");
        drop(lock);
        let certificates = CertifyArgs { topology: data.topology(), tls: None };
        certify(&certificates, Format::Json).unwrap();
        let authority = std::fs::read(data.certificates().join("ca.pem")).unwrap();
        let forked = fork(parent.path()).unwrap();
        assert_eq!(forked.was, topology.cluster);
        let after = Topology::load(&data.topology()).unwrap();
        assert_eq!(after.cluster, forked.cluster);
        assert_ne!(after.cluster, topology.cluster);
        assert_eq!(after.nodes, topology.nodes);
        certify(&certificates, Format::Json).unwrap();
        assert_ne!(std::fs::read(data.certificates().join("ca.pem")).unwrap(), authority);
    }

    #[test]
    fn what_holds_no_cluster_is_not_forked() {
        let parent = tempfile::tempdir().unwrap();
        assert_eq!(fork(parent.path()).err().unwrap().code(), 2);
        assert_eq!(fork(&parent.path().join("missing")).err().unwrap().code(), 2);
        std::fs::write(parent.path().join("diary"), "x").unwrap();
        assert_eq!(fork(parent.path()).err().unwrap().code(), 5);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn nodes_that_run_without_a_supervisor_are_not_forked_either() {
        let parent = tempfile::tempdir().unwrap();
        let data = DataDir::new(parent.path());
        drop(data.prepare(&Wanted::default(), Duration::ZERO).unwrap());
        let lock = Lock::take(&serve::lock_file(&data.node(2)).unwrap(), Duration::ZERO).unwrap();
        let failure = fork(parent.path()).err().unwrap();
        assert!(failure.to_string().contains("node-2.lock"), "{failure}");
        drop(lock);
        fork(parent.path()).unwrap();
    }

    #[test]
    fn copies_of_different_age_are_no_cluster() {
        let age = |reached, met: &[(u64, u64)]| tidewall_node::Age {
            reached,
            met: met
                .iter()
                .map(|(node, reached)| (*node, tidewall_node::Met { life: 1, reached: *reached }))
                .collect(),
        };
        let same = [(1, age(50, &[(2, 70)])), (2, age(70, &[(1, 50), (9, 900)]))];
        same_age(&same).unwrap();
        let older = [(1, age(50, &[(2, 71)])), (2, age(70, &[]))];
        let failure = same_age(&older).unwrap_err();
        assert_eq!(failure.code(), 71);
        for word in ["node 1", "node 2", "71", "70"] {
            assert!(failure.to_string().contains(word), "{failure}");
        }
    }
}
