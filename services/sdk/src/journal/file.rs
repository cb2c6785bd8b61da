//! A journal in a file that survives SIGKILL and power cuts. One thread writes it: what many calls begin at the
//! same moment goes to disk together, with one fdatasync. It must never say that a request is written before
//! that sync, and never go on after one that failed.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::format::{self, Contents, Unreadable};
use super::{JournalError, OPEN_MAX_DEFAULT, RequestJournal, Sent};
use crate::RequestId;

/// How long the end of a request may wait for company before it is written.
const END_DELAY: Duration = Duration::from_millis(100);
/// Jobs that are written together at most.
const JOBS_MAX: usize = 4096;

/// Bounds of a journal file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileJournalOptions {
    /// Requests without a known outcome at most; more are refused.
    pub open_max: usize,
    /// The file is rewritten when it is larger than this many bytes and than four times what is open, so it
    /// stays below about the larger of the two.
    pub rewrite_bytes: u64,
}

impl Default for FileJournalOptions {
    /// 100,000 requests; rewritten from 4 MiB on.
    fn default() -> Self {
        Self { open_max: OPEN_MAX_DEFAULT, rewrite_bytes: 4 << 20 }
    }
}

/// Writes requests into a file. A second file, with `.lock` behind its name, keeps other processes away.
#[derive(Debug)]
pub struct FileJournal {
    open: Arc<Mutex<BTreeMap<RequestId, Sent>>>,
    path: PathBuf,
    jobs: Option<Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    /// Held as long as the journal is; the system lets go of it when the process ends, however it ends.
    _lock: File,
}

enum Job {
    Begin(Vec<Sent>, oneshot::Sender<Result<(), JournalError>>),
    End(Vec<RequestId>),
}

impl FileJournal {
    /// Opens a journal, or makes one where there is none. What a crash cut short is dropped: nobody was told
    /// that it was safe. Blocks for some reads and syncs.
    ///
    /// # Errors
    /// [`JournalError::InUse`], [`JournalError::Foreign`], [`JournalError::Damaged`] or [`JournalError::Io`].
    pub fn open(path: impl Into<PathBuf>, options: FileJournalOptions) -> Result<Self, JournalError> {
        let path = path.into();
        let lock = lock(&path)?;
        let contents = load(&path)?;
        let whole = contents.whole;
        let open = Arc::new(Mutex::new(contents.open));
        let mut disk = Disk {
            file: File::options()
                .append(false)
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(failed(&path, "opening it"))?,
            path: path.clone(),
            length: whole,
            broken: None,
        };
        if whole == 0 {
            // Also when a crash left less than a header: only a whole file ever gets the name.
            disk.rewrite(&open.lock())?;
        } else {
            disk.cut().map_err(failed(&path, "dropping what a crash cut short"))?;
        }
        let (jobs, inbox) = channel();
        let writer = Writer { disk, open: open.clone(), options };
        let writer = std::thread::Builder::new()
            .name("request-journal".into())
            .spawn(move || writer.run(&inbox))
            .map_err(failed(&path, "starting its thread"))?;
        Ok(Self { open, path, jobs: Some(jobs), writer: Some(writer), _lock: lock })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn gone(&self) -> JournalError {
        JournalError::Broken { path: self.path.clone(), why: "its thread has ended".into() }
    }
}

#[async_trait]
impl RequestJournal for FileJournal {
    async fn begin(&self, requests: &[Sent]) -> Result<(), JournalError> {
        for sent in requests {
            format::check(sent)?;
        }
        let (answer, answered) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(|| self.gone())?;
        jobs.send(Job::Begin(requests.to_vec(), answer)).map_err(|_| self.gone())?;
        answered.await.map_err(|_| self.gone())?
    }

    fn end(&self, request_ids: &[RequestId]) {
        let mut open = self.open.lock();
        for id in request_ids {
            open.remove(id);
        }
        drop(open);
        if let Some(jobs) = &self.jobs {
            // Without its thread the file keeps the request, which is then listed once more than necessary.
            let _ = jobs.send(Job::End(request_ids.to_vec()));
        }
    }

    fn unfinished(&self) -> Vec<Sent> {
        self.open.lock().values().cloned().collect()
    }
}

impl Drop for FileJournal {
    /// Writes what has ended and waits for it.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // A panic of the thread was printed where it happened.
            let _ = writer.join();
        }
    }
}

fn failed(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { path, doing, source }
}

/// `path` with something behind its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Takes the lock. It is on a file of its own because the journal's is replaced when it is rewritten.
fn lock(path: &Path) -> Result<File, JournalError> {
    let name = beside(path, ".lock");
    let file = File::options().create(true).truncate(false).write(true).open(name);
    let file = file.map_err(failed(path, "making its lock file"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(JournalError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(path, "locking it")(source)),
    }
}

fn load(path: &Path) -> Result<Contents, JournalError> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(failed(path, "reading it"))?,
    };
    format::read(&bytes).map_err(|unreadable| match unreadable {
        Unreadable::Foreign => JournalError::Foreign { path: path.to_owned() },
        Unreadable::Damaged(offset) => JournalError::Damaged { path: path.to_owned(), offset },
    })
}

/// The file and how far it is known to be good.
struct Disk {
    file: File,
    path: PathBuf,
    length: u64,
    /// Why nobody knows what is on the disk any more.
    broken: Option<String>,
}

