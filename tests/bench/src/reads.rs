//! A mix of reads and purchases on one hot row, under each consistency: how many reads, how late, who answers them, and what
//! do buyers notice? Each client reads nine times and buys once, and reads at once after it has bought: under SESSION that read
//! waits until a standby has what was bought, and so says how far standbys lag behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use tidewall_e2e::client::Session;
use tidewall_proto::v1::{GetEventRequest, ListTicketsRequest, ReadConsistency};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::metadata::{Ascii, MetadataValue};

use crate::cell::{Done, Job, Span, histogram, measure, percentile_ms, record, stop};
use crate::machine;
use crate::report::plain;
use crate::tidewall::{Target, bought};

/// Reads for each purchase.
const READS: u32 = 9;
/// The metadata that says how far a client has seen the regions.
const SEEN: &str = "tidewall-seen";

/// A row of the measurement.
#[derive(Debug, Serialize)]
pub struct Mixed {
    consistency: &'static str,
    clients: usize,
    reads_per_second: f64,
    read_p50_ms: f64,
    read_p99_ms: f64,
    /// Of the read that follows a purchase.
    own_p50_ms: f64,
    own_p99_ms: f64,
    purchases_per_second: f64,
    purchase_p99_ms: f64,
    /// Part of the reads that the active did not answer.
    off_the_active: f64,
    /// Reads that a standby passed on, per thousand.
    passed_on: f64,
    errors: u64,
    load: String,
}

/// How long things took.
struct Latencies {
    reads: Histogram<u64>,
    own: Histogram<u64>,
    purchases: Histogram<u64>,
}

impl Latencies {
    fn new() -> Self {
        Self { reads: histogram(), own: histogram(), purchases: histogram() }
    }
}

/// Buys once and reads.
struct ReadJob {
    session: Session,
    event: String,
    consistency: ReadConsistency,
    seen: Option<MetadataValue<Ascii>>,
    latencies: Arc<Mutex<Latencies>>,
}

impl ReadJob {
    async fn read(&mut self) -> anyhow::Result<Duration> {
        let consistency = self.consistency.into();
        let name = self.event.clone();
        let mut request =
            self.session.request(GetEventRequest { name, consistency, ..GetEventRequest::default() });
        if let Some(seen) = &self.seen {
            request.metadata_mut().insert(SEEN, seen.clone());
        }
        let began = Instant::now();
        let answer = self.session.events().get_event(request).await?;
        let took = began.elapsed();
        self.seen = answer.metadata().get(SEEN).cloned();
        ensure!(answer.into_inner().event.is_some(), "the answer has no event");
        Ok(took)
    }
}

impl Job for ReadJob {
    async fn once(&mut self) -> anyhow::Result<Done> {
        let began = Instant::now();
        let (metadata, overloaded) = bought(&self.session, &self.event).await?;
        let bought = began.elapsed();
        self.seen = metadata.get(SEEN).cloned();
        let own = self.read().await?;
        {
            let mut latencies = self.latencies.lock();
            record(&mut latencies.purchases, bought);
            record(&mut latencies.own, own);
        }
        for _ in 1..READS {
            let took = self.read().await?;
            record(&mut self.latencies.lock().reads, took);
        }
        Ok(Done { purchases: 1, overloaded })
    }
}

/// Linearizable queries, and reads that any replica may answer: answered and passed on, over all nodes.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    queries: f64,
    reads: f64,
    passed_on: f64,
}

