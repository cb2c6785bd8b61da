//! The client against gateways that fail in every way that matters. No test depends on how fast the machine is:
//! deadlines that must be reached are short, all others long.
#![allow(clippy::unwrap_used)]

mod batches;
mod fake;
mod outcomes;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use fake::{Act, Gateway, Region, nobody, status};
use parking_lot::Mutex;
use tidewall_sdk::{
    Client, Code, Error, JournalError, MemoryJournal, NotDecided, Options, Reason, RequestId, RequestJournal,
    RetryBudget, Sent, StaticToken, Stop, api, token_fn,
};
use tonic::Status;

const MS: Duration = Duration::from_millis(1);

/// Options with which no call ends because the machine is busy.
fn patient() -> Options {
    Options {
        deadline: Duration::from_secs(60),
        attempt_timeout: Duration::from_secs(30),
        ..Options::default()
    }
}

fn client(gateways: &[&Gateway], options: Options) -> Client {
    Client::connect(gateways.iter().map(|gateway| gateway.url()), StaticToken::new("alice"), options).unwrap()
}

fn buy() -> api::BuyTicketsRequest {
    api::BuyTicketsRequest {
        parent: "regions/north/events/gala".into(),
        tier_id: "ga".into(),
        quantity: 1,
        ..Default::default()
    }
}

fn one() -> (Arc<Region>, Gateway) {
    let region = Arc::new(Region::default());
    let gateway = Gateway::start(0, &region);
    (region, gateway)
}

#[tokio::test]
async fn a_purchase_carries_token_deadline_and_an_id_that_is_in_the_journal_before_it_is_sent() {
    let (region, gateway) = one();
    let journal = Arc::new(MemoryJournal::default());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (listed, writes) = (journal.clone(), seen.clone());
    *region.on_arrival.lock() = Some(Box::new(move |_| writes.lock().extend(listed.unfinished())));
    let options = Options { journal: journal.clone(), ..patient() };
    let done = client(&[&gateway], options).buy_tickets(buy()).await.unwrap();
    assert_eq!((done.attempts, done.answer.purchase.unwrap().tickets.len()), (1, 1));
    let arrival = region.arrivals.lock()[0].clone();
    assert_eq!(arrival.request_id, done.request_id.to_string());
    assert_eq!(arrival.authorization, "Bearer alice");
    assert!(!arrival.timeout.is_empty());
    let sent = seen.lock()[0].clone();
    assert_eq!((sent.request_id, sent.region()), (done.request_id, "regions/north"));
    assert_eq!(sent.method, "tidewall.v1.TicketService/BuyTickets");
    assert_eq!(journal.unfinished(), [], "its outcome is known");
}

#[tokio::test]
async fn an_answer_lost_with_its_gateway_is_asked_for_with_the_same_id_at_another() {
    let region = Arc::new(Region::default());
    let mut gateways = [Gateway::start(0, &region), Gateway::start(1, &region)];
    region.will([Act::Swallow]);
    let client = client(&[&gateways[0], &gateways[1]], patient());
    let call = tokio::spawn(async move { client.buy_tickets(buy()).await });
    region.stuck.notified().await;
    let first = region.arrivals.lock()[0].gateway;
    gateways[first].kill();
    let done = call.await.unwrap().unwrap();
    assert_eq!(done.attempts, 2);
    let arrivals = region.arrivals.lock().clone();
    assert_eq!(arrivals[1].gateway, 1 - first);
    assert_eq!(region.ids(), [done.request_id.to_string(), done.request_id.to_string()]);
    assert_eq!(*region.executed.lock(), 1);
}

#[tokio::test]
async fn a_gateway_that_says_nothing_is_left_for_another() {
    let region = Arc::new(Region::default());
    let gateways = [Gateway::start(0, &region), Gateway::start(1, &region)];
    region.will([Act::Hang]);
    let options = Options { attempt_timeout: 300 * MS, ..patient() };
    let done = client(&[&gateways[0], &gateways[1]], options).buy_tickets(buy()).await.unwrap();
    let arrivals = region.arrivals.lock().clone();
    assert_ne!(arrivals[0].gateway, arrivals[1].gateway);
    assert!(region.ids().iter().all(|id| *id == done.request_id.to_string()));
}

#[tokio::test]
async fn a_peer_that_is_dead_behind_a_living_connection_is_found_by_the_probe() {
    let (region, gateway) = one();
    // The system accepts connections here, and nobody ever reads them: as with a machine that lost its power.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    let options = Options {
        // An attempt may take as long as the call: only the probe can end it earlier.
        attempt_timeout: Duration::from_secs(60),
        keepalive_interval: 200 * MS,
        keepalive_timeout: 200 * MS,
        ..patient()
    };
    let client = Client::connect([silent_url, gateway.url()], StaticToken::new("alice"), options).unwrap();
    let mut attempts = 0;
    // Calls take turns, so one of two begins at the silent one.
    for _ in 0..2 {
        attempts += client.buy_tickets(buy()).await.unwrap().attempts;
    }
    assert_eq!((attempts, *region.executed.lock()), (3, 2));
}

