//! What commands print: results to standard output, as a table or as JSON, everything else to standard
//! error. With JSON, standard output holds one JSON document and nothing else.

use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::exit::{Exit, Failure};
use crate::stderr::{self, Stderr};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON document.
    Json,
}

/// Prints text to standard output. A reader that has gone away (`| head`) is no error.
pub fn text(text: &str) -> Result<(), Failure> {
    // On a terminal both stand in one order.
    stderr::flush();
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Environment, format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Prints a value as one JSON document.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::new(Exit::Failed, format!("cannot write the result as JSON: {e}")))?;
    text(&(json + "\n"))
}

/// A value as JSON on a single line, for readers that wait for it while this process goes on.
pub fn as_json_line(value: &impl Serialize) -> Result<String, Failure> {
    let json = serde_json::to_string(value)
        .map_err(|e| Failure::new(Exit::Failed, format!("cannot write the result as JSON: {e}")))?;
    Ok(json + "\n")
}

/// Prints a line for people to standard error. A closed or full one is no reason to stop or wait.
pub fn note(line: &str) {
    let _ = Stderr.write_all(format!("{line}\n").as_bytes());
}

/// Says on standard error why a command did not do its work: for programs as one JSON document on a line.
pub fn failure(failure: &Failure, format: Format) {
    let json =
        serde_json::json!({ "error": { "exit_code": failure.code(), "message": failure.to_string() } });
    note(&match format {
        Format::Table => format!("error: {failure}"),
        Format::Json => json.to_string(),
    });
}

/// Lays out rows under headings, as wide as the terminal allows.
pub fn table(headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !io::stdout().is_terminal() {
        // Nobody to wrap for; a script gets one line a row.
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table.set_header(headings);
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt() + "\n"
}

/// A count of bytes for people.
pub fn bytes(count: u64) -> String {
    let mut whole = count;
    let mut rest = 0;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if whole < 1024 {
            return if unit == "B" {
                format!("{whole} B")
            } else {
                format!("{whole}.{} {unit}", rest * 10 / 1024)
            };
        }
        rest = whole % 1024;
        whole /= 1024;
    }
    format!("{whole}.{} TiB", rest * 10 / 1024)
}

/// A line on standard error that replaces itself on a terminal, and is written anew where it is kept.
#[derive(Debug)]
pub struct ProgressLine {
    terminal: bool,
    shown: String,
}

impl Default for ProgressLine {
    fn default() -> Self {
        Self { terminal: io::stderr().is_terminal(), shown: String::new() }
    }
}

impl ProgressLine {
    /// Whether the line replaces itself.
    pub fn on_terminal(&self) -> bool {
        self.terminal
    }

    /// Shows a line, unless it is the one that is shown already.
    pub fn show(&mut self, line: &str) {
        if line == self.shown {
            return;
        }
        let text = if self.terminal { format!("\r\x1b[K{line}") } else { format!("{line}\n") };
        let _ = Stderr.write_all(text.as_bytes());
        line.clone_into(&mut self.shown);
    }

    /// Removes the line from a terminal.
    pub fn clear(&mut self) {
        if self.terminal && !self.shown.is_empty() {
            let _ = Stderr.write_all(b"\r\x1b[K");
        }
        self.shown.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_a_line_for_each_row() {
        let text = table(
            &["REGION", "LEADER"],
            vec![vec!["north".into(), "1".into()], vec!["s".into(), "-".into()]],
        );
        let lines: Vec<_> = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(lines, [["REGION", "LEADER"], ["north", "1"], ["s", "-"]]);
    }

    #[test]
    fn bytes_are_readable() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(256 << 20), "256.0 MiB");
        assert_eq!(bytes(u64::MAX), "16777215.9 TiB");
    }
}