async fn counted(target: &Target) -> anyhow::Result<Counted> {
    let mut sum = Counted::default();
    for address in target.nodes() {
        let mut stream = TcpStream::connect(&address).await?;
        let get = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(get.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let total = |name: &str, outcome: &str| -> f64 {
            let outcome = format!("outcome=\"{outcome}\"");
            let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(&outcome));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        sum.queries += total("tidewall_node_queries_total", "done");
        sum.reads += total("tidewall_node_reads_total", "done");
        sum.passed_on += total("tidewall_node_reads_total", "refused");
    }
    Ok(sum)
}

/// Measures the mix with so many clients under each consistency, twice, in turns.
///
/// # Errors
/// When the cluster cannot be reached.
pub async fn mixed(target: &Target, span: Span, clients: usize) -> anyhow::Result<(String, Vec<Mixed>)> {
    let region = target.regions().await?.into_iter().next().context("the cluster has no regions")?;
    let all = [
        (ReadConsistency::Linearizable, "LINEARIZABLE"),
        (ReadConsistency::Session, "SESSION"),
        (ReadConsistency::Stale, "STALE"),
    ];
    let mut rows = Vec::new();
    for (consistency, name) in all.into_iter().chain(all) {
        let event = target.event(&region).await?;
        let latencies = Arc::new(Mutex::new(Latencies::new()));
        let job = |session| ReadJob {
            session,
            event: event.clone(),
            consistency,
            seen: None,
            latencies: Arc::clone(&latencies),
        };
        let jobs = target.buyers(clients)?.into_iter().map(job).collect();
        let (before, load) = (counted(target).await?, machine::load());
        let measured = measure(jobs, span, &[target.root()]).await;
        let after = counted(target).await?;
        target.audit(&event).await?;
        let latencies = latencies.lock();
        let (queries, reads) = (after.queries - before.queries, after.reads - before.reads);
        rows.push(Mixed {
            consistency: name,
            clients,
            reads_per_second: measured.per_second * f64::from(READS),
            read_p50_ms: percentile_ms(&latencies.reads, 50.0),
            read_p99_ms: percentile_ms(&latencies.reads, 99.0),
            own_p50_ms: percentile_ms(&latencies.own, 50.0),
            own_p99_ms: percentile_ms(&latencies.own, 99.0),
            purchases_per_second: measured.per_second,
            purchase_p99_ms: percentile_ms(&latencies.purchases, 99.0),
            off_the_active: reads / f64::max(queries + reads, 1.0),
            passed_on: 1_000.0 * (after.passed_on - before.passed_on) / f64::max(reads, 1.0),
            errors: measured.errors,
            load,
        });
    }
    Ok((table(&rows), rows))
}

/// Buyers of a hot row while others list all of its tickets, over and over.
#[derive(Debug, Serialize)]
pub struct Beside {
    /// Who lists, and how.
    lists: String,
    tickets_listed_per_second: f64,
    pages_per_second: f64,
    page_p50_ms: f64,
    page_p99_ms: f64,
    purchases_per_second: f64,
    purchase_p50_ms: f64,
    purchase_p99_ms: f64,
    errors: u64,
    load: String,
}

/// What has been listed.
struct Listed {
    pages: Histogram<u64>,
    tickets: u64,
}

async fn list(
    session: Session,
    event: String,
    consistency: ReadConsistency,
    listed: Arc<Mutex<Listed>>,
) -> anyhow::Result<()> {
    let mut page_token = String::new();
    loop {
        let request = session.request(ListTicketsRequest {
            parent: event.clone(),
            owner: "*".into(),
            page_size: 5_000,
            page_token,
            consistency: consistency.into(),
            max_age: None,
        });
        let began = Instant::now();
        let page = session.tickets().list_tickets(request).await?.into_inner();
        let mut listed = listed.lock();
        record(&mut listed.pages, began.elapsed());
        listed.tickets += page.tickets.len() as u64;
        page_token = page.next_page_token;
    }
}

/// Measures buyers alone, and beside so many who list under each consistency, twice, in turns.
///
/// # Errors
/// When the cluster cannot be reached, or a list fails.
pub async fn beside_lists(
    target: &Target,
    span: Span,
    clients: usize,
    lists: usize,
) -> anyhow::Result<(String, Vec<Beside>)> {
    let region = target.regions().await?.into_iter().next().context("the cluster has no regions")?;
    let event = target.event(&region).await?;
    // Something to list from the beginning.
    let filler = Span { warm_up: Duration::ZERO, measured: Duration::from_secs(2) };
    measure(target.batch_jobs(&event, 4, 1_000)?, filler, &[target.root()]).await;
    let all = [
        None,
        Some((ReadConsistency::Linearizable, "LINEARIZABLE")),
        Some((ReadConsistency::Stale, "STALE")),
    ];
    let mut rows = Vec::new();
    for how in all.into_iter().chain(all) {
        let listed = Arc::new(Mutex::new(Listed { pages: histogram(), tickets: 0 }));
        let mut tasks = Vec::new();
        for _ in 0..how.map_or(0, |_| lists) {
            let session = target.session("bench-operator", Some("operator"))?;
            let consistency = how.map_or(ReadConsistency::Linearizable, |(consistency, _)| consistency);
            tasks.push(tokio::spawn(list(session, event.clone(), consistency, Arc::clone(&listed))));
        }
        let load = machine::load();
        let began = Instant::now();
        let bought = measure(target.jobs(&event, clients)?, span, &[target.root()]).await;
        let seconds = began.elapsed().as_secs_f64();
        stop(tasks).await?;
        let listed = listed.lock();
        rows.push(Beside {
            lists: how.map_or_else(|| "none".to_owned(), |(_, name)| format!("{lists} {name}")),
            tickets_listed_per_second: listed.tickets as f64 / seconds,
            pages_per_second: listed.pages.len() as f64 / seconds,
            page_p50_ms: percentile_ms(&listed.pages, 50.0),
            page_p99_ms: percentile_ms(&listed.pages, 99.0),
            purchases_per_second: bought.per_second,
            purchase_p50_ms: bought.p50_ms,
            purchase_p99_ms: bought.p99_ms,
            errors: bought.errors,
            load,
        });
    }
    target.audit(&event).await?;
    Ok((beside_table(&rows), rows))
}

fn beside_table(rows: &[Beside]) -> String {
    let row = |row: &Beside| {
        [
            row.lists.clone(),
            format!("{:.0}", row.tickets_listed_per_second),
            format!("{:.1}", row.pages_per_second),
            format!("{:.1}", row.page_p50_ms),
            format!("{:.1}", row.page_p99_ms),
            format!("{:.0}", row.purchases_per_second),
            format!("{:.2}", row.purchase_p50_ms),
            format!("{:.2}", row.purchase_p99_ms),
            row.errors.to_string(),
            row.load.clone(),
        ]
    };
    plain(
        [
            "lists",
            "tickets/s",
            "pages/s",
            "page p50 ms",
            "p99",
            "purchases/s",
            "p50 ms",
            "p99",
            "errors",
            "load",
        ],
        rows.iter().map(row),
    )
}

fn table(rows: &[Mixed]) -> String {
    let row = |row: &Mixed| {
        [
            row.consistency.to_owned(),
            row.clients.to_string(),
            format!("{:.0}", row.reads_per_second),
            format!("{:.2}", row.read_p50_ms),
            format!("{:.2}", row.read_p99_ms),
            format!("{:.2}", row.own_p50_ms),
            format!("{:.2}", row.own_p99_ms),
            format!("{:.0}", row.purchases_per_second),
            format!("{:.2}", row.purchase_p99_ms),
            format!("{:.1} %", 100.0 * row.off_the_active),
            format!("{:.2} ‰", row.passed_on),
            row.errors.to_string(),
            row.load.clone(),
        ]
    };
    plain(
        [
            "consistency",
            "clients",
            "reads/s",
            "p50 ms",
            "p99",
            "after own p50 ms",
            "p99",
            "purchases/s",
            "p99 ms",
            "off the active",
            "passed on",
            "errors",
            "load",
        ],
        rows.iter().map(row),
    )
}