#[tokio::test]
async fn where_nobody_listens_costs_no_doubt_and_no_budget() {
    let (region, gateway) = one();
    let budget = RetryBudget { max_tokens: 2, token_ratio_thousandths: 1 };
    let addresses = [nobody(), gateway.url(), nobody()];
    let options = Options { budget, ..patient() };
    let client = Client::connect(addresses, StaticToken::new("alice"), options).unwrap();
    for _ in 0..12 {
        client.buy_tickets(buy()).await.unwrap();
    }
    assert_eq!((*region.executed.lock(), region.ids().len()), (12, 12));
}

#[tokio::test]
async fn when_no_gateway_is_there_nothing_was_decided_for_certain() {
    let options = Options { deadline: 600 * MS, ..Options::default() };
    let attempts = Arc::new(Mutex::new(0));
    let counted = attempts.clone();
    let tokens = token_fn(move || {
        *counted.lock() += 1;
        async { Ok("alice".to_owned()) }
    });
    let client = Client::connect([nobody(), nobody()], tokens, options).unwrap();
    let error = client.buy_tickets(buy()).await.unwrap_err();
    let Error::NotDecided { request_id: Some(_), why: NotDecided::Stopped { stop: Stop::Deadline, last } } =
        &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(last.as_ref().unwrap().code, Code::Unavailable);
    // Once each, then with pauses: not as fast as connections can be refused.
    assert!((2..60).contains(&*attempts.lock()), "{attempts:?}");
    assert_eq!(client.unfinished(), []);
}

#[tokio::test]
async fn a_gateway_that_comes_back_is_found_by_a_call_that_waits() {
    let (region, mut gateway) = one();
    let client = client(&[&gateway], patient());
    client.buy_tickets(buy()).await.unwrap();
    let url = gateway.url();
    gateway.kill();
    let call = {
        let client = client.clone();
        tokio::spawn(async move { client.buy_tickets(buy()).await })
    };
    let back = Gateway::start_at(7, &region, url.trim_start_matches("http://")).await;
    call.await.unwrap().unwrap();
    assert_eq!(region.arrivals.lock().last().unwrap().gateway, 7);
    drop(back);
}

#[tokio::test]
async fn overload_is_waited_out_exactly_as_long_as_the_service_says() {
    let (region, gateway) = one();
    let delay = 250 * MS;
    region.will([Act::Fail(status(Code::ResourceExhausted, "OVERLOADED", Some(delay)))]);
    // A pause of our own would be far longer than the test runs.
    let mut options = patient();
    options.backoff.first = Duration::from_secs(3600);
    options.backoff.max = Duration::from_secs(3600);
    client(&[&gateway], options).buy_tickets(buy()).await.unwrap();
    let arrivals = region.arrivals.lock();
    assert!(arrivals[1].at - arrivals[0].at >= delay);
    assert_eq!(arrivals[0].request_id, arrivals[1].request_id);
}

