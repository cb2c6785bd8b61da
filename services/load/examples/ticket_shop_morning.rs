//! Writes the sample trace of the ticket shop's morning. Deterministic: the same bytes every time.
//!
//! ```text
//! cargo run -p tidewall-load --example ticket_shop_morning -- tests/traces/ticket-shop-morning.csv
//! ```

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("say where to write the trace, for example tests/traces/ticket-shop-morning.csv");
        return ExitCode::from(2);
    };
    match std::fs::write(&path, tidewall_load::ticket_shop::morning()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}
