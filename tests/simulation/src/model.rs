//! The rules of a sale once more, written as simply as possible: what the oracle believes instead of the code under test.
//!
//! [`Model::take`] is given each decision with what was said, in the order of receipts, and objects to what could not have
//! been said. Time is the log time of the receipt. **Never here:** code of the state machine, or a guess.

use std::collections::BTreeMap;

use crate::history::{Ask, Said, TicketSeen};

/// An objection: the check that it belongs to, and what is wrong.
pub type Objection = (&'static str, String);

#[derive(Debug, Clone)]
struct Hold {
    owner: String,
    quantity: u32,
    seats: Vec<String>,
    expires_ms: u64,
}

impl Hold {
    /// Whether this is what its owner must be told at this time: for a minute that it was late, and then that there is none.
    fn is_told_to_be_late(&self, now_ms: u64, reason: &str) -> bool {
        match now_ms.checked_sub(self.expires_ms) {
            None => false,
            Some(0..60_000) => reason == "HOLD_EXPIRED",
            Some(_) => reason == "HOLD_NOT_FOUND",
        }
    }
}

#[derive(Debug, Clone)]
struct Ticket {
    owner: String,
    seat: String,
    cancelled: bool,
}

/// One tier.
#[derive(Debug, Clone, Default)]
struct Tier {
    capacity: u64,
    numbered: bool,
    /// Number of the last hold.
    last_hold: u64,
    holds: BTreeMap<String, Hold>,
    tickets: BTreeMap<u64, Ticket>,
}

#[derive(Debug, Clone)]
struct Event {
    organiser: String,
    quota: u32,
    tiers: BTreeMap<String, Tier>,
}

/// A group's events.
#[derive(Debug, Clone, Default)]
pub struct Model {
    events: BTreeMap<String, Event>,
}

/// When something was decided.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    /// Log time, ms.
    pub log_ms: u64,
    /// Steady time, ms.
    pub steady_ms: u64,
    /// The incarnation of the group.
    pub incarnation: u64,
}

impl Time {
    /// The number that follows `last`: those of incarnations that were lost are not given again. They count recoveries by force
    /// in the upper half and imports in the lower one.
    fn number_after(&self, last: u64) -> u64 {
        let (recoveries, imports) = (self.incarnation >> 32, self.incarnation & 0xffff_ffff);
        let block = if recoveries == 0 { imports.saturating_sub(1) } else { recoveries * 1_000 + imports };
        last.max(block * 1_000_000_000_000) + 1
    }
}

/// What can be told of a tier at a point of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers {
    /// All places.
    pub capacity: u64,
    /// Places of valid tickets.
    pub sold: u64,
    /// Places in holds that are not due, by when they will be, steady time.
    pub held: Vec<(u64, u64)>,
}

impl Numbers {
    /// Places that a purchase can get.
    pub fn obtainable(&self) -> u64 {
        let held: u64 = self.held.iter().map(|(_, places)| places).sum();
        self.capacity.saturating_sub(self.sold + held)
    }

    /// Whether so many places may be shown as held until this steady time: what is due by then is not, and nothing else.
    pub fn may_show_held(&self, held: u64, until_ms: u64) -> bool {
        let left_at =
            |due_ms: u64| self.held.iter().filter(|(due, _)| *due > due_ms).map(|(_, n)| n).sum::<u64>();
        let dues = self.held.iter().map(|(due, _)| *due).filter(|due| *due <= until_ms);
        std::iter::once(0).chain(dues).any(|due_ms| left_at(due_ms) == held)
    }
}

impl Tier {
    fn sold(&self) -> u64 {
        self.tickets.values().filter(|ticket| !ticket.cancelled).count() as u64
    }

    fn numbers(&self, now_ms: u64) -> Numbers {
        let live = self.holds.values().filter(|hold| hold.expires_ms > now_ms);
        let held = live.map(|hold| (hold.expires_ms, u64::from(hold.quantity))).collect();
        Numbers { capacity: self.capacity, sold: self.sold(), held }
    }

    fn seat_is_taken(&self, seat: &str, now_ms: u64, except: Option<&str>) -> bool {
        self.tickets.values().any(|ticket| !ticket.cancelled && ticket.seat == seat)
            || self.holds.iter().any(|(id, hold)| {
                hold.expires_ms > now_ms
                    && Some(id.as_str()) != except
                    && hold.seats.iter().any(|held| held == seat)
            })
    }