impl Disk {
    /// Makes the file end where it is good, and safe so far.
    fn cut(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.length))?;
        if self.file.metadata()?.len() == self.length {
            return Ok(());
        }
        self.file.set_len(self.length)?;
        self.file.sync_all()
    }

    /// Appends a batch and makes it safe.
    fn append(&mut self, batch: &[u8]) -> Result<(), JournalError> {
        if let Some(why) = &self.broken {
            return Err(JournalError::Broken { path: self.path.clone(), why: why.clone() });
        }
        if let Err(source) = self.file.write_all(batch) {
            // A full disk, for example: nothing was synced, so the part that was written may go.
            if let Err(error) = self.cut() {
                self.broken = Some(format!("{source}, then {error}"));
            }
            return Err(failed(&self.path, "writing")(source));
        }
        if let Err(source) = self.file.sync_data() {
            // After a failed sync the system may have dropped the pages and call them clean.
            self.broken = Some(source.to_string());
            return Err(failed(&self.path, "making it safe")(source));
        }
        self.length += batch.len() as u64;
        Ok(())
    }

    /// Replaces the file by one that holds only what is open.
    fn rewrite(&mut self, open: &BTreeMap<RequestId, Sent>) -> Result<(), JournalError> {
        let mut bytes = format::MAGIC.to_vec();
        let batch = bytes.len() as u64;
        for sent in open.values() {
            format::put_begun(&mut bytes, batch, sent);
        }
        let name = beside(&self.path, ".new");
        let write = || {
            let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&name)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&name, &self.path)?;
            Ok(file)
        };
        let file = write().map_err(failed(&self.path, "rewriting it"))?;
        self.file = file;
        self.length = bytes.len() as u64;
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Without this a power cut may bring the old file back, without what is appended to the new one.
        File::open(parent).and_then(|directory| directory.sync_all()).map_err(|source| {
            self.broken = Some(source.to_string());
            failed(&self.path, "making its new name safe")(source)
        })
    }
}

/// The thread that owns the file.
struct Writer {
    disk: Disk,
    open: Arc<Mutex<BTreeMap<RequestId, Sent>>>,
    options: FileJournalOptions,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Job>) {
        loop {
            let Ok(first) = inbox.recv() else { return };
            let (jobs, last) = gather(inbox, first);
            self.write(jobs);
            if last {
                return;
            }
        }
    }

    /// Writes jobs as one batch and answers those who wait.
    fn write(&mut self, jobs: Vec<Job>) {
        let batch = self.disk.length;
        let mut bytes = Vec::new();
        let mut begun: Vec<Sent> = Vec::new();
        let mut waiting = Vec::new();
        let mut room = self.options.open_max.saturating_sub(self.open.lock().len());
        for job in jobs {
            match job {
                Job::End(ids) => {
                    for id in ids {
                        format::put_ended(&mut bytes, batch, id);
                    }
                }
                Job::Begin(requests, answer) => {
                    let open = self.open.lock();
                    let new = requests.iter().filter(|sent| !open.contains_key(&sent.request_id)).count();
                    if new > room {
                        let (open, max) = (self.options.open_max.saturating_sub(room), self.options.open_max);
                        let _ = answer.send(Err(JournalError::Full { open, max }));
                        continue;
                    }
                    room -= new;
                    for sent in requests {
                        let sent = sent.merged(open.get(&sent.request_id));
                        format::put_begun(&mut bytes, batch, &sent);
                        begun.push(sent);
                    }
                    waiting.push(answer);
                }
            }
        }
        if bytes.is_empty() {
            return;
        }
        match self.disk.append(&bytes) {
            Ok(()) => {
                self.open.lock().extend(begun.into_iter().map(|sent| (sent.request_id, sent)));
                for answer in waiting {
                    // Who no longer waits has dropped its call; the request stays listed.
                    let _ = answer.send(Ok(()));
                }
                self.rewrite_if_large();
            }
            Err(error) => {
                let why = error.to_string();
                let mut error = Some(error);
                for answer in waiting {
                    let broken = || JournalError::Broken { path: self.disk.path.clone(), why: why.clone() };
                    let _ = answer.send(Err(error.take().unwrap_or_else(broken)));
                }
            }
        }
    }

    fn rewrite_if_large(&mut self) {
        if self.disk.length <= self.options.rewrite_bytes {
            return;
        }
        let open = self.open.lock().clone();
        let needed: u64 = open.values().map(format::size_of).sum();
        if self.disk.length > 4 * needed {
            // When it fails the old file goes on (or the disk is marked as broken): the next batch tells.
            let _ = self.disk.rewrite(&open);
        }
    }
}

/// Jobs to write together, and whether they are the last ones. Ends alone wait a moment for company; a request
/// that begins never waits.
fn gather(inbox: &Receiver<Job>, first: Job) -> (Vec<Job>, bool) {
    let write_at = Instant::now() + END_DELAY;
    let mut urgent = matches!(first, Job::Begin(..));
    let mut jobs = vec![first];
    while jobs.len() < JOBS_MAX {
        let wait = if urgent { Duration::ZERO } else { write_at.saturating_duration_since(Instant::now()) };
        match inbox.recv_timeout(wait) {
            Ok(job) => {
                urgent |= matches!(job, Job::Begin(..));
                jobs.push(job);
            }
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => return (jobs, true),
        }
    }
    (jobs, false)
}

#[cfg(test)]
#[path = "file_test.rs"]
mod tests;
