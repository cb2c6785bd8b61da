//! The comparison for people (a table), for programs (JSON) and for the README (a plot).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use plotters::prelude::*;
use serde::Serialize;

use crate::cell::Measured;
use crate::machine::Machine;

/// What a row measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum System {
    /// Tidewall through its gateway.
    Tidewall,
    /// PostgreSQL, BEGIN; UPDATE; INSERT; COMMIT.
    PostgresTwoStatements,
    /// PostgreSQL, one function call.
    PostgresSingleStatement,
    /// PostgreSQL, one connection that buys many per statement.
    PostgresBatched,
    /// Redis with a Lua script.
    Redis,
    /// A gRPC call that does nothing.
    Echo,
}

impl System {
    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tidewall => "Tidewall, 3 replicas",
            Self::PostgresTwoStatements => "PostgreSQL, two statements",
            Self::PostgresSingleStatement => "PostgreSQL, one statement",
            Self::PostgresBatched => "PostgreSQL, 64 per statement",
            Self::Redis => "Redis, appendfsync always",
            Self::Echo => "bare tonic echo",
        }
    }
}

/// One cell of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// What was measured.
    pub system: System,
    /// Clients at once.
    pub clients: usize,
    /// The figures; `None` when it could not be measured.
    pub measured: Option<Measured>,
    /// Throughput divided by that of PostgreSQL's better unbatched form at as many clients in this run.
    pub times_postgres: Option<f64>,
    /// Why there is no figure, or why it is worthless.
    pub note: Option<String>,
}

/// A whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// Measured seconds of each cell.
    pub seconds: u64,
    /// All cells.
    pub rows: Vec<Cell>,
}

impl Report {
    /// Fills in the ratios.
    pub fn compare(&mut self) {
        let mut best: BTreeMap<usize, f64> = BTreeMap::new();
        for row in &self.rows {
            let naive = matches!(row.system, System::PostgresTwoStatements | System::PostgresSingleStatement);
            if let (true, Some(measured)) = (naive && row.note.is_none(), &row.measured) {
                let entry = best.entry(row.clients).or_default();
                *entry = entry.max(measured.per_second);
            }
        }
        for row in &mut self.rows {
            let base = best.get(&row.clients).copied().filter(|base| *base > 0.0);
            row.times_postgres = base.zip(row.measured.as_ref()).map(|(base, m)| m.per_second / base);
        }
    }

    /// The table with the machine above and what to know below.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN).set_header([
            "system",
            "clients",
            "purchases/s",
            "× PostgreSQL",
            "p50 ms",
            "p99 ms",
            "server CPU µs",
            "client CPU µs",
            "memory MiB",
            "note",
        ]);
        for row in &self.rows {
            let mut cells = vec![row.system.name().to_owned(), row.clients.to_string()];
            match &row.measured {
                Some(m) => cells.extend([
                    format!("{:.0}", m.per_second),
                    row.times_postgres.map_or("–".into(), |times| format!("{times:.1}")),
                    format!("{:.2}", m.p50_ms),
                    format!("{:.2}", m.p99_ms),
                    format!("{:.0}", m.server_cpu_us),
                    format!("{:.0}", m.client_cpu_us),
                    format!("{:.0}", m.memory_mib),
                ]),
                None => cells.extend(["n/a"; 7].map(str::to_owned)),
            }
            let mut notes: Vec<String> = row.note.iter().cloned().collect();
            if let Some(m) = row.measured.as_ref().filter(|m| m.overloaded > 0) {
                notes.push(format!("{} × told to come back", m.overloaded));
            }
            cells.push(notes.join("; "));
            table.add_row(cells);
        }
        for column in 1..9 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!(
            "{}\nOne hot row, durable before the answer, a fresh request id each; {} s a cell, closed loop.\n\n{table}\n\n\
             × PostgreSQL: against the better of its two unbatched forms at as many clients in this run.\n\
             CPU: per purchase, summed over all server processes; memory: their proportional set size.\n\
             PostgreSQL and Redis answer over Unix sockets and are not replicated; Tidewall answers over TCP\n\
             from three replicas. The gain is in batching: compare with the batched form, too.",
            self.machine.describe(),
            self.seconds
        )
    }

    /// Draws throughput and p99 over clients.
    ///
    /// # Errors
    /// When the file cannot be written or nothing was measured.
    pub fn plot(&self, file: &Path) -> anyhow::Result<()> {
        let mut throughput: BTreeMap<System, Vec<(f64, f64)>> = BTreeMap::new();
        let mut latency = throughput.clone();
        for row in &self.rows {
            if let Some(m) = row.measured.as_ref().filter(|m| m.per_second > 0.0) {
                throughput.entry(row.system).or_default().push((row.clients as f64, m.per_second));
                latency.entry(row.system).or_default().push((row.clients as f64, m.p99_ms.max(0.01)));
            }
        }
        anyhow::ensure!(!throughput.is_empty(), "nothing was measured, so there is nothing to plot");
        let root = SVGBackend::new(file, (1200, 520)).into_drawing_area();
        let draw = || -> Result<(), Box<dyn std::error::Error>> {
            root.fill(&WHITE)?;
            let halves = root.split_evenly((1, 2));
            chart(&halves[0], "decided purchases per second", &throughput)?;
            chart(&halves[1], "p99 latency, ms", &latency)?;
            root.present()?;
            Ok(())
        };
        draw()
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(|| format!("cannot draw {}", file.display()))
    }
}

