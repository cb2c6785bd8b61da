//! `tidewall region`: what regions do, and their export and import, through a gateway.

use std::fs::File;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use clap::{Args, Subcommand};
use serde::Serialize;
use tidewall_client::topology::valid_region_id;
use tidewall_proto::v1::operator_service_client::OperatorServiceClient;
use tidewall_proto::v1::{
    ExportRegionRequest, GetRegionStatusRequest, ImportRegionRequest, ListRegionStatusesRequest,
    RegionStatus, ReplicaRole, TransferLeaderRequest,
};

use crate::exit::{Exit, Failure};
use crate::gateway::{self, TargetArgs, TokenArgs};
use crate::output::{self, Format, ProgressLine};
use crate::snapshot_file::{self, Verifier};

/// Bytes in one message of an import.
const CHUNK_BYTES: usize = 256 << 10;

/// Arguments of `tidewall region`.
#[derive(Debug, Args)]
pub struct RegionCommand {
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done with regions.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List all regions: leader, term, lag, applied index, digest, hottest row
    #[command(
        after_help = "Example:\n  tidewall region list\n  tidewall region list -o json | jq '.regions[].leader_node'"
    )]
    List(ListArgs),
    /// Show one region, or all: every replica and the hot rows
    #[command(after_help = "Example:\n  tidewall region status north")]
    Status(StatusArgs),
    /// Hand the lead of a region to another node
    #[command(
        name = "transfer-leader",
        after_help = "Example:\n  tidewall region transfer-leader north --to 2\n\nReturns when that node leads; calls of clients wait meanwhile. The region keeps that leader until the lead is moved again, or the node dies or is drained."
    )]
    TransferLeader(TransferArgs),
    /// Let one surviving replica go on alone, after a majority was lost for good
    #[command(after_help = crate::failover::HELP)]
    Failover(crate::failover::FailoverArgs),
    /// Save the rows of a region at one log index to a file
    #[command(
        after_help = "Example:\n  tidewall region export north north.tidewall\n\nThe file appears under its name only when it is complete and on disk."
    )]
    Export(ExportArgs),
    /// Restore an exported file into a region
    #[command(
        after_help = "Example:\n  tidewall region import north north.tidewall\n  tidewall region import north north.tidewall --replace --yes\n\nWithout --replace the region must hold no event. The file is verified before the first row changes."
    )]
    Import(ImportArgs),
}

/// Arguments of `region list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who asks
    #[command(flatten)]
    pub token: TokenArgs,
}

/// Arguments of `region status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Region, such as north or regions/north; all when left out
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: Option<String>,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who asks
    #[command(flatten)]
    pub token: TokenArgs,
}

/// Arguments of `region transfer-leader`.
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// Region, such as north or regions/north
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// Node that is to lead
    #[arg(long, value_name = "NODE")]
    pub to: u64,
    /// Return only when that node leads; this is always so and may be said for clarity
    #[arg(long)]
    pub wait: bool,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who asks
    #[command(flatten)]
    pub token: TokenArgs,
}

/// Arguments of `region export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Region, such as north or regions/north
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// File to make
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Replace the file when it exists
    #[arg(long)]
    pub overwrite: bool,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who asks
    #[command(flatten)]
    pub token: TokenArgs,
}

/// Arguments of `region import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Region, such as north or regions/north
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// File made by `region export`
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Replace everything that the region holds
    #[arg(long)]
    pub replace: bool,
    /// Do not ask before replacing
    #[arg(long)]
    pub yes: bool,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who asks
    #[command(flatten)]
    pub token: TokenArgs,
}

/// A region as it is printed.
#[derive(Debug, Serialize)]
struct RegionView {
    name: String,
    display_name: String,
    leader_node: u64,
    term: u64,
    applied_index: u64,
    /// Of the replica that is furthest behind.
    lag_entries_max: u64,
    digest: String,
    incarnation: u64,
    rows: u64,
    replicas: Vec<ReplicaView>,
    hot_rows: Vec<HotRowView>,
}

#[derive(Debug, Serialize)]
struct ReplicaView {
    node: u64,
    role: &'static str,
    term: u64,
    last_log_index: u64,
    committed_index: u64,
    applied_index: u64,
    lag_entries: u64,
    digest: String,
    checkpoint_index: u64,
    checkpoint_backlog_pages: u64,
    fault: String,
}

