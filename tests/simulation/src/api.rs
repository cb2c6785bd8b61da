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
use tidewall_gateway::auth::{Minter, ROLES, Role, public_key_of, role_name};
use tidewall_gateway::{AccountsConfig, HashingOptions};
use tidewall_proto::v1;
use tidewall_proto::v1::event_service_client::EventServiceClient;
use tidewall_proto::v1::outcome_service_client::OutcomeServiceClient;
use tidewall_proto::v1::ticket_service_client::TicketServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use crate::history::{Ask, End, FORGOTTEN, Freshness, Receipt, SEALED, Said, TicketSeen, TierSeen, Told};
use crate::traffic::{ORGANISER, SEAT_ROWS, SELLER};
use crate::way;

/// The key of all tokens, always the same one: an Ed25519 key in PKCS #8 form (RFC 8410) that is no secret.
static PKCS8: LazyLock<Vec<u8>> = LazyLock::new(|| {
    const HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    [&HEAD[..], &[7; 32]].concat()
});

/// What gateways need to serve accounts. The secret is none.
pub fn accounts() -> AccountsConfig {
    AccountsConfig { secret: [9; 32], signing_key: PKCS8.clone(), hashing: HashingOptions::cheap() }
}

/// The public half of the key of all tokens.
pub fn public_key() -> [u8; 32] {
    public_key_of(&PKCS8).expect("a key as it should be")
}

/// Tokens outlive every simulation, and the years until somebody runs this again: their expiry is compared with the real
/// clock as well.
const TOKEN_LIFETIME: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The metadata that says how far somebody has seen the regions.
const SEEN: &str = "tidewall-seen";
/// How many callers go away early.
const GIVES_UP: f64 = 0.03;
/// Tickets on a page: few, so that there are several pages.
const PAGE: i32 = 40;