/// A table without lines, for who reads it in a terminal.
pub fn plain<const COLUMNS: usize>(
    header: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(header);
    table.add_rows(rows);
    table.trim_fmt() + "\n"
}

fn chart(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    series: &BTreeMap<System, Vec<(f64, f64)>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let points = || series.values().flatten();
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(f64::MIN, f64::max);
    let least = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(f64::MAX, f64::min);
    let clients = (least(|p| p.0) * 0.8)..(most(|p| p.0) * 1.3);
    let values = (least(|p| p.1) * 0.6)..(most(|p| p.1) * 1.8);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(70)
        .build_cartesian_2d(clients.log_scale(), values.log_scale())?;
    chart.configure_mesh().x_desc("clients").label_style(("sans-serif", 13)).draw()?;
    for (position, (system, points)) in series.iter().enumerate() {
        let colour = Palette99::pick(position).to_rgba();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(4))?
            .label(system.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 13))
        .position(SeriesLabelPosition::UpperLeft)
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn row(system: System, clients: usize, per_second: f64) -> Cell {
        let measured = Measured {
            per_second,
            calls: 1,
            p50_ms: 1.0,
            p99_ms: 2.0,
            max_ms: 3.0,
            server_cpu_us: 4.0,
            client_cpu_us: 5.0,
            memory_mib: 6.0,
            overloaded: 0,
            errors: 0,
            first_error: None,
        };
        Cell { system, clients, measured: Some(measured), times_postgres: None, note: None }
    }

    fn report() -> Report {
        let rows = vec![
            row(System::Tidewall, 100, 20_000.0),
            row(System::PostgresTwoStatements, 100, 500.0),
            row(System::PostgresSingleStatement, 100, 1000.0),
            row(System::Tidewall, 1, 900.0),
        ];
        let mut report = Report { machine: Machine::look(Path::new("/")), seconds: 5, rows };
        report.compare();
        report
    }

    #[test]
    fn ratios_are_against_the_better_unbatched_form_at_as_many_clients() {
        let report = report();
        assert_eq!(report.rows[0].times_postgres, Some(20.0));
        assert_eq!(report.rows[3].times_postgres, None);
        assert!(report.table().contains("20.0"));
    }

    #[test]
    fn a_row_that_failed_is_no_base_for_a_ratio() {
        let mut report = report();
        report.rows[2].note = Some("3 errors".into());
        report.compare();
        assert_eq!(report.rows[0].times_postgres, Some(40.0));
    }

    #[test]
    fn the_plot_names_every_system() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("plot.svg");
        report().plot(&file).unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        for system in [System::Tidewall, System::PostgresTwoStatements] {
            assert!(text.contains(system.name()), "{text}");
        }
    }
}