#[derive(Debug, Serialize)]
struct HotRowView {
    name: String,
    commands_per_second: f64,
    queued: u64,
}

#[derive(Debug, Serialize)]
struct RegionList {
    regions: Vec<RegionView>,
}

#[derive(Debug, Serialize)]
struct Transferred<'a> {
    region: &'a str,
    leader_node: u64,
    took_ms: u32,
}

#[derive(Debug, Serialize)]
struct Exported<'a> {
    region: &'a str,
    file: &'a Path,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Imported<'a> {
    region: &'a str,
    incarnation: u64,
    applied_index: u64,
    digest: String,
    rows: u64,
}

/// Runs the command.
pub async fn run(command: &RegionCommand, format: Format) -> Result<(), Failure> {
    match &command.verb {
        Verb::List(arguments) => list(arguments, format).await,
        Verb::Status(arguments) => status(arguments, format).await,
        Verb::TransferLeader(arguments) => transfer(arguments, format).await,
        Verb::Failover(arguments) => crate::failover::run(arguments, format).await,
        Verb::Export(arguments) => export(arguments, format).await,
        Verb::Import(arguments) => import(arguments, format).await,
    }
}

async fn list(arguments: &ListArgs, format: Format) -> Result<(), Failure> {
    let regions = statuses(&arguments.target, &arguments.token).await?;
    match format {
        Format::Json => output::json(&RegionList { regions }),
        Format::Table => output::text(&list_table(&regions)),
    }
}

async fn statuses(target: &TargetArgs, token: &TokenArgs) -> Result<Vec<RegionView>, Failure> {
    let caller = gateway::operator(target, token).await?;
    let mut client = OperatorServiceClient::new(caller.channel());
    let request = caller.request(ListRegionStatusesRequest {}, token.for_question());
    let answer = client
        .list_region_statuses(request)
        .await
        .map_err(|e| Failure::from_status(format_args!("list the regions at {}", caller.url()), &e))?;
    Ok(answer.into_inner().regions.into_iter().map(RegionView::from).collect())
}

async fn status(arguments: &StatusArgs, format: Format) -> Result<(), Failure> {
    let Some(name) = &arguments.region else {
        let regions = statuses(&arguments.target, &arguments.token).await?;
        return match format {
            Format::Json => output::json(&RegionList { regions }),
            Format::Table => output::text(&regions.iter().map(status_text).collect::<Vec<_>>().join("\n")),
        };
    };
    let caller = gateway::operator(&arguments.target, &arguments.token).await?;
    let mut client = OperatorServiceClient::new(caller.channel());
    let request =
        caller.request(GetRegionStatusRequest { name: name.clone() }, arguments.token.for_question());
    let answer = client
        .get_region_status(request)
        .await
        .map_err(|e| Failure::from_status(format_args!("get the status of {name}"), &e))?;
    let region = answer.into_inner().region.ok_or_else(|| {
        Failure::new(Exit::Refused, format!("the gateway at {} sent no status of {name}", caller.url()))
    })?;
    let region = RegionView::from(region);
    match format {
        Format::Json => output::json(&region),
        Format::Table => output::text(&status_text(&region)),
    }
}

async fn transfer(arguments: &TransferArgs, format: Format) -> Result<(), Failure> {
    let name = &arguments.region;
    let caller = gateway::operator(&arguments.target, &arguments.token).await?;
    let mut client = OperatorServiceClient::new(caller.channel());
    let order = TransferLeaderRequest { name: name.clone(), to_node: arguments.to };
    let answer = client.transfer_leader(caller.request(order, arguments.token.for_question())).await;
    let done = answer
        .map_err(|e| Failure::from_status(format_args!("hand {name} to node {}", arguments.to), &e))?
        .into_inner();
    match format {
        Format::Json => {
            output::json(&Transferred { region: name, leader_node: done.leader_node, took_ms: done.took_ms })
        }
        Format::Table => output::text(&format!(
            "node {} leads {name} now; it took {} ms\n",
            done.leader_node, done.took_ms
        )),
    }
}

