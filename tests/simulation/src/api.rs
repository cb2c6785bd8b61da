//! The public API in the words of the oracle: a gRPC client of the gateway on this machine.
//!
//! The connection may break and be renewed, and now and then a caller goes away before its answer. **Never here:** a second
//! attempt; whoever asks decides about that.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use prost::Message as _;
use rand::Rng as _;
use tidewall_gateway::auth::{KeyPair, Minter, Role, generate_key};
use tidewall_proto::v1;
use tidewall_proto::v1::event_service_client::EventServiceClient;
use tidewall_proto::v1::outcome_service_client::OutcomeServiceClient;
use tidewall_proto::v1::ticket_service_client::TicketServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use crate::history::{Ask, End, Receipt, Said, TicketSeen, TierSeen, Told};
use crate::traffic::{ORGANISER, SEAT_ROWS};

/// The key of all tokens. Each process has its own: nothing that a simulation notes depends on it.
pub static KEY: LazyLock<KeyPair> = LazyLock::new(|| generate_key().expect("the system has randomness"));

/// Tokens outlive every simulation, and the years until somebody runs this again: their expiry is compared with the real
/// clock as well.
const TOKEN_LIFETIME: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How many callers go away early.
const GIVES_UP: f64 = 0.03;
/// Tickets on a page: few, so that there are several pages.
const PAGE: i32 = 40;

/// What a gateway says of its own accord when a request is wrong, or an answer from the nodes: neither happens here.
const WRONG: [&str; 10] = [
    "INTERNAL",
    "INVALID_FIELD",
    "NAME_INVALID",
    "REQUEST_ID_REQUIRED",
    "REQUEST_ID_INVALID",
    "TOKEN_INVALID",
    "ROLE_REQUIRED",
    "DEADLINE_REQUIRED",
    "REGION_NOT_FOUND",
    "NOT_YOUR_TICKETS",
];

/// A client of a gateway.
pub struct Api {
    channel: Channel,
    minter: Minter,
    tokens: RefCell<BTreeMap<String, MetadataValue<Ascii>>>,
}

/// What was decided, and where.
type Decided = (Said, Option<v1::Receipt>);

impl Api {
    /// A client of the gateway that listens there.
    pub fn new(address: SocketAddr) -> Self {
        let minter = Minter::new(&KEY.pkcs8).expect("a key that was just made is one");
        let channel = tidewall_link::connect_lazy(address, CONNECT_TIMEOUT);
        Self { channel, minter, tokens: RefCell::default() }
    }

    fn request<T>(&self, principal: &str, patience: Duration, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(patience);
        let mut tokens = self.tokens.borrow_mut();
        let token = tokens.entry(principal.to_owned()).or_insert_with(|| {
            let roles: &[Role] = if principal == ORGANISER { &[Role::Organiser] } else { &[] };
            let token = self.minter.mint(principal, roles, TOKEN_LIFETIME).expect("a name as it should be");
            format!("Bearer {token}").parse().expect("a token is ASCII")
        });
        request.metadata_mut().insert("authorization", token.clone());
        request
    }

    /// Has a command decided.
    pub async fn ask(
        &self,
        principal: &str,
        group: u32,
        request_id: u128,
        ask: &Ask,
        patience: Duration,
    ) -> End {
        let answer = self.command(principal, group, request_id, ask, patience);
        match unless_gone(answer, patience).await {
            Some(Ok((said, receipt))) => End::Told(Told { receipt: receipt.map(self::receipt), said }),
            Some(Err(status)) => refused(&status),
            None => End::Unknown,
        }
    }

