//! Tests of the journal file: crashes at every byte, locks, bounds, failures.
#![allow(clippy::unwrap_used)]

use super::*;

fn sent(resource: &str) -> Sent {
    Sent {
        request_id: RequestId::fresh(),
        method: "tidewall.v1.TicketService/BuyTickets".into(),
        resource: resource.into(),
        expires_at_unix_ms: 1_790_000_000_000,
    }
}

fn open(path: &Path) -> Result<FileJournal, JournalError> {
    FileJournal::open(path, FileJournalOptions::default())
}

fn listed(path: &Path) -> Vec<Sent> {
    open(path).unwrap().unfinished()
}

#[tokio::test]
async fn what_was_begun_and_not_ended_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("requests");
    let requests = [sent("regions/a"), sent("regions/b"), sent("regions/c")];
    {
        let journal = open(&path).unwrap();
        journal.begin(&requests).await.unwrap();
        journal.end(&[requests[1].request_id]);
        assert_eq!(journal.unfinished(), [requests[0].clone(), requests[2].clone()]);
        assert_eq!(journal.path(), path);
    }
    assert_eq!(listed(&path), [requests[0].clone(), requests[2].clone()]);
    let journal = open(&path).unwrap();
    journal.end(&[requests[0].request_id, requests[2].request_id]);
    drop(journal);
    assert_eq!(listed(&path), []);
}

/// The file is cut at every length, as a crash can leave it. What was reported as written before that length
/// was reached must be there, what had ended before it too, and the journal must go on from there.
#[tokio::test]
async fn a_crash_at_any_byte_loses_no_request_that_was_reported_as_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("requests");
    // (length of the file when it was reported, request)
    let mut begun: Vec<(u64, Sent)> = Vec::new();
    let journal = open(&path).unwrap();
    for number in 0..6 {
        let request = sent(&format!("regions/north/events/event-{number}"));
        journal.begin(std::slice::from_ref(&request)).await.unwrap();
        begun.push((std::fs::metadata(&path).unwrap().len(), request));
        if number % 3 == 2 {
            journal.end(&[begun[number - 2].1.request_id]);
        }
    }
    drop(journal);
    let bytes = std::fs::read(&path).unwrap();
    let ended: Vec<RequestId> = [0, 3].map(|number: usize| begun[number].1.request_id).to_vec();
    assert!(bytes.len() as u64 > begun.last().unwrap().0, "the last ends were written at the close");
    let cut = directory.path().join("cut");
    for length in 0..=bytes.len() {
        std::fs::write(&cut, &bytes[..length]).unwrap();
        let journal = open(&cut).unwrap_or_else(|error| panic!("cut at {length}: {error}"));
        let found = journal.unfinished();
        for (written_at, request) in &begun {
            if *written_at <= length as u64 && !ended.contains(&request.request_id) {
                assert!(found.contains(request), "cut at {length}: {request:?} is gone");
            }
        }
        assert!(found.iter().all(|sent| begun.iter().any(|(_, request)| request == sent)), "cut at {length}");
        if length % 5 != 0 {
            continue;
        }
        // It goes on: nothing of the torn part comes back behind a new record.
        let next = sent("regions/next");
        journal.begin(std::slice::from_ref(&next)).await.unwrap();
        drop(journal);
        let mut expected = found;
        expected.push(next);
        assert_eq!(listed(&cut), expected, "cut at {length}");
    }
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("requests");
    let journal = open(&path).unwrap();
    for region in ["regions/a", "regions/b"] {
        journal.begin(&[sent(region)]).await.unwrap();
    }
    drop(journal);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[30] ^= 4;
    std::fs::write(&path, &bytes).unwrap();
    let error = open(&path).unwrap_err();
    assert!(matches!(error, JournalError::Damaged { offset: 8, .. }), "{error}");
    assert!(error.to_string().contains("start with a new one"));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);

    std::fs::write(&path, "#!/bin/sh\n").unwrap();
    assert!(matches!(open(&path).unwrap_err(), JournalError::Foreign { .. }));
    assert_eq!(std::fs::read(&path).unwrap(), b"#!/bin/sh\n");
}