    fn check_seats(
        &self,
        seats: &[String],
        count: u32,
        now_ms: u64,
        except: Option<&str>,
    ) -> Result<(), Objection> {
        if !self.numbered {
            return if seats.is_empty() {
                Ok(())
            } else {
                Err(("outcome", "seats in a tier without".into()))
            };
        }
        if seats.len() != count as usize {
            return Err(("outcome", format!("{} seats for {count} places", seats.len())));
        }
        for (at, seat) in seats.iter().enumerate() {
            if seats[..at].contains(seat) || self.seat_is_taken(seat, now_ms, except) {
                return Err(("sold-twice", format!("seat {seat} was given to two")));
            }
        }
        Ok(())
    }

    fn sell(
        &mut self,
        time: Time,
        owner: &str,
        first: u64,
        count: u32,
        seats: &[String],
    ) -> Result<(), Objection> {
        let next = time.number_after(self.tickets.keys().next_back().copied().unwrap_or_default());
        if first != next {
            return Err(("fifo", format!("tickets from {first} on were sold when {next} was next")));
        }
        for at in 0..count as usize {
            let seat = seats.get(at).cloned().unwrap_or_default();
            let ticket = Ticket { owner: owner.to_owned(), seat, cancelled: false };
            self.tickets.insert(next + at as u64, ticket);
        }
        Ok(())
    }
}

impl Event {
    fn places_of(&self, owner: &str, now_ms: u64) -> u32 {
        let tiers = self.tiers.values();
        tiers
            .map(|tier| {
                let tickets =
                    tier.tickets.values().filter(|t| t.owner == owner && !t.cancelled).count() as u32;
                let holds = tier.holds.values().filter(|h| h.owner == owner && h.expires_ms > now_ms);
                tickets + holds.map(|hold| hold.quantity).sum::<u32>()
            })
            .sum()
    }

    fn hold(&mut self, id: &str) -> Option<(&mut Tier, String)> {
        let tier = self.tiers.get_mut(id.rsplit_once('-')?.0)?;
        tier.holds.contains_key(id).then(|| (tier, id.to_owned()))
    }
}

fn contradiction<T>(ask: &Ask, said: &Said) -> Result<T, Objection> {
    Err(("outcome", format!("{said:?} is no possible answer to {ask:?}")))
}

impl Model {
    /// The numbers of a tier.
    pub fn numbers(&self, event: &str, tier: &str, now_ms: u64) -> Option<Numbers> {
        self.events.get(event)?.tiers.get(tier).map(|tier| tier.numbers(now_ms))
    }

    /// All tiers with their numbers.
    pub fn all_numbers(&self, now_ms: u64) -> BTreeMap<(String, String), Numbers> {
        let tiers = |(id, event): (&String, &Event)| {
            let id = id.clone();
            let numbers =
                event.tiers.iter().map(move |(tier, t)| ((id.clone(), tier.clone()), t.numbers(now_ms)));
            numbers.collect::<Vec<_>>()
        };
        self.events.iter().flat_map(tiers).collect()
    }

    /// All tickets of an event, in the order of tiers and numbers.
    pub fn tickets(&self, event: &str) -> Vec<TicketSeen> {
        let Some(event) = self.events.get(event) else { return Vec::new() };
        let of_tier = |(id, tier): (&String, &Tier)| {
            let id = id.clone();
            let seen = tier.tickets.iter().map(move |(number, ticket)| TicketSeen {
                ticket: format!("{id}-{number}"),
                owner: ticket.owner.clone(),
                seat: ticket.seat.clone(),
                cancelled: ticket.cancelled,
            });
            seen.collect::<Vec<_>>()
        };
        event.tiers.iter().flat_map(of_tier).collect()
    }

    /// The events there are.
    pub fn events(&self) -> impl Iterator<Item = &String> {
        self.events.keys()
    }