async fn export(arguments: &ExportArgs, format: Format) -> Result<(), Failure> {
    let name = &arguments.region;
    let limit = arguments.token.for_transfer();
    let mut file = NewFile::create(&arguments.file, arguments.overwrite)?;
    let caller = gateway::operator(&arguments.target, &arguments.token).await?;
    let mut client = OperatorServiceClient::new(caller.channel());
    let request = caller.request(ExportRegionRequest { name: name.clone() }, limit);
    let refused = |e: &tonic::Status| Failure::from_status(format_args!("export {name}"), e);
    let receive = async {
        let mut stream = client.export_region(request).await.map_err(|e| refused(&e))?.into_inner();
        let mut line = ProgressLine::default();
        // Only a stream that ends with an OK status ends this loop without an error: a cut one does not.
        while let Some(part) = stream.message().await.map_err(|e| refused(&e))? {
            file.write(&part.chunk)?;
            if io::stderr().is_terminal() {
                line.show(&format!("exporting {name}: {}", output::bytes(file.bytes)));
            }
        }
        line.clear();
        Ok::<_, Failure>(file)
    };
    let file = tokio::time::timeout(limit, receive).await.map_err(|_| {
        Failure::new(
            Exit::Unavailable,
            format!("exporting {name} took longer than {limit:?}: give more with --timeout"),
        )
    })??;
    let bytes = file.commit()?;
    match format {
        Format::Json => output::json(&Exported { region: name, file: &arguments.file, bytes }),
        Format::Table => output::text(&format!(
            "{name} was exported to {} ({})\n",
            arguments.file.display(),
            output::bytes(bytes)
        )),
    }
}

async fn import(arguments: &ImportArgs, format: Format) -> Result<(), Failure> {
    let name = &arguments.region;
    let limit = arguments.token.for_transfer();
    let unreadable = |e: io::Error| {
        Failure::new(Exit::Environment, format!("cannot read {}: {e}", arguments.file.display()))
    };
    let mut source = File::open(&arguments.file).map_err(unreadable)?;
    let size = source.metadata().map_err(unreadable)?;
    if !size.is_file() {
        return Err(Failure::new(Exit::Usage, format!("{} is not a file", arguments.file.display())));
    }
    // The service checks this and more; here it saves sending what cannot be accepted.
    snapshot_file::verify(&mut source).map_err(|e| {
        Failure::new(Exit::Usage, format!("{} cannot be imported: {e}", arguments.file.display()))
    })?;
    source.rewind().map_err(unreadable)?;
    if arguments.replace && !arguments.yes {
        confirm(name)?;
    }
    let begun = Instant::now();
    let caller = gateway::operator(&arguments.target, &arguments.token).await?;
    let mut client = OperatorServiceClient::new(caller.channel());
    // Two messages wait at most: the file is read as fast as it is sent.
    let (send, mut receive) = tokio::sync::mpsc::channel::<ImportRegionRequest>(2);
    let (first, replace) = (name.clone(), arguments.replace);
    let reader = tokio::task::spawn_blocking(move || -> io::Result<()> {
        let mut head = Some((first, replace));
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            if (&mut source).take(CHUNK_BYTES as u64).read_to_end(&mut chunk)? == 0 {
                return Ok(());
            }
            let (name, replace) = head.take().unwrap_or_default();
            let message = ImportRegionRequest { name, replace, chunk: Bytes::from(chunk) };
            if send.blocking_send(message).is_err() {
                // The call has ended; its answer says why.
                return Ok(());
            }
        }
    });
    let messages = futures_util::stream::poll_fn(move |context| receive.poll_recv(context));
    let left = limit.saturating_sub(begun.elapsed());
    let answer = client.import_region(caller.request(messages, left)).await;
    // After a refusal the reader may still wait for room, so only one that has ended is asked.
    if answer.is_ok() || reader.is_finished() {
        match reader.await {
            Ok(Ok(())) => {}
            // A file that could not be read to its end was not sent to its end: the service refuses it, too.
            Ok(Err(e)) => return Err(unreadable(e)),
            Err(e) => {
                return Err(Failure::new(Exit::Failed, format!("reading the file ended abnormally: {e}")));
            }
        }
    }
    let done = answer.map_err(|e| Failure::from_status(format_args!("import {name}"), &e))?.into_inner();
    match format {
        Format::Json => output::json(&Imported {
            region: name,
            incarnation: done.incarnation,
            applied_index: done.applied_index,
            digest: done.digest,
            rows: done.rows,
        }),
        Format::Table => output::text(&format!(
            "{name} was restored: {} rows, incarnation {}, applied index {}, digest {}\n",
            done.rows, done.incarnation, done.applied_index, done.digest
        )),
    }
}