#[test]
fn two_journals_do_not_share_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("requests");
    let first = open(&path).unwrap();
    assert!(matches!(open(&path).unwrap_err(), JournalError::InUse { .. }));
    drop(first);
    open(&path).unwrap();
}

#[test]
fn a_directory_that_does_not_exist_is_an_error_that_names_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let error = open(&directory.path().join("no/requests")).unwrap_err();
    assert!(matches!(error, JournalError::Io { .. }) && error.to_string().contains("no/requests"), "{error}");
}

#[tokio::test]
async fn the_number_of_open_requests_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let options = FileJournalOptions { open_max: 2, ..FileJournalOptions::default() };
    let journal = FileJournal::open(directory.path().join("requests"), options).unwrap();
    let first = sent("regions/a");
    journal.begin(std::slice::from_ref(&first)).await.unwrap();
    let error = journal.begin(&[sent("regions/b"), sent("regions/c")]).await.unwrap_err();
    assert!(matches!(error, JournalError::Full { open: 1, max: 2 }), "{error}");
    assert_eq!(journal.unfinished(), std::slice::from_ref(&first), "a refused request is not listed");
    journal.begin(&[sent("regions/b")]).await.unwrap();
    // The same id again needs no more room, and a place that is given back can be taken.
    journal.begin(std::slice::from_ref(&first)).await.unwrap();
    // A copy of an earlier call with that id may be under way for longer.
    journal.begin(&[Sent { expires_at_unix_ms: 1, ..first.clone() }]).await.unwrap();
    assert!(journal.unfinished().contains(&first));
    journal.end(&[first.request_id]);
    journal.begin(&[sent("regions/c")]).await.unwrap();
}

#[tokio::test]
async fn the_file_stays_small_and_keeps_what_is_open() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("requests");
    let options = FileJournalOptions { rewrite_bytes: 2048, ..FileJournalOptions::default() };
    let journal = FileJournal::open(&path, options).unwrap();
    let kept = sent("regions/kept");
    journal.begin(std::slice::from_ref(&kept)).await.unwrap();
    let mut largest = 0;
    for _ in 0..200 {
        let request = sent("regions/a");
        journal.begin(std::slice::from_ref(&request)).await.unwrap();
        journal.end(&[request.request_id]);
        largest = largest.max(std::fs::metadata(&path).unwrap().len());
    }
    // 200 requests and their ends take about 28,000 bytes.
    assert!(largest > 2048 && largest < 4096, "{largest}");
    drop(journal);
    assert_eq!(listed(&path), [kept]);
    assert!(!beside(&path, ".new").exists());
}

#[tokio::test]
async fn what_a_crash_leaves_of_a_rewrite_does_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("requests");
    let request = sent("regions/a");
    open(&path).unwrap().begin(std::slice::from_ref(&request)).await.unwrap();
    std::fs::write(beside(&path, ".new"), b"TWREQ").unwrap();
    assert_eq!(listed(&path), [request]);
}

#[tokio::test]
async fn a_write_that_fails_is_reported_to_everyone_who_waits_and_the_request_is_not_listed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("requests");
    // A file that cannot be written stands for a disk that fails; the last byte is what it took before it did.
    std::fs::write(&path, b"TWREQJ1\nx").unwrap();
    let disk = Disk { file: File::open(&path).unwrap(), path: path.clone(), length: 8, broken: None };
    let listed = Arc::new(Mutex::new(BTreeMap::new()));
    let mut writer = Writer { disk, open: listed.clone(), options: FileJournalOptions::default() };
    let (jobs, answers): (Vec<_>, Vec<_>) = (0..2)
        .map(|_| {
            let (answer, answered) = oneshot::channel();
            (Job::Begin(vec![sent("regions/a")], answer), answered)
        })
        .unzip();
    writer.write(jobs);
    for answered in answers {
        assert!(answered.await.unwrap().is_err());
    }
    assert!(listed.lock().is_empty());
    // It could not even be cut back: nobody knows what is there, so nothing more is taken.
    let (answer, answered) = oneshot::channel();
    writer.write(vec![Job::Begin(vec![sent("regions/b")], answer)]);
    assert!(matches!(answered.await.unwrap(), Err(JournalError::Broken { .. })));
}
