//! Reads over the rows of the ticket module. Nothing here changes anything.

use super::model::*;

/// What stops a purchase at once, without asking the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuickNo {
    /// Nothing would be decided otherwise by the log: the rejection it would give now.
    Certain(super::Rejection),
    /// It may succeed, or a hold is due: the log must decide.
    AskTheLog,
}

/// One tier with its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierView<'a> {
    /// What it is.
    pub spec: &'a TierSpec,
    /// Its numbers.
    pub stock: StockRow,
}

/// A ticket with the names that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketView {
    /// Its id, for example "ga-12".
    pub id: String,
    /// Id of its tier.
    pub tier: String,
    /// Who has it.
    pub owner: String,
    /// Name of its seat; empty in a tier without numbers.
    pub seat: String,
    /// Price paid.
    pub price: Price,
    /// Its place was given back.
    pub cancelled: bool,
    /// Log time of the sale, milliseconds.
    pub sold_ms: u64,
    /// Request id of the sale.
    pub request_id: u128,
    /// Who may change its event.
    pub organiser: String,
}

impl TicketView {
    /// A ticket of an event.
    pub fn of(event: &EventRow, key: &NumberKey, row: &TicketRow) -> Self {
        let spec = event.tiers.get(usize::from(key.1));
        let tier = spec.map(|spec| spec.id.clone()).unwrap_or_default();
        Self {
            id: format!("{tier}-{}", key.2),
            owner: row.owner.to_string(),
            seat: match (spec, row.seat) {
                (Some(spec), Some(seat)) => spec.seat_name(seat),
                _ => String::new(),
            },
            price: row.price,
            cancelled: row.cancelled,
            sold_ms: row.sold_ms,
            request_id: row.request_id,
            organiser: event.organiser.clone(),
            tier,
        }
    }
}

impl State {
    /// The event with this id.
    pub fn event(&self, id: &str) -> Option<&EventRow> {
        // The table's keys are owned strings; a page is one event, so this is one look-up.
        self.events.get(&id.to_owned())
    }

    /// Events after an id (exclusive), ordered by id.
    pub fn events_after<'a>(&'a self, after: &'a str) -> impl Iterator<Item = (&'a str, &'a EventRow)> {
        self.events
            .range_from(&after.to_owned())
            .filter(move |(id, _)| id.as_str() > after)
            .map(|(id, row)| (id.as_str(), row))
    }

    /// The numbers of an event's tiers, in their order, as the rows say.
    pub fn stock_of<'a>(&'a self, event: &'a EventRow) -> impl Iterator<Item = StockRow> + 'a {
        (0..event.tiers.len())
            .map(|no| self.stock.get(&(event.no, no as TierNo)).copied().unwrap_or_default())
    }

    /// The tiers of an event, with their numbers: what is due by `now_ms` of steady time is free, whether it was ended or not.
    pub fn tiers<'a>(&'a self, event: &'a EventRow, now_ms: u64) -> impl Iterator<Item = TierView<'a>> {
        event.tiers.iter().zip(self.stock_of(event)).enumerate().map(move |(no, (spec, mut stock))| {
            let due = self.holds.derived().due((event.no, no as TierNo), now_ms);
            let due: u64 = due.map(|(_, places)| u64::from(places)).sum();
            stock.held = stock.held.saturating_sub(due);
            stock.free += due;
            TierView { spec, stock }
        })
    }

    /// A ticket.
    pub fn ticket(&self, key: &NumberKey) -> Option<&TicketRow> {
        self.tickets.get(key)
    }

    /// Tickets of an event after a key (exclusive), of one owner or of all.
    pub fn tickets_after(
        &self,
        event: EventNo,
        owner: Option<&str>,
        after: (TierNo, u64),
        limit: usize,
    ) -> Vec<(NumberKey, &TicketRow)> {
        match owner {
            Some(owner) => {
                let Some(mine) = self.tickets.derived().of(event, owner) else { return Vec::new() };
                let from = (after.0, after.1.saturating_add(1));
                let keys = mine.tickets.range(from..).take(limit);
                keys.filter_map(|(tier, number)| {
                    let key = (event, *tier, *number);
                    Some((key, self.tickets.get(&key)?))
                })
                .collect()
            }
            None => self
                .tickets
                .range_from(&(event, after.0, after.1.saturating_add(1)))
                .take_while(|(key, _)| key.0 == event)
                .take(limit)
                .map(|(key, row)| (*key, row))
                .collect(),
        }
    }

    /// Steady time of the earliest timer, milliseconds.
    pub fn next_timer_ms(&self) -> Option<u64> {
        self.holds.derived().next_timer_ms()
    }

    /// Whether a purchase or hold of `quantity` places can only be refused as sold out, at this log time and this steady time
    /// by the reader's clock: when a hold of the tier could be due by then, the log must decide.
    pub fn sold_out(&self, event: &str, tier: &str, quantity: u32, now_ms: u64, steady_ms: u64) -> QuickNo {
        let Some(row) = self.event(event) else { return QuickNo::AskTheLog };
        let Some((no, _)) = row.tier(tier) else { return QuickNo::AskTheLog };
        let key = (row.no, no);
        let Some(stock) = self.stock.get(&key) else { return QuickNo::AskTheLog };
        let due = self.holds.derived().due(key, steady_ms).next().is_some();
        let open = now_ms >= row.opens_ms && (row.closes_ms == 0 || now_ms < row.closes_ms);
        if stock.free >= u64::from(quantity.max(1)) || due || !open {
            return QuickNo::AskTheLog;
        }
        QuickNo::Certain(super::Rejection::SoldOut { asked: quantity, free: stock.free })
    }
}