    async fn command(
        &self,
        principal: &str,
        group: u32,
        request_id: u128,
        ask: &Ask,
        patience: Duration,
    ) -> Result<Decided, Status> {
        let request_id = uuid(request_id);
        let mut tickets = TicketServiceClient::new(self.channel.clone());
        match ask.clone() {
            Ask::Create { event, quota, tiers } => {
                let message = v1::CreateEventRequest {
                    parent: region(group),
                    event_id: event.clone(),
                    event: Some(v1::Event {
                        display_name: event,
                        quota_per_buyer: quota as i32,
                        tiers: tiers.into_iter().map(tier).collect(),
                        ..v1::Event::default()
                    }),
                    request_id,
                };
                let request = self.request(principal, patience, message);
                let answer = EventServiceClient::new(self.channel.clone()).create_event(request).await?;
                Ok((Said::Created, answer.into_inner().receipt))
            }
            Ask::Buy { event, tier, quantity, seats } => {
                let quantity = if seats.is_empty() { quantity as i32 } else { 0 };
                let parent = name(group, &event);
                let message = v1::BuyTicketsRequest { parent, tier_id: tier, quantity, seats, request_id };
                let answer = tickets.buy_tickets(self.request(principal, patience, message)).await?;
                let v1::BuyTicketsResponse { purchase, receipt } = answer.into_inner();
                Ok((sold(purchase), receipt))
            }
            Ask::Hold { event, tier, quantity, ttl_ms } => {
                let message = v1::HoldTicketsRequest {
                    parent: name(group, &event),
                    tier_id: tier,
                    quantity: quantity as i32,
                    seats: Vec::new(),
                    ttl_seconds: (ttl_ms / 1_000) as i32,
                    request_id,
                };
                let answer = tickets.hold_tickets(self.request(principal, patience, message)).await?;
                let v1::HoldTicketsResponse { hold, receipt } = answer.into_inner();
                Ok((held(hold.unwrap_or_default()), receipt))
            }
            Ask::Confirm { event, hold } => {
                let name = format!("{}/holds/{hold}", name(group, &event));
                let message = v1::ConfirmHoldRequest { name, request_id };
                let answer = tickets.confirm_hold(self.request(principal, patience, message)).await?;
                let v1::ConfirmHoldResponse { purchase, receipt } = answer.into_inner();
                Ok((sold(purchase), receipt))
            }
            Ask::Release { event, hold } => {
                let name = format!("{}/holds/{hold}", name(group, &event));
                let message = v1::ReleaseHoldRequest { name, request_id };
                let answer = tickets.release_hold(self.request(principal, patience, message)).await?;
                Ok((Said::Released, answer.into_inner().receipt))
            }
            Ask::Cancel { event, ticket } => {
                let name = format!("{}/tickets/{ticket}", name(group, &event));
                let message = v1::CancelTicketRequest { name, request_id };
                let answer = tickets.cancel_ticket(self.request(principal, patience, message)).await?;
                Ok((Said::Cancelled, answer.into_inner().receipt))
            }
        }
    }

    /// The tiers of an event, none when it does not exist; `None` without an answer.
    pub async fn tiers(&self, group: u32, event: &str, patience: Duration) -> Option<Vec<TierSeen>> {
        let message = v1::GetEventRequest { name: name(group, event), consistency: 0 };
        let request = self.request(ORGANISER, patience, message);
        match answered(EventServiceClient::new(self.channel.clone()).get_event(request).await) {
            Some(Ok(answer)) => {
                let tier = |tier: v1::Tier| TierSeen {
                    tier: tier.tier_id,
                    capacity: tier.capacity as u64,
                    free: tier.free as u64,
                    held: tier.held as u64,
                    sold: tier.sold as u64,
                };
                Some(answer.event?.tiers.into_iter().map(tier).collect())
            }
            Some(Err(NotFound)) => Some(Vec::new()),
            None => None,
        }
    }

    /// What is remembered of a request; `None` without an answer.
    pub async fn outcome(
        &self,
        principal: &str,
        group: u32,
        request_id: u128,
        patience: Duration,
    ) -> Option<Option<Told>> {
        use v1::get_outcome_response::Result as R;
        let message = v1::GetOutcomeRequest { parent: region(group), request_id: uuid(request_id) };
        let request = self.request(principal, patience, message);
        let answer = answered(OutcomeServiceClient::new(self.channel.clone()).get_outcome(request).await)?;
        let answer = answer.ok()?;
        let said = match answer.result {
            None => return Some(None),
            Some(R::Event(_)) => Said::Created,
            Some(R::Hold(hold)) => held(hold),
            Some(R::Purchase(purchase)) => sold(Some(purchase)),
            Some(R::CancelledTicket(_)) => Said::Cancelled,
            Some(R::ReleasedHold(_)) => Said::Released,
            Some(R::Rejection(rejection)) => Said::Rejected(rejection.reason),
        };
        Some(Some(Told { receipt: answer.receipt.map(receipt), said }))
    }

    /// All tickets of an event, page by page; `None` without an answer.
    pub async fn tickets(&self, group: u32, event: &str, patience: Duration) -> Option<Vec<TicketSeen>> {
        let (mut seen, mut page_token) = (Vec::new(), String::new());
        loop {
            let parent = name(group, event);
            let message =
                v1::ListTicketsRequest { parent, owner: "*".to_owned(), page_size: PAGE, page_token };
            let request = self.request(ORGANISER, patience, message);
            let page = answered(TicketServiceClient::new(self.channel.clone()).list_tickets(request).await)?;
            let page = page.ok()?;
            seen.extend(page.tickets.into_iter().map(|ticket| TicketSeen {
                cancelled: ticket.state() == v1::TicketState::Cancelled,
                ticket: last(&ticket.name),
                owner: ticket.owner,
                seat: ticket.seat,
            }));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Some(seen);
            }
        }
    }
}

