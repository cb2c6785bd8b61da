//! `tidewall region export` and `import`. A region must never be changed by a file that was not found whole before.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use tidewall_proto::v1::operator_service_client::OperatorServiceClient;
use tidewall_proto::v1::{ExportRegionRequest, ImportRegionRequest};

use super::new_file::NewFile;
use super::region_name;
use crate::confirm;
use crate::exit::{Exit, Failure};
use crate::gateway::{self, TargetArgs, TokenArgs};
use crate::output::{self, Format, ProgressLine};
use crate::snapshot_file;

/// Bytes in one message of an import.
const CHUNK_BYTES: usize = 256 << 10;

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

/// Saves a region to a file.
pub(super) async fn export(arguments: &ExportArgs, format: Format) -> Result<(), Failure> {
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
                line.show(&format!("exporting {name}: {}", output::bytes(file.bytes())));
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

/// Restores a file into a region.
pub(super) async fn import(arguments: &ImportArgs, format: Format) -> Result<(), Failure> {
    let name = &arguments.region;
    let limit = arguments.token.for_transfer();
    let unreadable = |e: io::Error| unreadable(&arguments.file, &e);
    let source = open_whole(&arguments.file)?;
    if arguments.replace && !arguments.yes {
        let what = format!("everything that {name} holds");
        let unattended = format!("--replace removes {what}: confirm with --yes");
        confirm::typed(&[name], &format!("This replaces {what}. Type {name} to go on:"), &unattended)?;
    }
    let begun = Instant::now();
    let caller = gateway::operator(&arguments.target, &arguments.token).await?;
    let mut client = OperatorServiceClient::new(caller.channel());
    // Two messages wait at most: the file is read as fast as it is sent.
    let (send, mut receive) = tokio::sync::mpsc::channel::<ImportRegionRequest>(2);
    let (first, replace) = (name.clone(), arguments.replace);
    let reader = tokio::task::spawn_blocking(move || send_file(source, first, replace, send));
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

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Environment, format!("cannot read {}: {error}", path.display()))
}

/// Opens a file that can be imported. The service checks this and more; here it saves sending what cannot be accepted.
fn open_whole(path: &Path) -> Result<File, Failure> {
    let unreadable = |e: io::Error| unreadable(path, &e);
    let mut file = File::open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(Failure::new(Exit::Usage, format!("{} is not a file", path.display())));
    }
    snapshot_file::verify(&mut file)
        .map_err(|e| Failure::new(Exit::Usage, format!("{} cannot be imported: {e}", path.display())))?;
    file.rewind().map_err(unreadable)?;
    Ok(file)
}

/// Reads a file to its end and sends it on; only the first message says what is to be done with it.
fn send_file(
    mut source: File,
    name: String,
    replace: bool,
    to: tokio::sync::mpsc::Sender<ImportRegionRequest>,
) -> io::Result<()> {
    let mut head = Some((name, replace));
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        if (&mut source).take(CHUNK_BYTES as u64).read_to_end(&mut chunk)? == 0 {
            return Ok(());
        }
        let (name, replace) = head.take().unwrap_or_default();
        let message = ImportRegionRequest { name, replace, chunk: Bytes::from(chunk) };
        if to.blocking_send(message).is_err() {
            // The call has ended; its answer says why.
            return Ok(());
        }
    }
}
