//! Actors against a group that lives in memory and can be told to hesitate, to fail, or to lose its lead.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidewall_domain::tickets::State;
use tidewall_machine::{
    Answer, Command, Decision, Entry, Machine, Op, Position, RejectReason, Stamp, SystemCommand,
};
use tidewall_messages::tickets;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::{BoxFuture, Directory, Limits, Refusal, Reply, Request, Shard};

mod proposer;
mod quick_no;
mod rows;

const T0: u64 = 1_700_000_000_000;
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than anything is remembered.
const DAYS_MS: u64 = 48 * 3_600_000;

/// A shard group in memory: entries pass when `gate` has a permit.
struct Fake {
    machine: Mutex<Machine>,
    entries: Mutex<Vec<Vec<Command>>>,
    gate: Arc<Semaphore>,
    fail_next: AtomicBool,
    leads: AtomicBool,
    confirmed: AtomicU64,
    /// What happens in the group while a confirmation is waited for: others go on meanwhile.
    meanwhile: Mutex<Option<Meanwhile>>,
    now_ms: AtomicU64,
    /// Whether a majority confirms the clock.
    trusted: AtomicBool,
    proposals: AtomicU64,
}

type Meanwhile = Box<dyn FnOnce(&Fake) + Send>;

impl Fake {
    fn new(events: &[&str], capacity: u64) -> Arc<Self> {
        let fake = Self {
            machine: Mutex::new(Machine::new()),
            entries: Mutex::default(),
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            fail_next: AtomicBool::new(false),
            leads: AtomicBool::new(true),
            confirmed: AtomicU64::new(0),
            meanwhile: Mutex::new(None),
            now_ms: AtomicU64::new(T0),
            trusted: AtomicBool::new(true),
            proposals: AtomicU64::new(0),
        };
        for (n, event) in events.iter().enumerate() {
            let tier = tickets::TierSpec {
                tier_id: "ga".into(),
                display_name: String::new(),
                capacity,
                currency_code: "EUR".into(),
                price_minor_units: 1,
                seat_rows: vec![],
            };
            let create = tickets::Command::from(tickets::CreateEvent {
                event_id: (*event).into(),
                display_name: "x".into(),
                quota_per_buyer: 100_000,
                tiers: vec![tier],
                ..Default::default()
            });
            fake.apply(&[command(1_000_000 + n as u64, create)]);
        }
        fake.entries.lock().clear();
        Arc::new(fake)
    }

    fn apply(&self, commands: &[Command]) -> Vec<Decision> {
        let mut machine = self.machine.lock();
        let index = machine.head().applied.map_or(0, |at| at.index + 1);
        self.entries.lock().push(commands.to_vec());
        let entry = Entry { stamp: self.stamp(), commands: commands.to_vec() };
        machine.apply(Position { term: 1, node: 1, index }, &entry.encode()).unwrap()
    }

    fn stamp(&self) -> Stamp {
        let confirmed = self.trusted.load(Ordering::SeqCst);
        Stamp { ms: self.now_ms.load(Ordering::SeqCst), confirmed }
    }

    /// What happens during the next confirmation.
    fn meanwhile(&self, happens: impl FnOnce(&Self) + Send + 'static) {
        *self.meanwhile.lock() = Some(Box::new(happens));
    }

    /// No entry passes until somebody adds permits to the gate.
    fn close(&self) {
        self.gate.forget_permits(self.gate.available_permits());
    }

    /// Entries that are not ticks.
    fn entries(&self) -> Vec<Vec<Command>> {
        let entries = self.entries.lock().clone();
        entries.into_iter().filter(|e| e.iter().all(|c| c.op != Op::System(SystemCommand::Tick))).collect()
    }
}

struct Handle(Arc<Fake>);

impl Shard for Handle {
    fn propose(&self, commands: Vec<Command>) -> BoxFuture<Result<Vec<Decision>, Refusal>> {
        let fake = Arc::clone(&self.0);
        fake.proposals.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let permit = Arc::clone(&fake.gate).acquire_owned().await.unwrap();
            permit.forget();
            if fake.fail_next.swap(false, Ordering::SeqCst) {
                return Err(Refusal::Unknown("injected".into()));
            }
            Ok(fake.apply(&commands))
        })
    }

    fn confirm(&self) -> BoxFuture<Result<(), Refusal>> {
        let fake = Arc::clone(&self.0);
        Box::pin(async move {
            fake.confirmed.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            let meanwhile = fake.meanwhile.lock().take();
            if let Some(meanwhile) = meanwhile {
                meanwhile(&fake);
            }
            if fake.leads.load(Ordering::SeqCst) {
                Ok(())
            } else {
                Err(Refusal::NotLeader { leader: Some(2) })
            }
        })
    }

    fn look(&self, look: &mut dyn FnMut(&Machine)) {
        look(&self.0.machine.lock());
    }

    fn leads(&self) -> bool {
        self.0.leads.load(Ordering::SeqCst)
    }

    fn leader(&self) -> Option<u64> {
        Some(2)
    }

    fn stamp(&self) -> Stamp {
        self.0.stamp()
    }
}

