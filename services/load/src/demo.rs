//! The sale that a person watches: a small stock, a crowd, a live line, and a proof at the end. It only
//! words what [`crate::flash_sale`] reports; it must never claim what the audit has not found.

use std::io::Write;
use std::time::Duration;

use parking_lot::Mutex;

use crate::report::grouped;
use crate::{FlashSale, LoadError, Mode, Phase, Progress, Report, Target};

/// How the sale is shown while it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Live {
    /// One line, written again and again: for terminals.
    Rewrite,
    /// A line each second and at each new phase: for logs and pipes.
    Lines,
    /// Nothing: the report only, as for `-o json`, where the caller prints the [`Report`].
    Quiet,
}

/// What the demo sells and to whom.
#[derive(Debug, Clone, PartialEq)]
pub struct DemoOptions {
    /// Tickets on sale.
    pub stock: u64,
    /// People who want one, all at the same moment.
    pub buyers: u64,
    /// Home region; `None` lets the seed choose.
    pub region: Option<String>,
    /// Connections to the gateways.
    pub connections: usize,
    /// Decides what is left to chance.
    pub seed: u64,
    /// How it is shown.
    pub live: Live,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self { stock: 1_000, buyers: 5_000, region: None, connections: 4, seed: 1, live: Live::Lines }
    }
}

/// The live line and what it needs to remember.
struct Screen<'a, W: Write> {
    out: &'a mut W,
    live: Live,
    shown: Option<(Phase, Duration)>,
    width: usize,
    failed: Option<std::io::Error>,
}

impl<W: Write> Screen<'_, W> {
    fn show(&mut self, progress: &Progress) {
        let due = match self.shown {
            Some((phase, at)) if phase == progress.phase => {
                let every = if self.live == Live::Rewrite { 100 } else { 1_000 };
                progress.elapsed >= at + Duration::from_millis(every)
            }
            _ => true,
        };
        // The last message of the sale carries its final counts: never skip it.
        let last = progress.phase == Phase::Sell && progress.total == Some(progress.done);
        if self.live == Live::Quiet || self.failed.is_some() || !(due || last) {
            return;
        }
        self.shown = Some((progress.phase, progress.elapsed));
        let text = line(progress);
        let written = if self.live == Live::Rewrite {
            // Blanks cover what a longer line has left behind.
            let padding = self.width.saturating_sub(text.chars().count());
            self.width = text.chars().count();
            write!(self.out, "\r{text}{:padding$}", "").and_then(|()| self.out.flush())
        } else {
            writeln!(self.out, "{text}").and_then(|()| self.out.flush())
        };
        self.failed = written.err();
    }
}

/// A progress message as one line.
pub fn line(progress: &Progress) -> String {
    let of = |done: u64, total: Option<u64>| match total {
        Some(total) => format!("{} of {}", grouped(done), grouped(total)),
        None => grouped(done),
    };
    let steps = of(progress.done, progress.total);
    match progress.phase {
        Phase::Prepare => "preparing: connecting, creating events".to_owned(),
        Phase::Mint => format!("making tokens: {steps}"),
        Phase::Sell => {
            let mut text = format!(
                "selling {:5.1} s: {steps} buyers answered, {} sold, {} sold out",
                progress.elapsed.as_secs_f64(),
                grouped(progress.sold),
                grouped(progress.sold_out)
            );
            for (number, name) in [
                (progress.overloaded, "gave up"),
                (progress.unknown, "unknown"),
                (progress.errors, "errors"),
                (progress.retries, "calls repeated"),
            ] {
                if number > 0 {
                    text.push_str(&format!(", {} {name}", grouped(number)));
                }
            }
            text
        }
        Phase::Resolve => format!("asking what became of lost answers: {steps}"),
        Phase::Audit => format!("auditing: {steps} tickets read back"),
    }
}

/// What the audit proves, in words; one finding a line. Claims nothing when the audit is not ok.
pub fn proof(report: &Report) -> String {
    let mut text = String::new();
    let verdict = if report.ok() { "PASSED" } else { "FAILED" };
    text.push_str(&format!("Audit: {verdict}\n"));
    if !report.ok() {
        text.push_str(&format!("  {}\n", report.audit));
        if let Some(why) = &report.aborted {
            text.push_str(&format!("  {why}\n"));
        }
        return text;
    }
    text.push_str(&format!(
        "  {} tickets read back, {} distinct numbers, each with one owner ({} owners)\n",
        grouped(report.tickets_read_back),
        grouped(report.distinct_tickets),
        grouped(report.owners)
    ));
    text.push_str(&format!(
        "  {} acknowledged purchases, {} receipts: strictly increasing places in the log, none used twice\n",
        grouped(report.sold),
        grouped(report.receipts)
    ));
    for event in &report.events {
        text.push_str(&format!(
            "  {}: capacity {} = {} free + {} held + {} sold{}\n",
            event.event,
            event.capacity,
            event.free,
            event.held,
            event.sold,
            if event.free == 0 && event.held == 0 { ", sold out exactly" } else { "" }
        ));
    }
    text.push_str(&format!(
        "  oversold {}, duplicates {}, lost {}\n",
        report.oversold, report.duplicates, report.lost
    ));
    text
}

/// Sells a small stock to a crowd, shows it, and prints report and proof (unless [`Live::Quiet`]).
///
/// # Errors
/// As [`crate::flash_sale`], and [`LoadError::Output`] when `out` cannot be written to.
pub async fn flash_sale(
    target: &Target,
    options: &DemoOptions,
    out: &mut (impl Write + Send),
) -> Result<Report, LoadError> {
    let plan = FlashSale {
        region: options.region.clone(),
        buyers: options.buyers,
        stock: options.stock,
        mode: Mode::AllAtOnce,
        connections: options.connections,
        seed: options.seed,
        ..FlashSale::default()
    };
    if options.live != Live::Quiet {
        writeln!(
            out,
            "Flash sale: {} tickets, {} buyers, all at the same moment.",
            grouped(options.stock),
            grouped(options.buyers)
        )
        .map_err(LoadError::Output)?;
    }
    let screen =
        Mutex::new(Screen { out: &mut *out, live: options.live, shown: None, width: 0, failed: None });
    let result = crate::flash_sale(target, &plan, |progress| screen.lock().show(&progress)).await;
    let Screen { shown, failed, .. } = screen.into_inner();
    if options.live == Live::Rewrite && shown.is_some() && failed.is_none() {
        // Leaves the live line, also before an error is printed.
        writeln!(out).map_err(LoadError::Output)?;
    }
    let report = result?;
    if let Some(error) = failed {
        return Err(LoadError::Output(error));
    }
    if options.live != Live::Quiet {
        write!(out, "\n{report}\n{}", proof(&report))
            .and_then(|()| out.flush())
            .map_err(LoadError::Output)?;
    }
    Ok(report)
}