#[tokio::test]
async fn an_unavailable_region_and_an_unknown_outcome_are_tried_again_with_the_same_id() {
    let (region, gateway) = one();
    region.will([
        Act::Fail(status(Code::Unavailable, "REGION_UNAVAILABLE", Some(5 * MS))),
        Act::Fail(status(Code::DeadlineExceeded, "EXPIRED", None)),
        Act::Fail(status(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", None)),
        Act::Fail(Status::unavailable("the proxy says so")),
    ]);
    let done = client(&[&gateway], patient()).buy_tickets(buy()).await.unwrap();
    assert_eq!((done.attempts, region.ids().len()), (5, 5));
    assert!(region.ids().iter().all(|id| *id == done.request_id.to_string()));
}

#[tokio::test]
async fn a_decided_no_comes_back_at_once_with_its_reason() {
    let (region, gateway) = one();
    region.will([Act::Fail(status(Code::FailedPrecondition, "SOLD_OUT", None))]);
    let client = client(&[&gateway], patient());
    let error = client.buy_tickets(buy()).await.unwrap_err();
    assert!(matches!(&error, Error::Decided { request_id: Some(_), .. }), "{error:?}");
    assert_eq!(error.reason(), Some(&Reason::SoldOut));
    assert_eq!((region.ids().len(), client.unfinished()), (1, vec![]));
}

#[tokio::test]
async fn a_refusal_that_no_repetition_changes_is_not_repeated() {
    let (region, gateway) = one();
    region.will([Act::Fail(status(Code::PermissionDenied, "ROLE_REQUIRED", None))]);
    let error = client(&[&gateway], patient()).buy_tickets(buy()).await.unwrap_err();
    assert!(matches!(error, Error::NotDecided { why: NotDecided::Stopped { stop: Stop::Refused, .. }, .. }));
    assert_eq!(region.ids().len(), 1);
}

#[tokio::test]
async fn a_spent_budget_ends_the_call_in_doubt_and_says_so() {
    let (region, gateway) = one();
    let lost = || Act::Fail(status(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", None));
    region.will([lost(), lost(), lost()]);
    let options = Options { budget: RetryBudget { max_tokens: 5, ..RetryBudget::default() }, ..patient() };
    let client = client(&[&gateway], options);
    let error = client.buy_tickets(buy()).await.unwrap_err();
    let Error::Unknown { request_id, stop: Stop::Budget, .. } = error else { panic!("{error:?}") };
    assert_eq!(region.ids().len(), 3);
    assert_eq!(client.unfinished()[0].request_id, request_id);
}

#[tokio::test]
async fn a_refused_token_is_renewed_once() {
    let (region, gateway) = one();
    let refusal = || Act::Fail(status(Code::Unauthenticated, "TOKEN_INVALID", None));
    region.will([refusal()]);
    let count = Arc::new(Mutex::new(0));
    let source = token_fn(move || {
        let count = count.clone();
        async move {
            *count.lock() += 1;
            Ok(format!("token-{}", *count.lock()))
        }
    });
    let client = Client::connect([gateway.url()], source, patient()).unwrap();
    client.buy_tickets(buy()).await.unwrap();
    let used: Vec<_> = region.arrivals.lock().iter().map(|arrival| arrival.authorization.clone()).collect();
    assert_eq!(used, ["Bearer token-1", "Bearer token-2"]);

    // Not for ever.
    region.will([refusal(), refusal()]);
    let error = client.buy_tickets(buy()).await.unwrap_err();
    assert_eq!(error.reason(), Some(&Reason::TokenInvalid));
    assert!(matches!(error, Error::NotDecided { .. }), "{error:?}");
    assert_eq!(region.arrivals.lock().len(), 4);
}

#[tokio::test]
async fn an_id_of_the_caller_is_kept_and_a_wrong_one_is_not_sent() {
    let (region, gateway) = one();
    let client = client(&[&gateway], patient());
    let id = RequestId::fresh();
    let first =
        client.buy_tickets(api::BuyTicketsRequest { request_id: id.to_string(), ..buy() }).await.unwrap();
    let again =
        client.buy_tickets(api::BuyTicketsRequest { request_id: id.to_string(), ..buy() }).await.unwrap();
    assert_eq!((first.request_id, &first.answer), (id, &again.answer));
    let error =
        client.buy_tickets(api::BuyTicketsRequest { request_id: "7".into(), ..buy() }).await.unwrap_err();
    assert!(matches!(error, Error::NotDecided { why: NotDecided::RequestId(_), .. }), "{error:?}");
    assert_eq!((region.ids().len(), *region.executed.lock()), (2, 1));
}

/// A journal on a disk that fails.
#[derive(Debug)]
struct Failing;

#[async_trait::async_trait]
impl RequestJournal for Failing {
    async fn begin(&self, requests: &[Sent]) -> Result<(), JournalError> {
        Err(JournalError::Full { open: requests.len(), max: 0 })
    }

    fn end(&self, _: &[RequestId]) {}

    fn unfinished(&self) -> Vec<Sent> {
        Vec::new()
    }
}

#[tokio::test]
async fn what_cannot_be_written_down_is_not_sent() {
    let (region, gateway) = one();
    let client = client(&[&gateway], patient().with_journal(Failing));
    let error = client.buy_tickets(buy()).await.unwrap_err();
    assert!(matches!(error, Error::NotDecided { why: NotDecided::Journal(_), .. }), "{error:?}");
    let batch = api::BatchBuyTicketsRequest { purchases: vec![Default::default()], ..Default::default() };
    assert!(matches!(client.batch_buy_tickets(batch).await, Err(Error::NotDecided { .. })));
    assert_eq!(region.ids().len(), 0);
}

#[tokio::test]
async fn reads_are_repeated_and_lists_turn_their_pages() {
    let (region, gateway) = one();
    region.will([
        Act::Serve,
        Act::Fail(Status::unavailable("restarting")),
        Act::Serve,
        Act::Serve,
        Act::Fail(status(Code::NotFound, "TICKET_NOT_FOUND", None)),
    ]);
    let client = client(&[&gateway], patient());
    let tickets = client.all_tickets("regions/north/events/gala", "").await.unwrap();
    let names: Vec<_> = tickets.iter().map(|ticket| ticket.name.as_str()).collect();
    assert_eq!(names, ["ticket-0", "ticket-1", "ticket-2"]);
    let error = client.get_ticket(api::GetTicketRequest::default()).await.unwrap_err();
    assert!(matches!(error, Error::Decided { request_id: None, .. }), "{error:?}");
    assert_eq!(region.arrivals.lock().len(), 5);
}

#[tokio::test]
async fn another_principal_has_its_own_token_and_journal_on_the_same_connections() {
    let (region, gateway) = one();
    region.will([Act::Fail(status(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", None)), Act::Hang]);
    let alice = client(&[&gateway], patient());
    let bob = alice.of_principal(StaticToken::new("bob"), MemoryJournal::default()).within(400 * MS);
    assert!(matches!(bob.buy_tickets(buy()).await, Err(Error::Unknown { .. })));
    assert_eq!((bob.unfinished().len(), alice.unfinished().len()), (1, 0));
    assert!(region.arrivals.lock().iter().all(|arrival| arrival.authorization == "Bearer bob"));
}