    /// Takes the next decision in.
    ///
    /// # Errors
    /// What the group said is not what it could have said.
    pub fn take(&mut self, time: Time, principal: &str, ask: &Ask, said: &Said) -> Result<(), Objection> {
        let now_ms = time.steady_ms;
        if let Ask::Create { event, quota, tiers } = ask {
            return self.create(principal, event, *quota, tiers, ask, said);
        }
        let id = match ask {
            Ask::Seal => return contradiction(ask, said),
            Ask::Create { event, .. }
            | Ask::Buy { event, .. }
            | Ask::Sell { event, .. }
            | Ask::Hold { event, .. }
            | Ask::Confirm { event, .. }
            | Ask::Release { event, .. }
            | Ask::Cancel { event, .. } => event,
        };
        let Some(event) = self.events.get_mut(id) else {
            return match said {
                Said::Rejected(reason) if reason == "EVENT_NOT_FOUND" => Ok(()),
                _ => Err(("outcome", format!("event {id} does not exist, but {said:?}"))),
            };
        };
        match ask {
            Ask::Create { .. } | Ask::Seal => contradiction(ask, said),
            Ask::Buy { tier, quantity, seats, .. } => {
                event.takes(time, principal, tier, *quantity, seats, None, ask, said)
            }
            Ask::Sell { tier, quantity, buyer, .. } => {
                event.takes(time, buyer, tier, *quantity, &[], None, ask, said)
            }
            Ask::Hold { tier, quantity, ttl_ms, .. } => {
                event.takes(time, principal, tier, *quantity, &[], Some(*ttl_ms), ask, said)
            }
            Ask::Confirm { hold, .. } => event.confirms(time, principal, hold, ask, said),
            Ask::Release { hold, .. } => event.releases(now_ms, principal, hold, ask, said),
            Ask::Cancel { ticket, .. } => event.cancels(principal, ticket, ask, said),
        }
    }

    fn create(
        &mut self,
        principal: &str,
        event: &str,
        quota: u32,
        tiers: &[(String, u64, bool)],
        ask: &Ask,
        said: &Said,
    ) -> Result<(), Objection> {
        let exists = self.events.contains_key(event);
        match said {
            Said::Created if !exists => {
                let tier = |(id, capacity, numbered): &(String, u64, bool)| {
                    (id.clone(), Tier { capacity: *capacity, numbered: *numbered, ..Tier::default() })
                };
                let tiers = tiers.iter().map(tier).collect();
                self.events.insert(event.to_owned(), Event { organiser: principal.to_owned(), quota, tiers });
                Ok(())
            }
            Said::Rejected(reason) if exists && reason == "EVENT_EXISTS" => Ok(()),
            _ => contradiction(ask, said),
        }
    }
}

impl Event {
    #[expect(clippy::too_many_arguments, reason = "a purchase and a hold differ in one of them")]
    fn takes(
        &mut self,
        time: Time,
        principal: &str,
        tier_id: &str,
        quantity: u32,
        named: &[String],
        ttl_ms: Option<u32>,
        ask: &Ask,
        said: &Said,
    ) -> Result<(), Objection> {
        let Time { log_ms, steady_ms: now_ms, .. } = time;
        let over_quota = self.places_of(principal, now_ms) + quantity > self.quota;
        let Some(tier) = self.tiers.get_mut(tier_id) else { return contradiction(ask, said) };
        let obtainable = tier.numbers(now_ms).obtainable();
        let short = obtainable < u64::from(quantity);
        match said {
            Said::Rejected(reason) => match reason.as_str() {
                "SOLD_OUT" if short => Ok(()),
                "SOLD_OUT" => Err(("lost-sale", format!("sold out with {obtainable} places free: {ask:?}"))),
                "QUOTA_EXCEEDED" if over_quota => Ok(()),
                "SEAT_TAKEN" if named.iter().any(|seat| tier.seat_is_taken(seat, now_ms, None)) => Ok(()),
                _ => contradiction(ask, said),
            },
            Said::Sold { .. } | Said::Held { .. } if over_quota => {
                Err(("quota", format!("{ask:?} got {said:?}")))
            }
            Said::Sold { .. } | Said::Held { .. } if short => {
                Err(("oversold", format!("{ask:?} got {said:?} with {obtainable} places free")))
            }
            Said::Sold { tier: named_tier, first, count, seats } if ttl_ms.is_none() => {
                if *count != quantity
                    || named_tier != tier_id
                    || (!named.is_empty() && named != seats.as_slice())
                {
                    return contradiction(ask, said);
                }
                tier.check_seats(seats, *count, now_ms, None)?;
                tier.sell(time, principal, *first, *count, seats)
            }
            Said::Held { hold, quantity: got, seats, expires_ms } => {
                let Some(ttl_ms) = ttl_ms else { return contradiction(ask, said) };
                let number = time.number_after(tier.last_hold);
                let next = format!("{tier_id}-h{number}");
                if *got != quantity || *expires_ms != log_ms + u64::from(ttl_ms) || *hold != next {
                    return contradiction(ask, said);
                }
                tier.check_seats(seats, *got, now_ms, None)?;
                tier.last_hold = number;
                let owner = principal.to_owned();
                let row =
                    Hold { owner, quantity, seats: seats.clone(), expires_ms: now_ms + u64::from(ttl_ms) };
                tier.holds.insert(hold.clone(), row);
                Ok(())
            }
            _ => contradiction(ask, said),
        }
    }