/// Refusals by which nothing was decided, that may happen. Whatever else has no receipt the oracle objects to.
const NOT_DECIDED: [&str; 2] = ["OVERLOADED", "REGION_UNAVAILABLE"];

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
        let minter = Minter::new(&PKCS8).expect("a key as it should be");
        let channel = tidewall_link::connect_lazy(address, CONNECT_TIMEOUT, None);
        Self { channel, minter, tokens: RefCell::default() }
    }

    /// A connection to the gateway.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A token of somebody with these roles.
    pub fn token(&self, subject: &str, roles: &[&str]) -> String {
        let roles: Vec<Role> = ROLES.into_iter().filter(|role| roles.contains(&role_name(*role))).collect();
        self.minter.mint(subject, &roles, TOKEN_LIFETIME).expect("a name as it should be")
    }

    fn request<T>(&self, principal: &str, patience: Duration, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(patience);
        let mut tokens = self.tokens.borrow_mut();
        let token = tokens.entry(principal.to_owned()).or_insert_with(|| {
            let roles: &[Role] = match principal {
                ORGANISER => &[Role::Organiser],
                seller if seller.ends_with(SELLER) => &[Role::Seller],
                _ => &[],
            };
            let token = self.minter.mint(principal, roles, TOKEN_LIFETIME).expect("a name as it should be");
            format!("Bearer {token}").parse().expect("a token is ASCII")
        });
        request.metadata_mut().insert("authorization", token.clone());
        request
    }

    /// Has a command decided.
    pub async fn ask(&self, request: way::Request<'_>, ask: &Ask, patience: Duration) -> End {
        match unless_gone(self.command(request, ask, patience), patience).await {
            Some(Ok((said, receipt))) => {
                let receipt = receipt.map(|receipt| self::receipt(request.group, receipt));
                End::Told(Told { receipt, said })
            }
            Some(Err(status)) => refused(request.group, &status),
            None => End::Unknown,
        }
    }

    /// Has a batch of sales decided; one end for each.
    pub async fn sell(
        &self,
        group: u32,
        seller: &str,
        batch: &[(u128, Ask)],
        patience: Duration,
    ) -> Vec<End> {
        let mut parent = String::new();
        let purchases = batch.iter().map(|(id, ask)| {
            let Ask::Sell { event, tier, quantity, buyer } = ask.clone() else {
                unreachable!("{ask:?} is no sale")
            };
            parent = name(group, &event);
            v1::BatchPurchase { buyer, tier_id: tier, quantity: quantity as i32, request_id: uuid(*id) }
        });
        let purchases = purchases.collect();
        let message = v1::BatchBuyTicketsRequest { parent: parent.clone(), purchases };
        let mut tickets = TicketServiceClient::new(self.channel.clone());
        let answer = tickets.batch_buy_tickets(self.request(seller, patience, message));
        match unless_gone(answer, patience).await {
            Some(Ok(answer)) => {
                let results = answer.into_inner().results;
                assert_eq!(results.len(), batch.len(), "one answer for each");
                results.into_iter().map(|result| item_end(group, &parent, result)).collect()
            }
            Some(Err(status)) => vec![refused(group, &status); batch.len()],
            None => vec![End::Unknown; batch.len()],
        }
    }

    async fn command(
        &self,
        request: way::Request<'_>,
        ask: &Ask,
        patience: Duration,
    ) -> Result<Decided, Status> {
        let (way::Request { group, principal, .. }, request_id) = (request, uuid(request.id));
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
                let parent = name(group, &event);
                let quantity = if seats.is_empty() { quantity as i32 } else { 0 };
                let message = v1::BuyTicketsRequest {
                    parent: parent.clone(),
                    tier_id: tier,
                    quantity,
                    seats,
                    request_id,
                };
                let answer = tickets.buy_tickets(self.request(principal, patience, message)).await?;
                let v1::BuyTicketsResponse { purchase, receipt } = answer.into_inner();
                Ok((sold(&parent, purchase), receipt))
            }
            Ask::Hold { event, tier, quantity, ttl_ms } => {
                let parent = name(group, &event);
                let message = v1::HoldTicketsRequest {
                    parent: parent.clone(),
                    tier_id: tier,
                    quantity: quantity as i32,
                    seats: Vec::new(),
                    ttl: Some(prost_types::Duration { seconds: (ttl_ms / 1_000) as i64, nanos: 0 }),
                    request_id,
                };
                let answer = tickets.hold_tickets(self.request(principal, patience, message)).await?;
                let v1::HoldTicketsResponse { hold, receipt } = answer.into_inner();
                Ok((held(&parent, principal, hold.unwrap_or_default()), receipt))
            }
            Ask::Confirm { event, hold } => {
                let parent = name(group, &event);
                let name = format!("{parent}/holds/{hold}");
                let message = v1::ConfirmHoldRequest { name, request_id };
                let answer = tickets.confirm_hold(self.request(principal, patience, message)).await?;
                let v1::ConfirmHoldResponse { purchase, receipt } = answer.into_inner();
                Ok((sold(&parent, purchase), receipt))
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
            Ask::Sell { .. } => unreachable!("sales go in batches"),
            Ask::Seal => {
                let message = v1::SealRequestIdRequest { parent: region(group), request_id };
                let mut outcomes = OutcomeServiceClient::new(self.channel.clone());
                let answer = outcomes.seal_request_id(self.request(principal, patience, message)).await?;
                let outcome = answer.into_inner().outcome.expect("a seal is answered with what is final");
                // Final as well: an id that is too old to be known is refused.
                let forgotten = (Said::Rejected(FORGOTTEN.to_owned()), None);
                let state = outcome.state();
                let decided = decided(group, principal, outcome);
                assert!(decided.is_some() || state == v1::OutcomeState::Forgotten, "{state:?} behind a seal");
                Ok(decided.unwrap_or(forgotten))
            }
        }
    }

    /// The tiers of an event, none when it does not exist; `None` without an answer.
    pub async fn tiers(&self, group: u32, event: &str, patience: Duration) -> Option<Vec<TierSeen>> {
        let found = self.tiers_within(group, event, Freshness::Latest, None, patience).await;
        found.map(|(tiers, _)| tiers)
    }

    /// The same for somebody who brings along what it has seen, with what it has seen then.
    pub async fn tiers_within(
        &self,
        group: u32,
        event: &str,
        freshness: Freshness,
        seen: Option<&str>,
        patience: Duration,
    ) -> Option<(Vec<TierSeen>, Option<String>)> {
        let (consistency, max_age) = asked(freshness);
        let message = v1::GetEventRequest { name: name(group, event), consistency, max_age };
        let mut request = self.request(ORGANISER, patience, message);
        bring(&mut request, seen);
        let answer = EventServiceClient::new(self.channel.clone()).get_event(request).await;
        let seen = carried(&answer);
        match answered(answer) {
            Some(Ok(answer)) => {
                let tier = |tier: v1::Tier| TierSeen {
                    tier: tier.tier_id,
                    capacity: tier.capacity as u64,
                    free: tier.free as u64,
                    held: tier.held as u64,
                    sold: tier.sold as u64,
                };
                Some((answer.event?.tiers.into_iter().map(tier).collect(), seen))
            }
            Some(Err(NotFound)) => Some((Vec::new(), seen)),
            None => None,
        }
    }

    /// Whether somebody's hold is there, with what is seen then; `None` without an answer.
    pub async fn has_hold(
        &self,
        hold: &HoldOf<'_>,
        freshness: Freshness,
        seen: Option<&str>,
        patience: Duration,
    ) -> Option<(bool, Option<String>)> {
        let (consistency, max_age) = asked(freshness);
        let name = format!("{}/holds/{}", name(hold.group, hold.event), hold.id);
        let mut request =
            self.request(hold.owner, patience, v1::GetHoldRequest { name, consistency, max_age });
        bring(&mut request, seen);
        let answer = TicketServiceClient::new(self.channel.clone()).get_hold(request).await;
        let seen = carried(&answer);
        answered(answer).map(|found| (found.is_ok(), seen))
    }

    /// What is remembered of a request; `None` without an answer.
    pub async fn outcome(&self, request: way::Request<'_>, patience: Duration) -> Option<Option<Told>> {
        let way::Request { group, principal, id } = request;
        let message = v1::GetOutcomeRequest { parent: region(group), request_id: uuid(id) };
        let request = self.request(principal, patience, message);
        let answer = answered(OutcomeServiceClient::new(self.channel.clone()).get_outcome(request).await)?;
        let decided = decided(group, principal, answer.ok()?);
        let told = |(said, receipt): Decided| Told {
            receipt: receipt.map(|receipt| self::receipt(group, receipt)),
            said,
        };
        Some(decided.map(told))
    }

    /// All tickets of an event, page by page; `None` without an answer.
    pub async fn tickets(&self, group: u32, event: &str, patience: Duration) -> Option<Vec<TicketSeen>> {
        let (mut seen, mut page_token) = (Vec::new(), String::new());
        loop {
            let parent = name(group, event);
            let message = v1::ListTicketsRequest {
                parent: parent.clone(),
                owner: "*".to_owned(),
                page_size: PAGE,
                page_token,
                ..Default::default()
            };
            let request = self.request(ORGANISER, patience, message);
            let page = answered(TicketServiceClient::new(self.channel.clone()).list_tickets(request).await)?;
            let page = page.ok()?;
            seen.extend(page.tickets.into_iter().map(|ticket| TicketSeen {
                cancelled: ticket.state() == v1::TicketState::Cancelled,
                ticket: id_in(&parent, "/tickets/", &ticket.name),
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

/// A hold.
#[derive(Debug)]
pub struct HoldOf<'a> {
    pub group: u32,
    pub event: &'a str,
    pub id: &'a str,
    pub owner: &'a str,
}

/// How a read asks for that.
fn asked(freshness: Freshness) -> (i32, Option<prost_types::Duration>) {
    let consistency = match freshness {
        Freshness::Latest => v1::ReadConsistency::Linearizable,
        Freshness::Session { .. } => v1::ReadConsistency::Session,
        Freshness::Stale { .. } => v1::ReadConsistency::Stale,
    };
    let age = Duration::from_micros(freshness.age_us());
    let max_age = prost_types::Duration::try_from(age).ok().filter(|_| freshness != Freshness::Latest);
    (consistency.into(), max_age)
}

/// Brings along what was seen.
fn bring<T>(request: &mut Request<T>, seen: Option<&str>) {
    if let Some(seen) = seen {
        request.metadata_mut().insert(SEEN, seen.parse().expect("as an answer has carried it"));
    }
}

/// What an answer says of what was seen.
fn carried<T>(answer: &Result<Response<T>, Status>) -> Option<String> {
    let metadata = answer.as_ref().map_or_else(Status::metadata, Response::metadata);
    Some(metadata.get(SEEN)?.to_str().ok()?.to_owned())
}

/// What an outcome says; `None` while nothing is decided.
fn decided(group: u32, principal: &str, outcome: v1::GetOutcomeResponse) -> Option<Decided> {
    use v1::get_outcome_response::Result as R;
    let state = outcome.state();
    let said = match outcome.result {
        None if state == v1::OutcomeState::Sealed => Said::Rejected(SEALED.to_owned()),
        None => {
            let open = [v1::OutcomeState::Undecided, v1::OutcomeState::Forgotten].contains(&state);
            assert!(open, "{state:?} of a request of {principal}");
            return None;
        }
        Some(result) => {
            assert_eq!(state, v1::OutcomeState::Decided, "of a request of {principal}");
            match result {
                R::Event(_) => Said::Created,
                R::Hold(hold) => held(&event_of(group, &hold.name), principal, hold),
                R::Purchase(purchase) => {
                    let first = purchase.tickets.first();
                    let event = first.map(|name| event_of(group, name)).unwrap_or_default();
                    sold(&event, Some(purchase))
                }
                R::CancelledTicket(_) => Said::Cancelled,
                R::ReleasedHold(_) => Said::Released,
                R::ChangedAccount(_) | R::DeletedEvent(_) | R::Webhook(_) | R::DeletedWebhook(_) => {
                    unreachable!("no buyer asks for that")
                }
                R::Rejection(rejection) => Said::Rejected(rejection.reason),
            }
        }
    };
    Some((said, outcome.receipt))
}

/// How an item of a batch ended.
fn item_end(group: u32, event: &str, item: v1::BatchBuyTicketsResult) -> End {
    use v1::batch_buy_tickets_result::Result as R;
    let said = match item.result.expect("a result for each purchase") {
        R::Purchase(purchase) => sold(event, Some(purchase)),
        R::Rejection(rejection) => Said::Rejected(rejection.reason),
        R::Undecided(refusal) => {
            return match refusal.reason.as_str() {
                "OUTCOME_UNKNOWN" => End::Unknown,
                "EXPIRED" => End::NotDecided,
                reason if NOT_DECIDED.contains(&reason) => End::NotDecided,
                _ => panic!("nothing was wrong: {refusal:?}"),
            };
        }
    };
    End::Told(Told { receipt: item.receipt.map(|receipt| self::receipt(group, receipt)), said })
}

/// There is no such thing.
struct NotFound;

/// The answer to a read, if there is one.
fn answered<T>(answer: Result<Response<T>, Status>) -> Option<Result<T, NotFound>> {
    match answer {
        Ok(answer) => Some(Ok(answer.into_inner())),
        Err(status) if status.code() == Code::NotFound => Some(Err(NotFound)),
        Err(status) => {
            let reason = reason(&status);
            let may_happen = reason.as_deref().is_none_or(|reason| NOT_DECIDED.contains(&reason));
            assert!(may_happen, "nothing was wrong: {status:?}");
            None
        }
    }
}

/// Why a gateway refuses; `None` when the status is not from there: the connection broke, say.
fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// A caller that waits for its answer, or goes away.
async fn unless_gone<T>(answer: impl Future<Output = T>, patience: Duration) -> Option<T> {
    let mut chance = tidewall_env::random::rng();
    let share = if chance.random_bool(GIVES_UP) { chance.random_range(0.0..0.1) } else { 1.0 };
    tokio::time::timeout(patience.mul_f64(share), answer).await.ok()
}

/// What a status without an answer says.
fn refused(group: u32, status: &Status) -> End {
    match reason(status).as_deref() {
        None | Some("OUTCOME_UNKNOWN") => End::Unknown,
        Some(reason) if NOT_DECIDED.contains(&reason) => End::NotDecided,
        Some(reason) => {
            let details = tonic_types::Status::decode(status.details()).expect("details as they should be");
            let carried =
                details.details.into_iter().find(|any| any.type_url.ends_with("/tidewall.v1.Receipt"));
            let receipt = carried.map(|any| v1::Receipt::decode(any.value.as_slice()).expect("a receipt"));
            let receipt = receipt.map(|receipt| self::receipt(group, receipt));
            End::Told(Told { receipt, said: Said::Rejected(reason.to_owned()) })
        }
    }
}

/// The name of a group's region.
pub fn region(group: u32) -> String {
    format!("regions/r{group}")
}

fn name(group: u32, event: &str) -> String {
    format!("regions/r{group}/events/{event}")
}

/// The event that a hold or a ticket of this name belongs to, which must be one of the group's.
fn event_of(group: u32, name: &str) -> String {
    let event = name.rsplitn(3, '/').nth(2).unwrap_or_default();
    assert!(event.starts_with(&format!("{}/events/", region(group))), "{name} is not of group {group}");
    event.to_owned()
}

/// The id of something that belongs to an event.
fn id_in(event: &str, collection: &str, name: &str) -> String {
    let id = name.strip_prefix(event).and_then(|rest| rest.strip_prefix(collection));
    id.unwrap_or_else(|| panic!("{name} is not of {event}")).to_owned()
}

/// The text of a request id.
pub fn uuid(id: u128) -> String {
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

fn held(event: &str, owner: &str, hold: v1::Hold) -> Said {
    assert_eq!(hold.owner, owner);
    Said::Held {
        hold: id_in(event, "/holds/", &hold.name),
        quantity: hold.quantity as u32,
        seats: hold.seats,
        expires_ms: milliseconds(hold.expire_time),
    }
}

fn sold(event: &str, purchase: Option<v1::Purchase>) -> Said {
    let purchase = purchase.unwrap_or_default();
    let numbers = purchase.tickets.iter().map(|name| {
        let id = id_in(event, "/tickets/", name);
        let number =
            id.strip_prefix(&format!("{}-", purchase.tier_id)).and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("{name} is not of {}", purchase.tier_id))
    });
    let numbers: Vec<u64> = numbers.collect();
    let first = numbers.first().copied().unwrap_or_default();
    assert!(numbers.iter().copied().eq(first..first + numbers.len() as u64), "{:?}", purchase.tickets);
    Said::Sold { tier: purchase.tier_id, first, count: numbers.len() as u32, seats: purchase.seats }
}

fn receipt(group: u32, receipt: v1::Receipt) -> Receipt {
    assert_eq!(receipt.region, region(group));
    Receipt {
        index: receipt.index,
        position: receipt.position,
        incarnation: receipt.incarnation,
        term: receipt.term,
        chain: u64::from_str_radix(&receipt.chain_hash, 16).unwrap_or_default(),
        decided_ms: milliseconds(receipt.decide_time),
    }
}
