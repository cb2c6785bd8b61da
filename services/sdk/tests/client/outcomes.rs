//! Calls that end in doubt, and how the doubt ends.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidewall_sdk::{
    Code, Error, Executed, FileJournal, FileJournalOptions, NotDecided, Options, Reason, RequestId,
    RequestJournal, Resolution, Sent, Stop, api,
};

use crate::fake::{Act, Gateway, status};
use crate::{MS, buy, client, one, patient};

/// Options of calls whose answer never comes.
fn hasty() -> Options {
    Options { deadline: 300 * MS, ..Options::default() }
}

fn sold_out() -> api::Rejection {
    api::Rejection {
        code: Code::FailedPrecondition.into(),
        reason: "SOLD_OUT".into(),
        message: "no ticket is left".into(),
    }
}

#[tokio::test]
async fn a_lost_answer_is_unknown_and_its_outcome_can_be_asked_for() {
    let (region, gateway) = one();
    region.will([Act::Swallow]);
    let client = client(&[&gateway], hasty());
    let error = client.buy_tickets(buy()).await.unwrap_err();
    let Error::Unknown { request_id, stop: Stop::Deadline, .. } = error else { panic!("{error:?}") };
    assert_eq!(client.unfinished()[0].request_id, request_id);
    let patient = client.within(Duration::from_secs(60));
    let resolution = patient.resolve(request_id).await.unwrap();
    let bought = region.decided.lock()[&request_id.to_string()].clone().unwrap();
    assert_eq!(resolution, Resolution::Executed { result: Executed::Purchase(bought), receipt: None });
    assert_eq!(client.unfinished(), []);
    let error = patient.resolve(request_id).await.unwrap_err();
    assert!(matches!(error, Error::NotDecided { why: NotDecided::Invalid(_), .. }), "{error:?}");
}

#[tokio::test]
async fn a_call_whose_future_is_dropped_stays_listed() {
    let (region, gateway) = one();
    region.will([Act::Hang]);
    let client = client(&[&gateway], patient());
    tokio::select! {
        result = client.buy_tickets(buy()) => panic!("{result:?}"),
        () = region.stuck.notified() => {}
    }
    let open = client.unfinished();
    assert_eq!(open.iter().map(|sent| sent.request_id.to_string()).collect::<Vec<_>>(), region.ids());
    // A copy may still be under way: that nothing was decided so far is not final.
    let resolution = client.resolve(open[0].request_id).await.unwrap();
    assert_eq!(resolution, Resolution::Open);
    assert_eq!(client.unfinished(), open);
    // Sealed, it is: the copy that comes late is not executed.
    assert_eq!(client.seal(open[0].request_id).await.unwrap(), Resolution::NeverDecided);
    assert_eq!(client.unfinished(), []);
    let late = api::BuyTicketsRequest { request_id: open[0].request_id.to_string(), ..buy() };
    let refused = client.buy_tickets(late).await.unwrap_err();
    assert_eq!(refused.reason(), Some(&Reason::RequestIdSealed));
    assert_eq!(*region.executed.lock(), 0);
}

#[tokio::test]
async fn what_an_earlier_process_left_in_doubt_is_listed_and_resolved() {
    let (region, mut gateway) = one();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("requests");
    let open = || FileJournal::open(&path, FileJournalOptions::default()).unwrap();
    region.will([Act::Swallow]);
    let error = client(&[&gateway], hasty().with_journal(open())).buy_tickets(buy()).await.unwrap_err();
    let Error::Unknown { request_id, .. } = error else { panic!("{error:?}") };
    gateway.kill();

    let gateway = Gateway::start(1, &region);
    let client = client(&[&gateway], patient().with_journal(open()));
    let listed = client.unfinished();
    assert_eq!((listed.len(), listed[0].request_id), (1, request_id));
    assert!(matches!(client.resolve(request_id).await.unwrap(), Resolution::Executed { .. }));
    drop(client);
    assert_eq!(open().unfinished(), []);
}

#[tokio::test]
async fn what_was_not_decided_is_final_when_it_is_sealed_and_not_when_time_has_passed() {
    let (region, gateway) = one();
    let options = patient();
    let journal = options.journal.clone();
    let client = client(&[&gateway], options);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let listed = |expires_at_unix_ms| Sent {
        request_id: RequestId::fresh(),
        method: "tidewall.v1.TicketService/BuyTickets".into(),
        resource: "regions/north/events/gala".into(),
        expires_at_unix_ms,
    };
    let (old, new) = (listed(now - 60_000), listed(now + 60_000));
    journal.begin(&[old.clone(), new.clone()]).await.unwrap();
    for sent in [&old, &new] {
        assert_eq!(client.resolve(sent.request_id).await.unwrap(), Resolution::Open);
    }
    assert_eq!(client.seal(old.request_id).await.unwrap(), Resolution::NeverDecided);
    assert_eq!(client.unfinished(), std::slice::from_ref(&new));

    region.decided.lock().insert(new.request_id.to_string(), Err(sold_out()));
    let resolution = client.resolve(new.request_id).await.unwrap();
    let Resolution::Rejected { no, .. } = resolution else { panic!("{resolution:?}") };
    assert_eq!((no.reason, no.code), (Some(Reason::SoldOut), Code::FailedPrecondition));

    *region.forgotten.lock() = true;
    let forgotten = listed(now);
    journal.begin(std::slice::from_ref(&forgotten)).await.unwrap();
    assert_eq!(client.seal(forgotten.request_id).await.unwrap(), Resolution::Forgotten);
    assert_eq!(client.unfinished(), []);
}

#[tokio::test]
async fn a_quick_no_after_a_lost_attempt_is_not_taken_for_an_answer() {
    let (region, gateway) = one();
    let no = || Act::Fail(status(Code::FailedPrecondition, "SOLD_OUT", None));
    let lost = || Act::Fail(status(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", None));
    // Sealed, the id is nobody's any more: the lost copy will not buy after the "no".
    region.will([lost(), no()]);
    let client = client(&[&gateway], patient());
    let error = client.buy_tickets(buy()).await.unwrap_err();
    assert!(matches!(&error, Error::Decided { .. }), "{error:?}");
    assert_eq!(error.reason(), Some(&Reason::SoldOut));
    assert_eq!((region.sealed.lock().len(), client.unfinished().len()), (1, 0));

    // A no that the region remembers is one.
    let request_id = RequestId::fresh();
    region.decided.lock().insert(request_id.to_string(), Err(sold_out()));
    region.will([lost(), no()]);
    let request = api::BuyTicketsRequest { request_id: request_id.to_string(), ..buy() };
    let error = client.buy_tickets(request).await.unwrap_err();
    assert!(matches!(&error, Error::Decided { no, .. } if no.message == "no ticket is left"), "{error:?}");
}