    fn confirms(
        &mut self,
        time: Time,
        principal: &str,
        id: &str,
        ask: &Ask,
        said: &Said,
    ) -> Result<(), Objection> {
        let now_ms = time.steady_ms;
        let tier_id = id.rsplit_once('-').map(|(tier, _)| tier.to_owned()).unwrap_or_default();
        let found = self.hold(id).map(|(tier, id)| (tier.holds[&id].clone(), tier));
        match (found, said) {
            (Some((hold, _)), Said::Rejected(reason)) if reason == "NOT_OWNER" && hold.owner != principal => {
                Ok(())
            }
            (Some((hold, _)), Said::Rejected(reason)) if hold.is_told_to_be_late(now_ms, reason) => Ok(()),
            (None, Said::Rejected(reason)) if reason == "HOLD_NOT_FOUND" => Ok(()),
            (Some((hold, _)), Said::Sold { .. }) if hold.expires_ms <= now_ms => {
                Err(("expiry", format!("hold {id} was confirmed {} ms late", now_ms - hold.expires_ms)))
            }
            (Some((hold, tier)), Said::Sold { tier: sold_tier, first, count, seats })
                if hold.owner == principal
                    && *sold_tier == tier_id
                    && *count == hold.quantity
                    && *seats == hold.seats =>
            {
                tier.check_seats(seats, *count, now_ms, Some(id))?;
                tier.holds.remove(id);
                tier.sell(time, principal, *first, *count, seats)
            }
            _ => contradiction(ask, said),
        }
    }

    fn releases(
        &mut self,
        now_ms: u64,
        principal: &str,
        id: &str,
        ask: &Ask,
        said: &Said,
    ) -> Result<(), Objection> {
        let found = self.hold(id).map(|(tier, id)| (tier.holds[&id].clone(), tier));
        match (found, said) {
            (Some((hold, tier)), Said::Released) if hold.owner == principal && hold.expires_ms > now_ms => {
                tier.holds.remove(id);
                Ok(())
            }
            (Some((hold, _)), Said::Rejected(reason)) if reason == "NOT_OWNER" && hold.owner != principal => {
                Ok(())
            }
            (Some((hold, _)), Said::Rejected(reason)) if hold.is_told_to_be_late(now_ms, reason) => Ok(()),
            (None, Said::Rejected(reason)) if reason == "HOLD_NOT_FOUND" => Ok(()),
            _ => contradiction(ask, said),
        }
    }

    fn cancels(&mut self, principal: &str, id: &str, ask: &Ask, said: &Said) -> Result<(), Objection> {
        let organiser = self.organiser == principal;
        let parts = id.rsplit_once('-').and_then(|(tier, number)| Some((tier, number.parse().ok()?)));
        let found =
            parts.and_then(|(tier, number): (&str, u64)| self.tiers.get_mut(tier)?.tickets.get_mut(&number));
        match (found, said) {
            (None, Said::Rejected(reason)) if reason == "TICKET_NOT_FOUND" => Ok(()),
            (Some(ticket), Said::Rejected(reason)) if reason == "NOT_OWNER" && ticket.owner != principal => {
                Ok(())
            }
            (Some(ticket), Said::Rejected(reason)) if reason == "TICKET_CANCELLED" && ticket.cancelled => {
                Ok(())
            }
            (Some(ticket), Said::Cancelled)
                if !ticket.cancelled && (organiser || ticket.owner == principal) =>
            {
                ticket.cancelled = true;
                Ok(())
            }
            _ => contradiction(ask, said),
        }
    }
}
