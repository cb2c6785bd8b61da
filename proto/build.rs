//! Compiles the .proto files with protox, so that no protoc is needed.

use std::path::PathBuf;

use prost::Message as _;

const FILES: &[&str] = &[
    "tidewall/v1/common.proto",
    "tidewall/v1/region.proto",
    "tidewall/v1/event.proto",
    "tidewall/v1/ticket.proto",
    "tidewall/v1/outcome.proto",
    "tidewall/v1/operator.proto",
    "tidewall/internal/v1/shard.proto",
    "tidewall/internal/v1/peer.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .extern_path(".tidewall.log.v1", "::tidewall_messages")
        // Entry payloads and file chunks are shared, not copied.
        .bytes(".tidewall.internal.v1.RaftEntry")
        .bytes(".tidewall.internal.v1.Command.payload")
        .bytes(".tidewall.internal.v1.Outcome.done")
        .bytes(".tidewall.internal.v1.QueryResult.module")
        .bytes(".tidewall.internal.v1.ExportResponse")
        .bytes(".tidewall.internal.v1.ImportRequest")
        .bytes(".tidewall.internal.v1.InstallSnapshotRequest")
        .bytes(".tidewall.v1.ExportRegionResponse")
        .bytes(".tidewall.v1.ImportRegionRequest")
        .compile_fds(descriptors)?;
    Ok(())
}