fn command(n: u64, op: tickets::Command) -> Command {
    let request_id = (u128::from(T0) << 80) | u128::from(n);
    Command::asking(&format!("buyer-{n}"), request_id, T0 + 60_000, &op)
}

fn buy(n: u64, event: &str) -> Command {
    command(
        n,
        tickets::Command::from(tickets::Buy {
            event_id: event.into(),
            tier_id: "ga".into(),
            quantity: 1,
            seats: vec![],
            buyer: String::new(),
        }),
    )
}

type Answers = tokio::sync::mpsc::UnboundedReceiver<(u64, Reply)>;
type Asker = tokio::sync::mpsc::UnboundedSender<(u64, Reply)>;

fn request(n: u64, command: Command, answers: &Asker) -> Request {
    let answers = answers.clone();
    Request::new(command, move |reply| answers.send((n, reply)).unwrap())
}

fn channel() -> (Asker, Answers) {
    tokio::sync::mpsc::unbounded_channel()
}

async fn next(answers: &mut Answers) -> (u64, Reply) {
    timeout(PATIENCE, answers.recv()).await.expect("an answer in time").expect("open")
}

fn limits() -> Limits {
    Limits::default()
}

fn started(fake: &Arc<Fake>, limits: Limits) -> Directory {
    started_on(Arc::new(Handle(Arc::clone(fake))), limits)
}

fn started_on(shard: Arc<dyn Shard>, limits: Limits) -> Directory {
    Directory::start(shard, limits, crate::Home::arbiter(actix::Arbiter::current()))
}

/// Actors of an event with so many places, and somebody who asks them.
fn sale(capacity: u64, limits: Limits) -> (Arc<Fake>, Directory, Asker, Answers) {
    let fake = Fake::new(&["gala"], capacity);
    let rows = started(&fake, limits);
    let (asker, answers) = channel();
    (fake, rows, asker, answers)
}

/// The same, when request 1 has bought the only place.
async fn sold_out() -> (Arc<Fake>, Directory, Asker, Answers) {
    let (fake, rows, asker, mut answers) = sale(1, limits());
    rows.submit(tickets::MODULE, "gala", vec![request(1, buy(1, "gala"), &asker)]);
    assert_eq!(reason(&next(&mut answers).await.1), "done");
    (fake, rows, asker, answers)
}

fn reason(reply: &Reply) -> String {
    match reply {
        Ok(Decision { answer: Answer::Done { .. }, .. }) => "done".into(),
        Ok(Decision { answer: Answer::Rejected(RejectReason::Module(why)), .. }) => why.reason.clone(),
        Ok(Decision { answer, .. }) => format!("{answer:?}"),
        Err(refusal) => format!("{refusal:?}").split([' ', '(']).next().unwrap_or_default().into(),
    }
}

fn run(test: impl Future<Output = ()>) {
    actix::System::new().block_on(test);
}

#[test]
fn many_requests_become_few_entries_and_sell_out_exactly() {
    run(async {
        let (fake, rows, asker, mut answers) = sale(100, limits());
        for n in 0..400 {
            rows.submit(tickets::MODULE, "gala", vec![request(n, buy(n, "gala"), &asker)]);
        }
        let mut done = 0;
        for _ in 0..400 {
            let (_, reply) = next(&mut answers).await;
            match reason(&reply).as_str() {
                "done" => done += 1,
                "SOLD_OUT" => {}
                other => panic!("{other}"),
            }
        }
        assert_eq!(done, 100);
        let entries = fake.entries().len();
        assert!(entries < 100, "{entries} entries for 400 requests: nothing was merged");
    });
}

