//! The machine that a figure was measured on, and what processes cost: everything is read from /proc.
//!
//! Nothing here changes anything.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// Kernel clock ticks a second in /proc/PID/stat: the unit is part of Linux's ABI on every architecture that
/// we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a reader must know to judge a figure.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// Model name of the first processor.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Load averages over 1, 5 and 15 minutes when the run began: above a fraction of a core, others were
    /// working, too.
    pub load_before: String,
    /// The same when the run was over.
    pub load_after: String,
    /// File system below the data directories.
    pub file_system: String,
    /// Versions of what was measured.
    pub versions: Vec<String>,
}

impl Machine {
    /// Looks at the machine; `directory` is where the data directories are made.
    pub fn look(directory: &Path) -> Self {
        let first = |file: &str, field: &str| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(field)).unwrap_or_default().to_owned();
            line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
        };
        let memory_kib = first("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0u64);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            kernel: kernel.trim().to_owned(),
            processor: first("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory_kib / 1024,
            load_before: load(),
            load_after: String::new(),
            file_system: file_system(directory),
            versions: Vec::new(),
        }
    }

    /// One paragraph for people.
    pub fn describe(&self) -> String {
        format!(
            "{} · {} cores · {} MiB · Linux {} · {} · load before {} after {}\n{}",
            self.processor,
            self.cores,
            self.memory_mib,
            self.kernel,
            self.file_system,
            self.load_before,
            if self.load_after.is_empty() { "–" } else { &self.load_after },
            self.versions.join(" · ")
        )
    }
}

/// The three load averages.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// First line of what a program says about its version.
pub fn version_of(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).to_string()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown version").trim().to_owned()
}

fn file_system(directory: &Path) -> String {
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mount = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (device, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
            directory.starts_with(point).then_some((point.len(), format!("{kind} on {device}")))
        })
        .max();
    let found = mount.map_or("unknown file system".to_owned(), |(_, text)| text);
    if found.starts_with("tmpfs") || found.starts_with("ramfs") {
        return format!("{found} (NOT DURABLE: choose a directory on a disk with --dir)");
    }
    found
}

/// What a group of processes has cost so far, or costs now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Processor seconds, in user and kernel mode, ended children included.
    pub cpu_seconds: f64,
    /// Resident memory added up, MiB; what processes share counts in each.
    pub rss_mib: f64,
    /// The same with shared pages divided among those who share them.
    pub pss_mib: f64,
    /// How many processes.
    pub processes: usize,
}

/// Usage of a process and everything below it.
pub fn usage(root: u32) -> Usage {
    let mut members = BTreeSet::from([root]);
    let table = table();
    // Parents may have higher ids than their children: repeat until nothing is added.
    loop {
        let more: Vec<u32> = table
            .iter()
            .filter(|p| members.contains(&p.parent) && !members.contains(&p.id))
            .map(|p| p.id)
            .collect();
        if more.is_empty() {
            break;
        }
        members.extend(more);
    }
    let mut total = Usage::default();
    for process in table.iter().filter(|process| members.contains(&process.id)) {
        total.cpu_seconds += process.ticks as f64 / TICKS_PER_SECOND;
        total.rss_mib += memory_kib(process.id, "status", "VmRSS:") / 1024.0;
        total.pss_mib += memory_kib(process.id, "smaps_rollup", "Pss:") / 1024.0;
        total.processes += 1;
    }
    total
}

/// Processor seconds of a process and everything below it; cheaper than [`usage`].
pub fn cpu_seconds(root: u32) -> f64 {
    let mut members = BTreeSet::from([root]);
    let table = table();
    loop {
        let before = members.len();
        members
            .extend(table.iter().filter(|p| members.contains(&p.parent)).map(|p| p.id).collect::<Vec<_>>());
        if members.len() == before {
            break;
        }
    }
    table.iter().filter(|p| members.contains(&p.id)).map(|p| p.ticks as f64 / TICKS_PER_SECOND).sum()
}

struct Process {
    id: u32,
    parent: u32,
    ticks: u64,
}

fn table() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|id| parse_stat(id, &std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?))
        .collect()
}

fn parse_stat(id: u32, stat: &str) -> Option<Process> {
    // The name in parentheses may contain anything; the fields start behind the last one.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    // proc(5): field 3 is the first here, so 4 = parent, 14 to 17 = utime, stime, cutime, cstime.
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Process { id, parent: fields.get(1)?.parse().ok()?, ticks })
}

fn memory_kib(id: u32, file: &str, field: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0.0)
}

/// Bytes on disk below a directory: what is allocated, not what files pretend to be long.
pub fn disk_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => disk_bytes(&entry.path()),
            Ok(data) => data.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Lets this process open as many files as the system allows: a thousand clients are a thousand sockets.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Refused or not, what it means is seen when a socket cannot be opened.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_with_a_wicked_name_is_parsed() {
        let stat = "7 (a) (b 1 2) S 3 7 7 0 -1 4194560 1 2 0 0 10 20 30 40 20 0 1 0 5 6 7";
        let process = parse_stat(7, stat);
        assert_eq!(process.map(|p| (p.parent, p.ticks)), Some((3, 100)));
    }

    #[test]
    fn the_usage_of_this_process_counts_its_children() {
        let own = usage(std::process::id());
        assert!(own.rss_mib > 0.0 && own.processes >= 1, "{own:?}");
        let mut child = Command::new("sleep").arg("30").spawn().expect("sleep is everywhere");
        let with_child = usage(std::process::id());
        child.kill().expect("our own child");
        child.wait().expect("our own child");
        assert!(with_child.processes > own.processes, "{own:?} {with_child:?}");
    }
}
