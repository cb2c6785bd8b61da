//! Which places a hold or a purchase may take: sale window, quota, stock and seats. It chooses, and never changes a row.

use crate::Context;

use super::super::model::*;
use super::decide::Case;
use super::{Event, Rejection};

/// Places that a hold or a purchase may take.
pub(super) struct Take<'a> {
    pub(super) tier: TierKey,
    /// What the tier is.
    pub(super) spec: &'a TierSpec,
    /// The stock of the tier before anything is taken.
    pub(super) stock: StockRow,
    pub(super) quantity: u32,
    /// Seats, in a tier with numbers.
    pub(super) seats: Vec<u32>,
    /// Price of each place.
    pub(super) price: Price,
    /// Due holds that must end first, so that their places are free.
    pub(super) ended: Vec<Event>,
}

impl<'a> Case<'a> {
    /// Chooses places for an owner: the seats that are named, or as many as asked for.
    pub(super) fn take(
        &self,
        owner: &str,
        event: &str,
        tier: &str,
        quantity: u32,
        seat_names: &[String],
    ) -> Result<Take<'a>, Rejection> {
        let row = self.event_on_sale(event)?;
        let (tier_no, spec) = row.tier(tier).ok_or_else(|| Rejection::TierNotFound(tier.to_owned()))?;
        let quantity = if seat_names.is_empty() { quantity } else { seat_names.len() as u32 };
        self.check_share(row, owner, quantity)?;
        let key = (row.no, tier_no);
        let stock = self.stock(key)?;
        let (ended, seats) = if !seat_names.is_empty() {
            self.named_seats(key, spec, seat_names)?
        } else {
            let ended = self.due_holds(key, &stock, quantity)?;
            let seats =
                if spec.numbered() { self.any_seats(key, spec, quantity, &ended)? } else { Vec::new() };
            (ended, seats)
        };
        let ended =
            ended.into_iter().map(|number| Event::HoldExpired { hold: (key.0, key.1, number) }).collect();
        Ok(Take { tier: key, spec, stock, quantity, seats, price: spec.price(), ended })
    }

    /// The event, if log time is in its sale window.
    fn event_on_sale(&self, id: &str) -> Result<&'a EventRow, Rejection> {
        let row = self.event(id)?;
        if self.context.now_ms < row.opens_ms {
            return Err(Rejection::SaleNotOpen(row.opens_ms));
        }
        if row.closes_ms != 0 && self.context.now_ms >= row.closes_ms {
            return Err(Rejection::SaleClosed(row.closes_ms));
        }
        Ok(row)
    }

    /// Whether somebody may have so many places more.
    fn check_share(&self, row: &EventRow, owner: &str, quantity: u32) -> Result<(), Rejection> {
        if quantity == 0 || quantity > QUANTITY_MAX {
            let why = format!("{quantity} places: one request takes 1 to {QUANTITY_MAX}");
            return Err(Rejection::invalid("quantity", why));
        }
        if owner.is_empty() || owner.len() > 128 {
            return Err(Rejection::invalid("buyer", "a buyer's name has 1 to 128 bytes"));
        }
        let have = held_and_owned(self.state, self.context, row.no, owner);
        if u64::from(have) + u64::from(quantity) > row.quota.into() {
            return Err(Rejection::QuotaExceeded { quota: row.quota, have, asked: quantity });
        }
        Ok(())
    }

    /// Chooses as many due holds of a tier as must end for `quantity` places to be free.
    fn due_holds(&self, tier: TierKey, stock: &StockRow, quantity: u32) -> Result<Vec<u64>, Rejection> {
        let (mut free, mut ended) = (stock.free, Vec::new());
        let mut due = self.state.holds.derived().due(tier, self.context.steady_ms);
        // Each hold has a place at least: this ends after `quantity` steps.
        while free < quantity.into() {
            let Some((number, places)) = due.next() else {
                return Err(Rejection::SoldOut { asked: quantity, free });
            };
            free += u64::from(places);
            ended.push(number);
        }
        Ok(ended)
    }

    /// The seats of these names, and the due holds that they are in.
    fn named_seats(
        &self,
        tier: TierKey,
        spec: &TierSpec,
        names: &[String],
    ) -> Result<(Vec<u64>, Vec<u32>), Rejection> {
        let (mut ended, mut seats) = (Vec::new(), Vec::new());
        for name in names {
            let seat = spec.seat_number(name).ok_or_else(|| Rejection::SeatNotFound(name.clone()))?;
            if seats.contains(&seat) {
                return Err(Rejection::invalid("seats", format!("seat {name} is named twice")));
            }
            match self.state.seats.get(&(tier.0, tier.1, seat)) {
                None => {}
                Some(SeatRow::Held(number)) => {
                    let hold = self.state.holds.get(&(tier.0, tier.1, *number));
                    let due = |hold: &HoldRow| {
                        hold.state == HoldState::Live && hold.expires_ms <= self.context.steady_ms
                    };
                    if !hold.is_some_and(due) {
                        return Err(Rejection::SeatTaken(name.clone()));
                    }
                    if !ended.contains(number) {
                        ended.push(*number);
                    }
                }
                Some(SeatRow::Sold(_)) => return Err(Rejection::SeatTaken(name.clone())),
            }
            seats.push(seat);
        }
        Ok((ended, seats))
    }

    /// The lowest free seats of a tier, counting those of the holds that are about to end.
    fn any_seats(
        &self,
        tier: TierKey,
        spec: &TierSpec,
        quantity: u32,
        ended: &[u64],
    ) -> Result<Vec<u32>, Rejection> {
        let all: u32 = spec.seat_rows.iter().map(|row| row.seats).sum();
        let mut seats: Vec<u32> = ended
            .iter()
            .filter_map(|number| self.state.holds.get(&(tier.0, tier.1, *number)))
            .flat_map(|hold| hold.seats.iter().copied())
            .collect();
        let wanted = quantity as usize;
        let free = self.state.seats.derived().free(tier).take_while(|seat| *seat < all);
        seats.extend(free.take(wanted));
        seats.sort_unstable();
        seats.truncate(wanted);
        if seats.len() < wanted {
            return Err(Rejection::SoldOut { asked: quantity, free: seats.len() as u64 });
        }
        Ok(seats)
    }
}

/// Places that somebody has, not counting holds that are void but not yet swept.
pub(super) fn held_and_owned(state: &State, context: &Context, event: EventNo, owner: &str) -> u32 {
    let owned = state.tickets.derived().of(event, owner).map_or(0, |tickets| tickets.valid);
    owned + state.holds.derived().held(event, owner, context.steady_ms)
}
