//! A cluster for the length of one command: the one that runs already, or one of its own that goes at the end.

use std::time::{Duration, Instant};

use clap::Args;
use tidewall_gateway::auth::{Minter, ROLES, Role, role_name};
use tidewall_load::Target;

use crate::cluster::{Cluster, Plan};
use crate::datadir::{DataDir, Wanted};
use crate::endpoints::{Endpoints, EndpointsError};
use crate::exit::{Exit, Failure};
use crate::gateway::TargetArgs;
use crate::keys::PrivateKey;
use crate::output::{self, ProgressLine};
use crate::ports;
use crate::signals::Signals;

/// How long tokens of a run live: longer than any run may take.
const TOKEN_TTL: Duration = Duration::from_secs(25 * 3_600);
/// How long a cluster of one's own may take to serve.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Where the cluster comes from.
#[derive(Debug, Clone, Args)]
pub struct Source {
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Start a cluster for this run, even when one is running already
    #[arg(long, conflicts_with_all = ["target", "key"])]
    pub own_cluster: bool,
}

/// Runs `work` against a cluster, and stops at once when a signal asks for it. A cluster of its own is
/// stopped, and its data removed, however the work ends.
pub async fn with_target<T>(
    source: &Source,
    log: Option<&str>,
    work: impl AsyncFnOnce(&Target) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut signals = Signals::new()?;
    if let Some(urls) = running(source)? {
        let target = target(urls, &source.target.private_key()?)?;
        return tokio::select! {
            result = work(&target) => result,
            signal = signals.next() => Err(interrupted(signal)),
        };
    }
    let begun = Instant::now();
    output::note("starting a cluster for this run, on a temporary directory");
    let plan = Plan {
        data: None,
        wanted: Wanted::default(),
        gateways: 1,
        listen: ports::any_loopback(),
        log: log.map(str::to_owned),
    };
    let cluster = Cluster::start(&plan).await?;
    let all = async {
        ready(&cluster).await?;
        output::note(&format!("the cluster is ready after {:.1} s", begun.elapsed().as_secs_f64()));
        work(&target(cluster.urls(), cluster.key())?).await
    };
    let result = tokio::select! {
        result = all => result,
        signal = signals.next() => Err(interrupted(signal)),
        given_up = cluster.broken() => Err(Failure::with_code(i32::from(given_up.code), given_up.summary())),
    };
    let hurry = async {
        signals.next().await;
    };
    cluster.stop(hurry).await;
    result
}

/// Gateways of the cluster that the user means and that is up; `None` to start one.
fn running(source: &Source) -> Result<Option<Vec<String>>, Failure> {
    if source.own_cluster {
        return Ok(None);
    }
    if !source.target.target.is_empty() {
        return source.target.urls().map(Some);
    }
    match Endpoints::running(&DataDir::new(&source.target.data).endpoints()) {
        Ok(endpoints) => Ok(Some(endpoints.urls())),
        Err(EndpointsError::NotRunning { .. }) => Ok(None),
        Err(error) => Err(Failure::new(Exit::Environment, error)),
    }
}

/// Waits for a cluster of one's own; bounded.
async fn ready(cluster: &Cluster) -> Result<(), Failure> {
    let mut line = ProgressLine::default();
    let ready = cluster.ready(|progress| line.show(&format!("starting: {}", progress.line())));
    let result = tokio::time::timeout(READY_WITHIN, ready).await;
    line.clear();
    result.unwrap_or_else(|_| {
        Err(Failure::new(
            Exit::Unavailable,
            format!("the cluster for this run was not ready within {READY_WITHIN:?}: start one with `tidewall up` and read its logs"),
        ))
    })
}

/// Gateways to call, with tokens that are signed with a key.
pub fn target(urls: Vec<String>, key: &PrivateKey) -> Result<Target, Failure> {
    let minter = Minter::new(key.pkcs8()).map_err(|e| Failure::new(Exit::Environment, e))?;
    Ok(Target::new(urls, move |subject, roles| {
        let roles: Vec<Role> = ROLES.into_iter().filter(|role| roles.contains(&role_name(*role))).collect();
        minter.mint(subject, &roles, TOKEN_TTL).unwrap_or_else(|error| {
            tracing::error!("cannot mint a token for {subject:?}: {error}");
            // A call with it is refused, and counted as that.
            String::new()
        })
    }))
}

fn interrupted(signal: &str) -> Failure {
    Failure::new(Exit::Failed, format!("{signal}: the run was stopped and nothing was audited"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::keys;

    #[test]
    fn nothing_running_means_a_cluster_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let source = |target: Vec<String>| Source {
            target: TargetArgs { target, data: directory.path().to_owned(), key: None },
            own_cluster: false,
        };
        assert_eq!(running(&source(Vec::new())).unwrap(), None);
        let named = running(&source(vec!["127.0.0.1:7".into()])).unwrap();
        assert_eq!(named, Some(vec!["http://127.0.0.1:7".to_owned()]));
        std::fs::write(directory.path().join("endpoints.json"), "garbage").unwrap();
        assert_eq!(running(&source(Vec::new())).unwrap_err().code(), 5);
    }

    #[test]
    fn a_target_mints_tokens_of_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let key = keys::ensure(directory.path()).unwrap();
        let target = target(vec!["http://127.0.0.1:7".into()], &key).unwrap();
        let token = (target.mint)("alice", &["organiser", "no such role"]);
        assert_eq!(token.split('.').count(), 3);
    }
}