/// Asks on the terminal whether a region may be replaced.
fn confirm(name: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            format!("--replace removes everything that {name} holds: confirm with --yes"),
        ));
    }
    output::note(&format!("This replaces everything that {name} holds. Type {name} to go on:"));
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| Failure::new(Exit::Environment, format!("cannot read the answer: {e}")))?;
    if answer.trim() == name {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, "not confirmed; nothing was changed"))
    }
}

/// The name of a region from `north` or `regions/north`.
pub fn region_name(text: &str) -> Result<String, String> {
    let id = text.strip_prefix("regions/").unwrap_or(text);
    if valid_region_id(id) {
        Ok(format!("regions/{id}"))
    } else {
        Err("a region's id is 1 to 32 of [a-z0-9-], starting with a letter".into())
    }
}

/// A file that gets its name only when it is complete and on disk. Dropped before, it leaves nothing.
#[derive(Debug)]
struct NewFile {
    path: PathBuf,
    temporary: tempfile::NamedTempFile,
    verifier: Verifier,
    overwrite: bool,
    bytes: u64,
}

impl NewFile {
    fn create(path: &Path, overwrite: bool) -> Result<Self, Failure> {
        if !overwrite && path.exists() {
            return Err(Self::exists(path));
        }
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // In the same directory, so that it can be renamed.
        let temporary = tempfile::Builder::new()
            .prefix(".tidewall-export-")
            .tempfile_in(directory)
            .map_err(|e| Self::failed(path, &e))?;
        Ok(Self { path: path.to_owned(), temporary, verifier: Verifier::default(), overwrite, bytes: 0 })
    }

    fn exists(path: &Path) -> Failure {
        Failure::new(
            Exit::Usage,
            format!("{} exists: choose another file, or replace it with --overwrite", path.display()),
        )
    }

    fn failed(path: &Path, error: &io::Error) -> Failure {
        Failure::new(Exit::Environment, format!("cannot write {}: {error}", path.display()))
    }

    fn write(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        self.temporary.write_all(chunk).map_err(|e| Self::failed(&self.path, &e))?;
        self.verifier.update(chunk);
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    /// Checks that the file is whole, syncs the content, gives the file its name, and syncs that. Returns its
    /// size in bytes.
    fn commit(self) -> Result<u64, Failure> {
        let Self { path, temporary, verifier, overwrite, bytes } = self;
        verifier.finish().map_err(|e| {
            Failure::new(
                Exit::Refused,
                format!(
                    "{} was not written: what the gateway sent is no whole export, {e}. Try again",
                    path.display()
                ),
            )
        })?;
        let failed = |e: io::Error| Self::failed(&path, &e);
        let length = temporary
            .as_file()
            .sync_all()
            .and_then(|()| temporary.as_file().metadata())
            .map_err(failed)?
            .len();
        if length != bytes {
            return Err(Failure::new(
                Exit::Environment,
                format!(
                    "{} has {length} bytes on disk, {bytes} were written: look at the disk",
                    path.display()
                ),
            ));
        }
        let directory = temporary.path().parent().map(Path::to_owned);
        if overwrite {
            temporary.persist(&path).map_err(|e| failed(e.error))?;
        } else {
            temporary.persist_noclobber(&path).map_err(|e| match e.error.kind() {
                io::ErrorKind::AlreadyExists => Self::exists(&path),
                _ => failed(e.error),
            })?;
        }
        if let Some(directory) = directory {
            File::open(directory).and_then(|d| d.sync_all()).map_err(failed)?;
        }
        Ok(bytes)
    }
}

impl From<RegionStatus> for RegionView {
    fn from(region: RegionStatus) -> Self {
        let replicas: Vec<ReplicaView> = region
            .replicas
            .into_iter()
            .map(|replica| ReplicaView {
                node: replica.node,
                role: role_word(ReplicaRole::try_from(replica.role).unwrap_or(ReplicaRole::Unspecified)),
                term: replica.term,
                last_log_index: replica.last_log_index,
                committed_index: replica.committed_index,
                applied_index: replica.applied_index,
                lag_entries: replica.lag_entries,
                digest: replica.digest,
                checkpoint_index: replica.checkpoint_index,
                checkpoint_backlog_pages: replica.checkpoint_backlog_pages,
                fault: replica.fault,
            })
            .collect();
        Self {
            name: region.name,
            display_name: region.display_name,
            leader_node: region.leader_node,
            term: region.term,
            applied_index: region.applied_index,
            lag_entries_max: replicas.iter().map(|replica| replica.lag_entries).max().unwrap_or(0),
            digest: region.digest,
            incarnation: region.incarnation,
            rows: region.rows,
            replicas,
            hot_rows: region
                .hot_rows
                .into_iter()
                .map(|row| HotRowView {
                    name: row.name,
                    commands_per_second: row.commands_per_second,
                    queued: row.queued,
                })
                .collect(),
        }
    }
}

fn role_word(role: ReplicaRole) -> &'static str {
    match role {
        ReplicaRole::Unspecified => "unknown",
        ReplicaRole::Leader => "leader",
        ReplicaRole::Follower => "follower",
        ReplicaRole::Candidate => "candidate",
        ReplicaRole::Learner => "learner",
        ReplicaRole::Halted => "HALTED",
        ReplicaRole::Unreachable => "UNREACHABLE",
    }
}

