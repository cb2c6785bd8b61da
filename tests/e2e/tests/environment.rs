//! A machine that does not play along: ports, directories, disks. Each time the command ends with a code of
//! its own and a message that says what to do, and leaves what it found as it was.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use tidewall_e2e::audit::{Answer, Attempt, audit};
use tidewall_e2e::client::{Session, buy_request, event_of, request_id, retried, tier};
use tidewall_e2e::cluster::{Cluster, Kind, Options, run};
use tidewall_proto::v1::ReleaseHoldRequest;
use tonic::Code;

use crate::{alone, skipped};

/// Exit code for trouble with this machine, as `tidewall --help` documents it.
const ENVIRONMENT: i32 = 5;

/// `tidewall up` where it cannot work.
fn up(data: &Path, listen: &str) -> Output {
    let data = data.display().to_string();
    run(&["up", "--data", &data, "--listen", listen], Duration::from_secs(60)).unwrap()
}

#[track_caller]
fn says(output: &Output, what: &str, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr).to_string();
    assert_eq!(output.status.code(), Some(ENVIRONMENT), "{what}: {:?}: {text}", output.status);
    for word in words {
        assert!(text.contains(word), "{what}: the message lacks {word:?}: {text}");
    }
    assert!(!text.contains("panicked"), "{what}: {text}");
}