#[test]
fn copies_of_a_request_share_one_decision() {
    run(async {
        let fake = Fake::new(&["gala"], 10);
        fake.close();
        let rows = started(&fake, limits());
        let (asker, mut answers) = channel();
        for n in 0..5 {
            rows.submit(tickets::MODULE, "gala", vec![request(n, buy(7, "gala"), &asker)]);
        }
        // Somebody else's request with the same id is not a copy.
        let mut other = buy(7, "gala");
        other.principal = "mallory".into();
        rows.submit(tickets::MODULE, "gala", vec![request(9, other, &asker)]);
        let (n, refused) = next(&mut answers).await;
        assert_eq!((n, reason(&refused).as_str()), (9, "Overloaded"));
        fake.gate.add_permits(100);
        let mut receipts = Vec::new();
        for _ in 0..5 {
            let decision = next(&mut answers).await.1.unwrap();
            receipts.push(decision.receipt.unwrap());
        }
        assert!(receipts.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(fake.entries().iter().map(Vec::len).sum::<usize>(), 1);
    });
}

#[test]
fn an_unknown_outcome_is_told_as_such_and_a_retry_finds_the_truth() {
    run(async {
        let fake = Fake::new(&["gala"], 10);
        fake.fail_next.store(true, Ordering::SeqCst);
        let rows = started(&fake, limits());
        let (asker, mut answers) = channel();
        rows.submit(tickets::MODULE, "gala", vec![request(1, buy(1, "gala"), &asker)]);
        assert_eq!(next(&mut answers).await.1, Err(Refusal::Unknown("injected".into())));
        rows.submit(tickets::MODULE, "gala", vec![request(1, buy(1, "gala"), &asker)]);
        assert_eq!(reason(&next(&mut answers).await.1), "done");
    });
}

#[test]
fn a_request_that_is_lost_answers_unknown_never_success() {
    let (asker, mut answers) = channel();
    drop(request(1, buy(1, "gala"), &asker));
    let (_, reply) = answers.try_recv().unwrap();
    assert!(matches!(reply, Err(Refusal::Unknown(_))), "{reply:?}");
}

#[test]
fn a_proposer_that_died_is_made_anew_and_its_callers_are_told_that_nobody_knows() {
    run(async {
        let fake = Fake::new(&["gala"], 100);
        fake.close();
        let rows = started(&fake, limits());
        let (asker, mut answers) = channel();
        rows.submit(tickets::MODULE, "gala", vec![request(1, buy(1, "gala"), &asker)]);
        tokio::time::sleep(Duration::from_millis(20)).await;
        rows.abandon_proposer();
        tokio::time::sleep(Duration::from_millis(20)).await;
        // Looked after from time to time, so that nobody waits who has asked before it died.
        rows.sample(5);
        assert_eq!(reason(&next(&mut answers).await.1), "Unknown");
        fake.gate.add_permits(100);
        rows.submit(tickets::MODULE, "gala", vec![request(2, buy(2, "gala"), &asker)]);
        assert_eq!(reason(&next(&mut answers).await.1), "done");
        // And by whoever asks next.
        rows.abandon_proposer();
        tokio::time::sleep(Duration::from_millis(20)).await;
        rows.submit(tickets::MODULE, "gala", vec![request(3, buy(3, "gala"), &asker)]);
        assert_eq!(reason(&next(&mut answers).await.1), "done");
    });
}

#[test]
fn what_is_due_ends_in_entries_that_follow_each_other_while_nothing_flows() {
    run(async {
        let fake = Fake::new(&["gala"], 100_000);
        let hold = |n: u64| {
            let (event, tier) = ("gala".into(), "ga".into());
            command(
                n,
                tickets::Command::from(tickets::Hold {
                    event_id: event,
                    tier_id: tier,
                    quantity: 1,
                    seats: vec![],
                    ttl_ms: 1_000,
                }),
            )
        };
        for n in 0..10 {
            fake.apply(&(n * 500..(n + 1) * 500).map(hold).collect::<Vec<_>>());
        }
        let held = |fake: &Fake| {
            let machine = fake.machine.lock();
            let rows: &State = machine.rows_of().unwrap();
            rows.stock_of(rows.event("gala").unwrap()).next().unwrap().held
        };
        assert_eq!(held(&fake), 5_000);
        fake.now_ms.fetch_add(1_000, Ordering::SeqCst);
        let _rows = started(&fake, limits());
        let began = std::time::Instant::now();
        while held(&fake) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(began.elapsed() < PATIENCE, "{} are left", held(&fake));
        }
        assert!(fake.proposals.load(Ordering::SeqCst) >= 5, "each entry ends a bounded number");
    });
}

#[test]
fn an_unconfirmed_clock_ends_nothing_early_and_goes_on_stamping() {
    run(async {
        let fake = Fake::new(&["gala"], 1);
        let (event, tier) = ("gala".into(), "ga".into());
        fake.apply(&[command(
            1,
            tickets::Command::from(tickets::Hold {
                event_id: event,
                tier_id: tier,
                quantity: 1,
                seats: vec![],
                ttl_ms: 60_000,
            }),
        )]);
        // Ten minutes ahead, and nobody says that it is right.
        fake.trusted.store(false, Ordering::SeqCst);
        fake.now_ms.fetch_add(600_000, Ordering::SeqCst);
        let rows = started(&fake, limits());
        let (asker, mut answers) = channel();
        rows.submit(tickets::MODULE, "gala", vec![request(2, buy(2, "gala"), &asker)]);
        let decided = next(&mut answers).await.1;
        assert_eq!(reason(&decided), "SOLD_OUT", "the hold is not due");
        let began = std::time::Instant::now();
        while fake.proposals.load(Ordering::SeqCst) < 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(began.elapsed() < PATIENCE, "log time stands still");
        }
        assert_eq!(fake.machine.lock().log_time_ms(), T0);
    });
}
