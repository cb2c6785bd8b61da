//! Whole runs against a gateway in memory: honest ones must pass, and each fault must show in the report.

#![allow(clippy::unwrap_used)]

mod fake;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fake::{Faults, start};
use tidewall_load::demo::{self, DemoOptions, Live};
use tidewall_load::{FlashSale, LoadError, Mode, Phase, ReplayOptions, Report, Target};

fn plan() -> FlashSale {
    FlashSale {
        region: Some("north".to_owned()),
        buyers: 300,
        stock: 100,
        mode: Mode::Closed { concurrency: 16 },
        connections: 2,
        ..FlashSale::default()
    }
}

async fn run(target: &Target, plan: &FlashSale) -> Report {
    let report = tidewall_load::flash_sale(target, plan, |_| {}).await.unwrap();
    let ends = report.sold + report.sold_out + report.overloaded + report.unknown + report.errors;
    assert_eq!(ends, report.offered, "each intent ends exactly once: {report}");
    report
}

async fn run_with(faults: Faults, plan: &FlashSale) -> (Report, fake::Running) {
    let gateway = start(faults).await;
    let report = run(&gateway.target(), plan).await;
    (report, gateway)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mode_sells_out_exactly() {
    let modes: [(Mode, Option<usize>, bool); 5] = [
        (Mode::Closed { concurrency: 16 }, None, true),
        (Mode::Open { rate_per_second: 2_000.0 }, None, true),
        (Mode::AllAtOnce, None, true),
        (Mode::Closed { concurrency: 3 }, Some(32), true),
        (Mode::Closed { concurrency: 16 }, None, false),
    ];
    for (mode, batch, distinct_tokens) in modes {
        let plan = FlashSale { mode, batch, distinct_tokens, ..plan() };
        let (report, gateway) = run_with(Faults::default(), &plan).await;
        assert!(report.ok(), "{mode:?}: {report}");
        assert_eq!((report.offered, report.sold, report.sold_out), (300, 100, 200), "{report}");
        assert!(report.sold_out_exactly);
        assert_eq!((report.tickets_read_back, report.distinct_tickets, report.receipts), (100, 100, 100));
        assert_eq!(gateway.fake.request_ids(), 300, "one request id for each intent");
        let subjects = if batch.is_some() {
            1
        } else if distinct_tokens {
            300
        } else {
            256
        };
        assert_eq!(gateway.fake.subjects(), subjects);
        assert_eq!(report.events[0].region, "regions/north");
        assert!(report.p50_ms > 0.0 && report.max_ms >= report.p99_ms && report.purchases_per_second > 0.0);
        let corrected = report.latency_basis.contains("(corrected for coordinated omission)");
        assert_eq!(corrected, !matches!(mode, Mode::Closed { .. }), "{}", report.latency_basis);
    }
}

#[tokio::test]
async fn a_timed_run_goes_on_until_its_time_is_over() {
    let duration = Duration::from_millis(300);
    let plan = FlashSale { duration: Some(duration), buyers: 5, stock: 1_000_000, ..plan() };
    let (report, _gateway) = run_with(Faults::default(), &plan).await;
    assert!(report.ok(), "{report}");
    assert!(report.offered > 5, "buyers come again: {report}");
    assert!(report.duration_s >= 0.2, "{report}");
}

#[tokio::test]
async fn overselling_is_found() {
    let (report, _gateway) = run_with(Faults { oversell: 3, ..Faults::default() }, &plan()).await;
    assert_eq!(report.oversold, 3);
    assert!(!report.ok() && report.audit.contains("oversold (3)"), "{}", report.audit);
}

#[tokio::test]
async fn a_ticket_that_exists_twice_is_found() {
    let (report, _gateway) = run_with(Faults { list_twice: true, ..Faults::default() }, &plan()).await;
    assert_eq!(report.duplicates, 1);
    assert!(!report.ok() && report.audit.contains("listed twice"), "{}", report.audit);
}

#[tokio::test]
async fn a_repetition_that_buys_again_is_found() {
    let faults = Faults { forgetful: true, lose_answers: 1, ..Faults::default() };
    let plan = FlashSale { buyers: 20, stock: 100, quota: Some(10), ..plan() };
    let (report, _gateway) = run_with(faults, &plan).await;
    assert_eq!(report.duplicates, 20, "{report}");
    assert!(!report.ok() && report.audit.contains("request decided twice (20)"), "{}", report.audit);
}

#[tokio::test]
async fn an_acknowledged_purchase_that_is_gone_is_found() {
    let (report, _gateway) = run_with(Faults { lose_every: Some(10), ..Faults::default() }, &plan()).await;
    assert!(report.lost >= 10, "{report}");
    assert!(!report.ok() && report.audit.contains("acknowledged ticket lost"), "{}", report.audit);
}

#[tokio::test]
async fn sold_out_is_not_believed_while_there_is_stock() {
    let faults = Faults { refuse_every: Some(50), ..Faults::default() };
    let (report, _gateway) = run_with(faults, &FlashSale { stock: 1_000, ..plan() }).await;
    assert_eq!(report.sold_out, 6);
    assert!(
        !report.ok() && report.audit.contains("told sold out while there was stock (6)"),
        "{}",
        report.audit
    );
}

#[tokio::test]
async fn overload_is_waited_out_as_long_as_the_gateway_says() {
    let delay = Duration::from_millis(40);
    let faults = Faults { overload_first: 2, retry_after: Some(delay), ..Faults::default() };
    let (report, gateway) = run_with(faults, &FlashSale { buyers: 60, stock: 20, ..plan() }).await;
    assert!(report.ok(), "{report}");
    assert_eq!((report.sold, report.sold_out, report.overloaded, report.retries), (20, 40, 0, 120));
    assert_eq!(gateway.fake.request_ids(), 60, "the request id is kept");
    // Arrival times at the server may lie a little closer than the pauses of the client.
    assert!(gateway.fake.shortest_gap().unwrap() >= delay / 2, "came back too early");
    assert_eq!(report.overloads_without_retry_info, 0);
    assert_eq!(report.answers_by_reason["RESOURCE_EXHAUSTED/OVERLOADED"], 120);
}

#[tokio::test]
async fn who_does_not_honour_the_hint_gives_up_at_once() {
    let faults = Faults { overload_first: 1, ..Faults::default() };
    let (report, gateway) = run_with(faults, &FlashSale { honour_retry: false, ..plan() }).await;
    assert_eq!((report.overloaded, report.retries, report.sold), (300, 0, 0));
    assert_eq!(report.overloads_without_retry_info, 300, "a missing hint is counted");
    assert_eq!(report.business_answers_within_10s_percent, 0.0);
    assert!(report.ok(), "refusing is allowed: {report}");
    assert_eq!(gateway.fake.request_ids(), 300);
}

#[tokio::test]
async fn lost_answers_are_asked_for_again_with_the_same_id() {
    let (report, gateway) = run_with(Faults { lose_answers: 2, ..Faults::default() }, &plan()).await;
    assert!(report.ok(), "{report}");
    assert_eq!((report.sold, report.sold_out, report.unknown), (100, 200, 0));
    assert_eq!((report.retries, report.transport_errors), (600, 600));
    assert_eq!(gateway.fake.request_ids(), 300);
}

#[tokio::test]
async fn answers_that_never_come_are_settled_by_their_outcome() {
    let faults = Faults { lose_answers: u32::MAX, ..Faults::default() };
    let hasty = FlashSale {
        buyers: 40,
        stock: 10,
        patience: Duration::from_millis(100),
        deadline: Duration::from_millis(500),
        ..plan()
    };
    let (report, _gateway) = run_with(faults, &hasty).await;
    assert!(report.ok(), "{report}");
    assert_eq!((report.sold, report.sold_out, report.unknown, report.resolved), (10, 30, 0, 40));
    assert_eq!(report.business_answers_within_10s_percent, 0.0, "settling later is no timely answer");

    let (report, _gateway) = run_with(Faults { undecided: true, ..Faults::default() }, &hasty).await;
    assert!(report.ok(), "{report}");
    assert_eq!((report.overloaded, report.undecided, report.unknown), (40, 40, 0));
}

#[tokio::test]
async fn other_refusals_are_errors_by_reason() {
    let (report, _gateway) =
        run_with(Faults::default(), &FlashSale { quantity: 2, quota: Some(1), ..plan() }).await;
    assert_eq!((report.errors, report.sold), (300, 0));
    assert_eq!(report.errors_by_reason["FAILED_PRECONDITION/QUOTA_EXCEEDED"], 300);
    assert!(report.ok(), "a quota that holds is no fault: {report}");
}

#[tokio::test]
async fn undecided_purchases_of_a_batch_are_sent_again() {
    let faults = Faults { undecided_items_every: Some(3), ..Faults::default() };
    let (report, gateway) = run_with(faults, &FlashSale { batch: Some(30), ..plan() }).await;
    assert!(report.ok(), "{report}");
    assert_eq!((report.sold, report.sold_out, report.overloaded), (100, 200, 0));
    assert_eq!(report.retries, 100, "only what was undecided");
    assert_eq!(gateway.fake.request_ids(), 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_are_survived() {
    let gateway = start(Faults::default()).await;
    let cutter = fake::cutter(gateway.address, 8, 3_000).await;
    let report = run(&fake::target(cutter.address), &plan()).await;
    assert!(report.ok(), "{report}");
    assert_eq!((report.sold, report.sold_out, report.unknown), (100, 200, 0), "{report}");
    assert!(cutter.cuts.load(Ordering::SeqCst) >= 2 && report.transport_errors > 0, "{report}");
    assert_eq!(gateway.fake.request_ids(), 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_gateway_costs_calls_but_no_purchase_while_another_lives() {
    let gateway = start(Faults::default()).await;
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = dead.local_addr().unwrap();
    drop(dead);
    let mut target = gateway.target();
    target.endpoints.push(format!("http://{nobody}"));
    let report = run(&target, &plan()).await;
    assert!(report.ok(), "{report}");
    assert_eq!((report.sold, report.sold_out), (100, 200));
    assert!(report.transport_errors > 0, "half of the first calls went to nobody: {report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_dies_for_good_ends_the_run_and_fails_the_audit() {
    let plan = FlashSale {
        buyers: 100_000,
        patience: Duration::from_millis(300),
        deadline: Duration::from_millis(200),
        ..plan()
    };
    let gateway = start(Faults { die_after: Some(50), ..Faults::default() }).await;
    let proxy = fake::cutter(gateway.address, 0, 0).await;
    let target = fake::target(proxy.address);
    let (fake, mut held) = (gateway.fake.clone(), Some(proxy));
    let killer = tokio::spawn(async move {
        fake.died().await;
        // Listener and connections go at once, as with a killed process.
        held.take();
    });
    let report =
        tokio::time::timeout(Duration::from_secs(240), run(&target, &plan)).await.expect("bounded in time");
    killer.await.unwrap();
    assert!(!report.ok());
    assert!(report.aborted.as_deref().unwrap().contains("nobody got a decision"), "{report}");
    assert!(report.audit.starts_with("not done: "), "{}", report.audit);
    assert!(report.unknown > 0 && report.not_offered > 0);
    assert_eq!(report.offered + report.not_offered, 100_000);
}

#[tokio::test]
async fn without_a_gateway_or_a_region_there_is_no_run_but_a_clear_error() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let hasty = FlashSale { patience: Duration::from_millis(200), ..plan() };
    let error = tidewall_load::flash_sale(&fake::target(nobody), &hasty, |_| {}).await.unwrap_err();
    assert!(matches!(error, LoadError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&nobody.to_string()), "{error}");

    let gateway = start(Faults::default()).await;
    let lost = FlashSale { region: Some("atlantis".to_owned()), ..plan() };
    let error = tidewall_load::flash_sale(&gateway.target(), &lost, |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("no region \"atlantis\"; it has: regions/east"), "{error}");

    let wrong = Target::new(vec![format!("http://{}", gateway.address)], |_, _| "no-separator".to_owned());
    let error = tidewall_load::flash_sale(&wrong, &plan(), |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("listing the regions failed"), "{error}");
    assert!(error.to_string().contains("NO_TOKEN"), "{error}");

    for bad in [
        FlashSale { buyers: 0, ..plan() },
        FlashSale { quantity: 101, ..plan() },
        FlashSale { batch: Some(1_001), ..plan() },
        FlashSale { mode: Mode::Open { rate_per_second: f64::NAN }, ..plan() },
        FlashSale { mode: Mode::AllAtOnce, duration: Some(Duration::from_secs(1)), ..plan() },
    ] {
        let error = tidewall_load::flash_sale(&gateway.target(), &bad, |_| {}).await.unwrap_err();
        assert!(matches!(error, LoadError::Plan(_)), "{error}");
    }
    assert!(gateway.fake.events().is_empty(), "nothing was created");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_is_charged_to_all_whom_it_made_wait() {
    // 100 intents in half a second, nothing is answered in the first 400 ms: most of them were made to wait.
    let faults = Faults { stall: Duration::from_millis(400), ..Faults::default() };
    let plan = FlashSale { buyers: 100, stock: 100, mode: Mode::Open { rate_per_second: 200.0 }, ..plan() };
    let (report, _gateway) = run_with(faults, &plan).await;
    assert!(report.ok(), "{report}");
    assert!(report.p50_ms >= 100.0, "the median waited at least so long: {report}");
    assert!(report.max_ms >= 350.0, "{report}");
}

#[tokio::test]
async fn a_trace_is_replayed_across_events_and_regions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.csv");
    let mut text = "offset_ms,buyer,event,tier,quantity\n".to_owned();
    for n in 0..400 {
        let event = ["Jazz Night", "gala", "derby", "opera"][n % 4];
        let tier = if n % 3 == 0 { "vip" } else { "ga" };
        text.push_str(&format!("{},b{},{event},{tier},1\n", n, n % 150));
    }
    std::fs::write(&path, &text).unwrap();
    let gateway = start(Faults::default()).await;
    let phases: parking_lot::Mutex<Vec<Phase>> = parking_lot::Mutex::default();
    let options = ReplayOptions { speed: 2.0, ..ReplayOptions::default() };
    let report = tidewall_load::replay_trace(&gateway.target(), &path, &options, |progress| {
        let mut phases = phases.lock();
        if phases.last() != Some(&progress.phase) {
            phases.push(progress.phase);
        }
    })
    .await
    .unwrap();
    assert!(report.ok(), "{report}");
    assert!(report.offered == 400 && report.sold_out_exactly, "{report}");
    let demand_of_tiers_halved: i64 = report.events.iter().map(|event| event.capacity).sum();
    assert_eq!(report.sold as i64, demand_of_tiers_halved);
    assert!((200..=204).contains(&report.sold), "half of the demand, rounded up for each tier: {report}");
    let regions: Vec<_> = report.events.iter().map(|event| event.region.as_str()).collect();
    assert_eq!(regions, ["regions/east", "regions/north", "regions/west", "regions/east"]);
    assert_eq!(report.events[0].display_name, "Jazz Night");
    assert!(report.duration_s >= 0.19, "arrivals keep their offsets, at twice the speed: {report}");
    assert_eq!(*phases.lock(), [Phase::Prepare, Phase::Mint, Phase::Sell, Phase::Audit]);

    std::fs::write(&path, text.replace("7,b7,opera,ga,1", "7,b7,opera,ga,none")).unwrap();
    let error = tidewall_load::replay_trace(&gateway.target(), &path, &options, |_| {}).await.unwrap_err();
    let words = error.to_string();
    assert!(words.contains("small.csv: line 9, field quantity: expected a whole number"), "{words}");
    let missing = folder.path().join("missing.csv");
    let error = tidewall_load::replay_trace(&gateway.target(), &missing, &options, |_| {}).await.unwrap_err();
    assert!(
        error.to_string().contains("cannot read") && error.to_string().contains("missing.csv"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_opening_of_the_ticket_shops_morning_is_replayed() {
    // The first 4,000 requests: an unoptimised build takes minutes for all 50,000.
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/traces/ticket-shop-morning.csv");
    let text = std::fs::read_to_string(sample).unwrap();
    let opening: Vec<&str> = text.lines().take(4_001).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("opening.csv");
    std::fs::write(&path, opening.join("\n")).unwrap();
    let gateway = start(Faults { page: Some(5_000), ..Faults::default() }).await;
    // Patient, because what matters here is that all of it is replayed and audited.
    let options = ReplayOptions {
        deadline: Duration::from_secs(60),
        patience: Duration::from_secs(600),
        ..ReplayOptions::default()
    };
    let target = gateway.target();
    // On a task of its own: the future can be sent to another thread.
    let run =
        tokio::spawn(async move { tidewall_load::replay_trace(&target, &path, &options, |_| {}).await });
    let report = run.await.unwrap().unwrap();
    assert!(report.ok(), "{report}");
    assert_eq!((report.offered, report.unknown, report.errors), (4_000, 0, 0));
    assert!(report.events.len() >= 5 && report.sold > 0 && report.sold_out > 0, "{report}");
    assert_eq!(gateway.fake.request_ids(), 4_000);
}

#[tokio::test]
async fn calls_that_take_too_long_are_late_and_no_broken_connections() {
    let faults = Faults { stall: Duration::from_millis(400), ..Faults::default() };
    let hasty = FlashSale { buyers: 10, stock: 10, deadline: Duration::from_millis(100), ..plan() };
    let (report, gateway) = run_with(faults, &hasty).await;
    assert!(report.ok(), "{report}");
    assert_eq!(report.sold, 10, "{report}");
    assert!(report.answers_by_reason["DEADLINE_EXCEEDED"] >= 10, "{:?}", report.answers_by_reason);
    assert_eq!(report.transport_errors, 0, "{:?}", report.answers_by_reason);
    assert_eq!(gateway.fake.request_ids(), 10);
}

#[tokio::test]
async fn the_demo_shows_a_live_line_a_report_and_a_proof() {
    let gateway = start(Faults::default()).await;
    let options = DemoOptions { stock: 50, buyers: 200, live: Live::Rewrite, ..DemoOptions::default() };
    let mut out = Vec::new();
    let report = demo::flash_sale(&gateway.target(), &options, &mut out).await.unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(report.ok(), "{text}");
    assert!(
        text.contains("\rselling") && text.contains("200 of 200 buyers answered, 50 sold, 150 sold out"),
        "{text}"
    );
    assert!(
        text.contains("50 tickets read back, 50 distinct numbers, each with one owner (50 owners)"),
        "{text}"
    );
    assert!(text.contains("Audit: PASSED") && text.contains("sold out exactly"), "{text}");
    assert!(text.contains("50 receipts: strictly increasing"), "{text}");

    let mut quiet = Vec::new();
    let options = DemoOptions { live: Live::Quiet, ..options };
    assert!(demo::flash_sale(&gateway.target(), &options, &mut quiet).await.unwrap().ok());
    assert!(quiet.is_empty(), "JSON must not be mixed with words");

    let cheat = start(Faults { oversell: 1, ..Faults::default() }).await;
    let mut out = Vec::new();
    let options = DemoOptions { live: Live::Lines, ..options };
    let report = demo::flash_sale(&cheat.target(), &options, &mut out).await.unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(!report.ok() && text.contains("Audit: FAILED") && !text.contains('\r'), "{text}");
    assert!(!text.contains("each with one owner"), "a failed audit proves nothing: {text}");
}

#[tokio::test]
async fn every_token_is_made_before_the_first_purchase() {
    let gateway = start(Faults::default()).await;
    let minted = std::sync::Arc::new(AtomicU64::new(0));
    let counter = std::sync::Arc::clone(&minted);
    let target = Target::new(vec![format!("http://{}", gateway.address)], move |subject, roles| {
        counter.fetch_add(1, Ordering::SeqCst);
        format!("{subject}|{}", roles.join(","))
    });
    let at_start = AtomicU64::new(0);
    let report = tidewall_load::flash_sale(&target, &plan(), |progress| {
        if progress.phase == Phase::Sell && progress.done == 0 {
            at_start.store(minted.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    })
    .await
    .unwrap();
    assert!(report.ok(), "{report}");
    assert_eq!(minted.load(Ordering::SeqCst), 301, "one for each buyer and one for the organiser");
    assert_eq!(at_start.load(Ordering::SeqCst), 301);
}