/// Every file below a directory with its content.
fn content(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                files.insert(path.clone(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

#[test]
fn a_port_in_use_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = up(&directory.path().join("data"), &address);
    says(&output, "a port in use", &[&address, "in use", "--listen"]);
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    // Root may write anywhere, so the obstacle is a file where a directory should be.
    let file = directory.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    says(&up(&file, "127.0.0.1:0"), "a file", &[&file.display().to_string(), "--data"]);
    let below = file.join("data");
    says(&up(&below, "127.0.0.1:0"), "below a file", &[&below.display().to_string(), "--data"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

#[test]
fn somebody_elses_directory_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("thesis.tex"), "years of work").unwrap();
    let before = content(directory.path());
    says(&up(directory.path(), "127.0.0.1:0"), "a foreign directory", &["thesis.tex", "--data"]);
    assert_eq!(content(directory.path()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_another_format_or_cluster_is_refused_and_a_directory_serves_one_supervisor() {
    let _alone = alone().await;
    let directory = tempfile::tempdir().unwrap();
    let start = async |name: &str| {
        let data = Some(directory.path().join(name));
        Cluster::start(Options { data, ..Options::default() }).await.unwrap()
    };
    let mut first = start("first").await;
    let organiser = first.session("olga", &["organiser"]).unwrap();
    let region = organiser.region_names().await.unwrap().swap_remove(0);
    let event = organiser.create_event(&region, event_of(vec![tier("ga", 5)])).await.unwrap();

    // A second supervisor on the same directory; the first goes on undisturbed.
    says(&up(first.data(), "127.0.0.1:0"), "a second supervisor", &["in use"]);
    assert_eq!(organiser.event(&event.name).await.unwrap(), event);
    first.stop().unwrap();

    // A format from the future.
    let topology = first.data().join("topology.json");
    let original = std::fs::read_to_string(&topology).unwrap();
    let mut altered: serde_json::Value = serde_json::from_str(&original).unwrap();
    altered["format"] = 99.into();
    std::fs::write(&topology, altered.to_string()).unwrap();
    let output = up(first.data(), "127.0.0.1:0");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(text.contains("99") && text.contains("format"), "{text}");
    std::fs::write(&topology, &original).unwrap();

    // The rows of another cluster under this cluster's name: the nodes must refuse them.
    let mut second = start("second").await;
    second.stop().unwrap();
    let (own, kept) = (first.data().join("node-1"), first.data().with_extension("kept"));
    std::fs::rename(&own, &kept).unwrap();
    std::fs::rename(second.data().join("node-1"), &own).unwrap();
    let foreign = content(&own);
    // Whoever refuses them names the cluster that they belong to.
    let other = std::fs::read_to_string(second.data().join("topology.json")).unwrap();
    let other: serde_json::Value = serde_json::from_str(&other).unwrap();
    let other = other["cluster"].as_str().unwrap();
    first.restart_unsettled().await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !first.log_tail().contains(other) {
        assert!(tokio::time::Instant::now() < deadline, "nobody refuses foreign data\n{}", first.log_tail());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The other two are a majority and serve.
    let organiser = first.session("olga", &["organiser"]).unwrap();
    assert_eq!(organiser.event(&event.name).await.unwrap(), event);
    let shards = first.processes().into_iter().filter(|(kind, _)| *kind == Kind::Shard).count();
    assert_eq!(shards, 2, "a node runs on the data of another cluster\n{}", first.log_tail());
    first.kill_all();
    assert!(content(&own) == foreign, "refused data were changed");

    // With its own data back it is whole again.
    std::fs::remove_dir_all(&own).unwrap();
    std::fs::rename(&kept, &own).unwrap();
    first.restart().await.unwrap();
    let organiser = first.session("olga", &["organiser"]).unwrap();
    assert_eq!(organiser.event(&event.name).await.unwrap(), event);
}

/// A file system of fixed size in memory, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where this user or this machine cannot mount.
    fn new(megabytes: u32) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory.path()).output();
        mount.is_ok_and(|output| output.status.success()).then_some(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is just dying may still have a file open.
        Command::new("umount").arg("-l").arg(self.0.path()).status().ok();
    }
}

#[test]
fn a_disk_without_room_is_refused_at_the_start() {
    let Some(disk) = SmallDisk::new(1) else {
        return skipped("start on a full disk", "no tmpfs can be mounted here (run as root)");
    };
    let output = up(&disk.path().join("data"), "127.0.0.1:0");
    let text = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(!output.status.success(), "a cluster started on 1 MiB");
    let text = text.to_lowercase();
    assert!(text.contains("room") || text.contains("space") || text.contains("full"), "{text}");
    assert!(!text.contains("panicked"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_refuses_sales_and_loses_nothing() {
    let _alone = alone().await;
    let Some(disk) = SmallDisk::new(1024) else {
        return skipped("a disk that fills up", "no tmpfs can be mounted here (run as root)");
    };
    let data = Some(disk.path().join("data"));
    let mut cluster = Cluster::start(Options { data, ..Options::default() }).await.unwrap();
    let organiser = cluster.session("olga", &["organiser"]).unwrap();
    let region = organiser.region_names().await.unwrap().swap_remove(0);
    let event = organiser.create_event(&region, event_of(vec![tier("ga", 1_000_000)])).await.unwrap().name;
    let alice = cluster.session("alice", &[]).unwrap();
    let mut history = Vec::new();
    let mut buy = async |cluster: &Cluster, alice: &Session| -> Option<tonic::Status> {
        let id = request_id();
        let mut request = alice.request(buy_request(&event, "ga", 1, &id));
        request.set_timeout(Duration::from_secs(3));
        let (answer, refusal) = match alice.tickets().buy_tickets(request).await {
            Ok(response) => (Answer::Bought(response.into_inner().purchase.unwrap().tickets), None),
            Err(status) => {
                let allowed = [Code::ResourceExhausted, Code::Unavailable, Code::DeadlineExceeded];
                assert!(allowed.contains(&status.code()), "{status:?}\n{}", cluster.log_tail());
                assert!(!status.message().is_empty(), "{status:?}");
                // Refused for overload means not decided; the others may have been.
                let sure = status.code() == Code::ResourceExhausted;
                (if sure { Answer::Refused } else { Answer::Unknown }, Some(status))
            }
        };
        let (buyer, tier) = ("alice".to_owned(), "ga".to_owned());
        history.push(Attempt { buyer, request_id: id, tier, quantity: 1, answer });
        refusal
    };
    for _ in 0..50 {
        assert!(buy(&cluster, &alice).await.is_none());
    }

    // Short of space, but not without: new work is refused, what was begun is finished, and nobody falls over.
    let hold = alice.hold(&event, "ga", 1).await.unwrap().name;
    let processes = cluster.processes();
    let filler = disk.path().join("filler");
    let mut written = std::fs::File::create(&filler).unwrap();
    let free = || {
        let found = rustix::fs::statvfs(disk.path()).unwrap();
        found.f_bavail * found.f_frsize
    };
    while free() > 60 << 20 {
        std::io::Write::write_all(&mut written, &vec![1; 4 << 20]).unwrap();
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let refusal = loop {
        if let Some(refusal) = buy(&cluster, &alice).await {
            break refusal;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "60 MiB are enough for new work\n{}",
            cluster.log_tail()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal:?}");
    let release = ReleaseHoldRequest { name: hold, request_id: request_id() };
    let released = retried(async || alice.tickets().release_hold(alice.request(release.clone())).await).await;
    released.expect("what was begun is finished");
    assert_eq!(cluster.processes(), processes, "a process has ended\n{}", cluster.log_tail());

    // Fill it to the last byte.
    let mut size = 64 << 20;
    while size >= 4096 {
        if std::io::Write::write_all(&mut written, &vec![1; size]).is_err() {
            size /= 2;
        }
    }
    drop(written);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
    while buy(&cluster, &alice).await.is_none() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "a full disk refuses nothing\n{}",
            cluster.log_tail()
        );
    }

    // Room again: the same cluster sells again, if need be after a restart by an operator.
    std::fs::remove_file(&filler).unwrap();
    if cluster.wait_settled(Duration::from_secs(60)).await.is_err() {
        cluster.kill_all();
        cluster.restart().await.unwrap();
    }
    // The gateway may have another port now.
    let alice = cluster.session("alice", &[]).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
    while buy(&cluster, &alice).await.is_some() {
        assert!(tokio::time::Instant::now() < deadline, "room does not help\n{}", cluster.log_tail());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let organiser = cluster.session("olga", &["organiser"]).unwrap();
    let row = organiser.event(&event).await.unwrap();
    let wrong = audit(&history, &row, &organiser.tickets_of(&event, "*").await.unwrap());
    assert!(wrong.is_empty(), "{wrong:#?}");
    drop(cluster);
    drop(disk);
}

/// A pipe without room that nobody reads, as long as the reading end lives.
fn full_pipe() -> (std::io::PipeReader, Arc<OwnedFd>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let writer = OwnedFd::from(writer);
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while rustix::io::write(&writer, &[b'.'; 512]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader, Arc::new(writer))
}

/// What a service manager, `nohup` or a careless script may do to a process before it runs: SIGHUP and SIGCHLD are ignored, all
/// signals are blocked, and standard output and error are a pipe that nobody reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_runs_under_any_process_manager() {
    let _alone = alone().await;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let hears = |wanted: &str| {
        let mut state = [0; 64];
        let length = manager.recv(&mut state).unwrap();
        assert_eq!(std::str::from_utf8(&state[..length]).unwrap(), wanted);
    };
    let (_reader, output) = full_pipe();
    // Signals that are blocked stay so over an exec, unless somebody lets them through.
    let block = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32)); \
                 os.execvp(sys.argv[1], sys.argv[1:])";
    let script = "trap '' HUP CHLD; exec python3 -c \"$0\" \"$@\"";
    let mut cluster = Cluster::start(Options {
        data: Some(directory.path().join("data")),
        under: ["sh", "-c", script, block].map(String::from).to_vec(),
        environment: vec![("NOTIFY_SOCKET".into(), socket.display().to_string())],
        output: Some(output),
        ..Options::default()
    })
    .await
    .unwrap();
    hears("READY=1");
    cluster.hang_up().unwrap();
    let (_, node) = cluster.processes()[0];
    cluster.kill(node).unwrap();
    cluster.wait_settled(Duration::from_secs(60)).await.unwrap();
    assert!(cluster.processes().iter().all(|(_, id)| *id != node), "the killed node was not started again");
    let status = cluster.stop().unwrap();
    assert!(status.success(), "{status}\n{}", cluster.log_tail());
    hears("STOPPING=1");
}

/// Data, logs, keys and the topology are for the user who runs the cluster and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn other_users_of_the_machine_can_read_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let _alone = alone().await;
    let cluster = Cluster::start(Options::default()).await.unwrap();
    let organiser = cluster.session("olga", &["organiser"]).unwrap();
    let region = organiser.region_names().await.unwrap().swap_remove(0);
    organiser.create_event(&region, event_of(vec![tier("ga", 5)])).await.unwrap();
    let (mut left, mut looked_at) = (vec![cluster.data().to_owned()], 0);
    while let Some(path) = left.pop() {
        let Ok(found) = std::fs::metadata(&path) else { continue };
        let mode = found.permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
        looked_at += 1;
        if found.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert!(looked_at > 20, "{looked_at} files and directories");
}