/// There is no such thing.
struct NotFound;

/// The answer to a read, if there is one.
fn answered<T>(answer: Result<Response<T>, Status>) -> Option<Result<T, NotFound>> {
    match answer {
        Ok(answer) => Some(Ok(answer.into_inner())),
        Err(status) if status.code() == Code::NotFound => Some(Err(NotFound)),
        Err(status) => {
            refuse_nonsense(&status);
            None
        }
    }
}

/// A caller that waits for its answer, or goes away.
async fn unless_gone<T>(answer: impl Future<Output = T>, patience: Duration) -> Option<T> {
    let mut chance = tidewall_env::random::rng();
    let share = if chance.random_bool(GIVES_UP) { chance.random_range(0.0..0.1) } else { 1.0 };
    tokio::time::timeout(patience.mul_f64(share), answer).await.ok()
}

/// What a status without an answer says.
fn refused(status: &Status) -> End {
    refuse_nonsense(status);
    let reason = status.get_details_error_info().map(|info| info.reason);
    match reason.as_deref() {
        // Not from the gateway: the connection broke, say.
        None | Some("OUTCOME_UNKNOWN") => End::Unknown,
        Some("OVERLOADED" | "REGION_UNAVAILABLE" | "INVALID_REQUEST") => End::NotDecided,
        Some(reason) => {
            let details = tonic_types::Status::decode(status.details()).unwrap_or_default().details;
            let carried = details.into_iter().find(|any| any.type_url.ends_with("/tidewall.v1.Receipt"));
            let receipt = carried.and_then(|any| v1::Receipt::decode(any.value.as_slice()).ok());
            End::Told(Told { receipt: receipt.map(self::receipt), said: Said::Rejected(reason.to_owned()) })
        }
    }
}

fn refuse_nonsense(status: &Status) {
    let reason = status.get_details_error_info().map(|info| info.reason);
    assert!(!reason.is_some_and(|reason| WRONG.contains(&reason.as_str())), "nothing was wrong: {status:?}");
}

fn region(group: u32) -> String {
    format!("regions/r{group}")
}

fn name(group: u32, event: &str) -> String {
    format!("regions/r{group}/events/{event}")
}

fn last(name: &str) -> String {
    name.rsplit('/').next().unwrap_or_default().to_owned()
}

fn uuid(id: u128) -> String {
    let hex = format!("{id:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn tier((id, capacity, numbered): (String, u64, bool)) -> v1::Tier {
    let row = |label: &&str| v1::SeatRow { label: (*label).to_owned(), seats: 5 };
    v1::Tier {
        tier_id: id,
        capacity: capacity as i64,
        price: Some(v1::Money { currency_code: "EUR".to_owned(), minor_units: 1_000 }),
        seat_rows: if numbered { SEAT_ROWS.iter().map(row).collect() } else { Vec::new() },
        ..v1::Tier::default()
    }
}

fn milliseconds(time: Option<prost_types::Timestamp>) -> u64 {
    time.map_or(0, |time| time.seconds as u64 * 1_000 + time.nanos as u64 / 1_000_000)
}

fn held(hold: v1::Hold) -> Said {
    Said::Held {
        hold: last(&hold.name),
        quantity: hold.quantity as u32,
        seats: hold.seats,
        expires_ms: milliseconds(hold.expires_at),
    }
}

fn sold(purchase: Option<v1::Purchase>) -> Said {
    let purchase = purchase.unwrap_or_default();
    let first = purchase.tickets.first().and_then(|name| name.rsplit_once('-')?.1.parse().ok());
    Said::Sold {
        tier: purchase.tier_id,
        first: first.unwrap_or_default(),
        count: purchase.tickets.len() as u32,
        seats: purchase.seats,
    }
}

fn receipt(receipt: v1::Receipt) -> Receipt {
    Receipt {
        index: receipt.index,
        position: receipt.position,
        incarnation: receipt.incarnation,
        term: receipt.term,
        chain: u64::from_str_radix(&receipt.chain_hash, 16).unwrap_or_default(),
        decided_ms: milliseconds(receipt.decided_at),
    }
}
