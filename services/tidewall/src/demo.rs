//! `tidewall demo`: a sale to watch. A thin shell, like `load`.

use std::io::{self, IsTerminal as _};

use clap::{Args, Subcommand};
use tidewall_load::Target;
use tidewall_load::demo::{DemoOptions, Live};

use crate::borrowed::{self, Source};
use crate::exit::Failure;
use crate::load;
use crate::output::Format;

/// Arguments of `tidewall demo`.
#[derive(Debug, Args)]
pub struct DemoCommand {
    /// What to show
    #[command(subcommand)]
    pub scene: Scene,
}

/// What can be shown.
#[derive(Debug, Subcommand)]
pub enum Scene {
    /// A small stock, a crowd at the same moment, and a proof that every ticket has one owner
    #[command(
        name = "flash-sale",
        after_help = "Examples:\n  tidewall demo flash-sale\n  tidewall demo flash-sale --buyers 20000 --stock 500 -o json\n\n\
                      Without a running cluster it starts one of its own. The exit code is 0 only if the audit is ok."
    )]
    FlashSale(FlashSaleArgs),
}

/// Arguments of `tidewall demo flash-sale`.
#[derive(Debug, Args)]
pub struct FlashSaleArgs {
    /// People who want a ticket [default: 5000]
    #[arg(long, value_name = "N")]
    pub buyers: Option<u64>,
    /// Tickets on sale [default: 1000]
    #[arg(long, value_name = "N")]
    pub stock: Option<u64>,
    /// Region of the event [default: the seed chooses one]
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,
    /// Connections to the gateways [default: 4]
    #[arg(long, value_name = "N")]
    pub connections: Option<usize>,
    /// Decides what is left to chance [default: 1]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Which cluster
    #[command(flatten)]
    pub source: Source,
}

/// Runs the command.
pub async fn run(command: &DemoCommand, format: Format, log: Option<&str>) -> Result<(), Failure> {
    let Scene::FlashSale(arguments) = &command.scene;
    let base = DemoOptions::default();
    let live = match format {
        Format::Json => Live::Quiet,
        Format::Table if io::stdout().is_terminal() => Live::Rewrite,
        Format::Table => Live::Lines,
    };
    let options = DemoOptions {
        buyers: arguments.buyers.unwrap_or(base.buyers),
        stock: arguments.stock.unwrap_or(base.stock),
        region: arguments.region.clone(),
        connections: arguments.connections.unwrap_or(base.connections),
        seed: arguments.seed.unwrap_or(base.seed),
        live,
    };
    let report = borrowed::with_target(&arguments.source, log, async |target: &Target| {
        tidewall_load::demo::flash_sale(target, &options, &mut io::stdout()).await.map_err(load::failure)
    })
    .await?;
    if format == Format::Json {
        load::print(&report, format)?;
    }
    load::verdict(&report)
}