/// A node id, or a dash for none.
fn node_or_dash(node: u64) -> String {
    if node == 0 { "-".into() } else { node.to_string() }
}

fn list_table(regions: &[RegionView]) -> String {
    let rows = regions
        .iter()
        .map(|region| {
            let well = region.replicas.iter().filter(|replica| replica.fault.is_empty()).count();
            let hottest = region
                .hot_rows
                .first()
                .map_or_else(|| "-".into(), |row| format!("{} {:.0}/s", row.name, row.commands_per_second));
            vec![
                region.name.trim_start_matches("regions/").to_owned(),
                node_or_dash(region.leader_node),
                region.term.to_string(),
                region.applied_index.to_string(),
                region.lag_entries_max.to_string(),
                format!("{well}/{}", region.replicas.len()),
                region.rows.to_string(),
                region.digest.chars().take(12).collect(),
                hottest,
            ]
        })
        .collect();
    output::table(
        &["REGION", "LEADER", "TERM", "APPLIED", "LAG", "REPLICAS OK", "ROWS", "DIGEST", "HOTTEST ROW"],
        rows,
    )
}

fn status_text(region: &RegionView) -> String {
    let leader = if region.leader_node == 0 {
        "no leader".to_owned()
    } else {
        format!("led by node {}", region.leader_node)
    };
    let mut text = format!(
        "{} ({}): {leader}, term {}, incarnation {}, {} rows at index {}, digest {}\n\n",
        region.name,
        region.display_name,
        region.term,
        region.incarnation,
        region.rows,
        region.applied_index,
        region.digest
    );
    let replicas = region
        .replicas
        .iter()
        .map(|replica| {
            vec![
                replica.node.to_string(),
                replica.role.to_owned(),
                replica.term.to_string(),
                replica.last_log_index.to_string(),
                replica.committed_index.to_string(),
                replica.applied_index.to_string(),
                replica.lag_entries.to_string(),
                replica.checkpoint_index.to_string(),
                replica.checkpoint_backlog_pages.to_string(),
                replica.digest.clone(),
                replica.fault.clone(),
            ]
        })
        .collect();
    text += &output::table(
        &[
            "NODE",
            "ROLE",
            "TERM",
            "LAST",
            "COMMITTED",
            "APPLIED",
            "LAG",
            "CHECKPOINT",
            "BACKLOG",
            "DIGEST",
            "FAULT",
        ],
        replicas,
    );
    if !region.hot_rows.is_empty() {
        let rows = region
            .hot_rows
            .iter()
            .map(|row| {
                vec![row.name.clone(), format!("{:.1}", row.commands_per_second), row.queued.to_string()]
            })
            .collect();
        text.push('\n');
        text += &output::table(&["HOT ROW", "COMMANDS/S", "QUEUED"], rows);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tidewall_proto::v1::{HotRow, ReplicaStatus};

    use super::*;

    #[test]
    fn regions_are_named_in_both_ways() {
        assert_eq!(region_name("north").unwrap(), "regions/north");
        assert_eq!(region_name("regions/north").unwrap(), "regions/north");
        for bad in ["", "North", "regions/", "regions/a/b", "../x"] {
            assert!(region_name(bad).is_err(), "{bad:?}");
        }
    }

    fn sample() -> RegionView {
        RegionView::from(RegionStatus {
            name: "regions/north".into(),
            display_name: "North".into(),
            leader_node: 0,
            term: 4,
            applied_index: 99,
            digest: "0123456789abcdef0123456789abcdef".into(),
            rows: 7,
            replicas: vec![
                ReplicaStatus {
                    node: 1,
                    role: ReplicaRole::Follower as i32,
                    lag_entries: 2,
                    ..Default::default()
                },
                ReplicaStatus {
                    node: 2,
                    role: ReplicaRole::Unreachable as i32,
                    lag_entries: 5,
                    fault: "refused".into(),
                    ..Default::default()
                },
                ReplicaStatus { node: 3, role: 99, ..Default::default() },
            ],
            hot_rows: vec![HotRow {
                name: "regions/north/events/gala".into(),
                commands_per_second: 1234.5,
                queued: 3,
            }],
            ..Default::default()
        })
    }

    #[test]
    fn tables_show_leader_lag_health_and_hot_rows() {
        let text = list_table(&[sample()]);
        let row: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            row,
            ["north", "-", "4", "99", "5", "2/3", "7", "0123456789ab", "regions/north/events/gala", "1234/s"]
        );
        let text = status_text(&sample());
        assert!(
            text.contains("no leader") && text.contains("UNREACHABLE") && text.contains("unknown"),
            "{text}"
        );
        assert!(text.contains("refused") && text.contains("1234.5"), "{text}");
    }

    #[test]
    fn json_has_the_documented_fields() {
        let json = serde_json::to_value(RegionList { regions: vec![sample()] }).unwrap();
        let region = &json["regions"][0];
        assert_eq!(region["lag_entries_max"], 5);
        assert_eq!(region["replicas"][1]["role"], "UNREACHABLE");
        assert_eq!(region["hot_rows"][0]["queued"], 3);
    }

    fn names(path: &Path) -> Vec<String> {
        std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn an_export_gets_its_name_only_when_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("north.tidewall");
        let mut file = NewFile::create(&path, false).unwrap();
        file.write(b"half").unwrap();
        assert!(!path.exists());
        drop(file);
        assert!(names(directory.path()).is_empty());

        let whole = snapshot_file::tests::whole(b"rows");
        let mut cut = NewFile::create(&path, false).unwrap();
        cut.write(&whole[..whole.len() - 1]).unwrap();
        assert_eq!(cut.commit().unwrap_err().code(), 4);
        assert!(names(directory.path()).is_empty());

        let mut file = NewFile::create(&path, false).unwrap();
        file.write(&whole[..10]).unwrap();
        file.write(&whole[10..]).unwrap();
        assert_eq!(file.commit().unwrap(), whole.len() as u64);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!(names(directory.path()), ["north.tidewall"]);
    }

    #[test]
    fn an_existing_file_is_kept_unless_it_may_be_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("north.tidewall");
        let mut late = NewFile::create(&path, false).unwrap();
        late.write(&snapshot_file::tests::whole(b"late")).unwrap();
        std::fs::write(&path, "old").unwrap();
        assert_eq!(late.commit().unwrap_err().code(), 2);
        assert_eq!(NewFile::create(&path, false).unwrap_err().code(), 2);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let mut file = NewFile::create(&path, true).unwrap();
        let whole = snapshot_file::tests::whole(b"new");
        file.write(&whole).unwrap();
        file.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!(names(directory.path()), ["north.tidewall"]);
    }

    #[test]
    fn an_impossible_place_is_refused() {
        let failure = NewFile::create(Path::new("/nonexistent/x"), false).unwrap_err();
        assert_eq!(failure.code(), 5);
        assert!(failure.to_string().contains("/nonexistent/x"));
    }
}
