//! Who may go in: the calls of one region that are under way, the calls that wait, and whose turn is next.
//!
//! Up to the limit, calls go in at once. Beyond it they wait, up to a bound, and rows take turns, so that a flood on one
//! row queues behind itself only; a row that has little under way does not wait at all, but uses a reserve beside the
//! limit. When the bound is reached the row that waits most is refused first, and nobody waits behind more calls than it
//! has time for. Pure: no clock, no task, no lock; whoever waits is a `W` that comes back when it is let in or pushed out.

use std::collections::{BTreeMap, VecDeque};

/// What is let in first when a region is full: finishing what was started frees stock, browsing does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Confirm, release, cancel, and asking for a lost outcome.
    Finish,
    /// Hold, buy, create.
    Start,
    /// Reads.
    Browse,
}

impl Class {
    /// In the order in which they are let in.
    const ALL: [Self; 3] = [Self::Finish, Self::Start, Self::Browse];

    /// This class's part of a bound.
    pub(crate) fn share(self, bound: usize) -> usize {
        match self {
            Self::Finish => bound + bound / 8,
            Self::Start => bound,
            Self::Browse => bound - bound / 8,
        }
        .max(1)
    }
}

/// With more rows waiting than this, nobody is pushed out: there is no heaviest row worth looking for.
const PUSH_OUT_ROWS_MAX: usize = 64;

/// A row, by a hash of its name. Rows that collide share their turns, and nothing worse.
pub(crate) type RowKey = u64;
/// What concerns no single row.
pub(crate) const NO_ROW: RowKey = 0;

/// A place among the calls under way, to be given back with [`Room::leave`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) row: RowKey,
    pub(crate) weight: usize,
    /// It changes a row: it would notice a flood on another one.
    pub(crate) neighbour: bool,
    /// Beside the limit.
    reserve: bool,
}

/// A place in the queue, for [`Room::withdraw`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    class: Class,
    row: RowKey,
    number: u64,
}

/// What became of an arrival.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival<W> {
    /// It is under way.
    In(Place),
    /// It waits; if there was no room for it, `pushed_out` has to go instead.
    Waits { ticket: Ticket, pushed_out: Option<W> },
    /// There is no room for it.
    Full,
}

/// How heavy a row is among those of its region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heft {
    /// It has at least half of all calls.
    Heavy,
    /// It has less than a quarter.
    Light,
    /// Neither.
    Middling,
}

#[derive(Debug, Default)]
struct Row {
    under_way: usize,
    waiting: usize,
}

struct Waiter<W> {
    number: u64,
    weight: usize,
    handle: W,
}

/// Calls of one class that wait.
struct Queue<W> {
    /// Rows of which the last one has gone away are left empty until their turn comes: nobody searches `turns`.
    rows: BTreeMap<RowKey, VecDeque<Waiter<W>>>,
    /// The rows of `rows`, the next one first.
    turns: VecDeque<RowKey>,
    /// Calls in it, and their weight.
    calls: usize,
    weight: usize,
}

impl<W> Queue<W> {
    fn new() -> Self {
        Self { rows: BTreeMap::new(), turns: VecDeque::new(), calls: 0, weight: 0 }
    }

    fn push(&mut self, row: RowKey, waiter: Waiter<W>) {
        self.calls += 1;
        self.weight += waiter.weight;
        let waiters = self.rows.entry(row).or_insert_with(|| {
            self.turns.push_back(row);
            VecDeque::new()
        });
        waiters.push_back(waiter);
    }

    /// Calls of a row.
    fn calls_of(&self, row: RowKey) -> usize {
        self.rows.get(&row).map_or(0, VecDeque::len)
    }

    /// Takes one waiter out of a row's queue.
    fn take(
        &mut self,
        row: RowKey,
        pick: impl FnOnce(&mut VecDeque<Waiter<W>>) -> Option<Waiter<W>>,
    ) -> Option<Waiter<W>> {
        let taken = pick(self.rows.get_mut(&row)?)?;
        self.calls -= 1;
        self.weight -= taken.weight;
        if self.calls == 0 {
            self.rows.clear();
            self.turns.clear();
        }
        Some(taken)
    }

    /// The first waiter of the row whose turn it is, if it weighs no more than `room`; the turn passes on.
    fn next(&mut self, room: impl Fn(usize) -> bool) -> Option<(RowKey, Waiter<W>)> {
        loop {
            let row = *self.turns.front()?;
            let Some(first) = self.rows.get(&row).and_then(VecDeque::front) else {
                self.turns.pop_front();
                self.rows.remove(&row);
                continue;
            };
            if !room(first.weight) {
                return None;
            }
            let waiter = self.take(row, VecDeque::pop_front)?;
            if !self.turns.is_empty() {
                self.turns.rotate_left(1);
            }
            return Some((row, waiter));
        }
    }
}

/// The calls of one region.
pub(crate) struct Room<W> {
    limit: usize,
    /// Calls that may be here at once, waiting ones included.
    calls_max: usize,
    /// Rows that have calls here: never more than calls.
    rows: BTreeMap<RowKey, Row>,
    /// By [`Class`].
    queues: [Queue<W>; 3],
    /// Under way within the limit.
    under_way: usize,
    /// Under way beside it.
    reserved: usize,
    waiting: usize,
    next_number: u64,
}

impl<W> Room<W> {
    /// An empty room for `calls_max` calls.
    pub(crate) fn new(limit: usize, calls_max: usize) -> Self {
        Self {
            limit: limit.max(1),
            calls_max: calls_max.max(1),
            rows: BTreeMap::new(),
            queues: Class::ALL.map(|_| Queue::new()),
            under_way: 0,
            reserved: 0,
            waiting: 0,
            next_number: 0,
        }
    }

    /// Calls under way, by weight.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way + self.reserved
    }

    /// Calls that wait, by weight.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Changes how many calls may be under way; who waits gets in with the next call of [`Room::next`].
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit.max(1);
    }

    /// Takes a call that weighs as much as `weight` single ones; `waiter` makes the one who waits, if it must. It waits
    /// only if at most about `ahead_max` calls, by weight, are let in before it.
    pub(crate) fn arrive(
        &mut self,
        class: Class,
        row: RowKey,
        weight: usize,
        ahead_max: usize,
        waiter: impl FnOnce() -> W,
    ) -> Arrival<W> {
        // A call heavier than the bound still gets in when it is alone.
        let weight = weight.clamp(1, class.share(self.limit));
        let (own_under_way, own_waiting) =
            self.rows.get(&row).map_or((0, 0), |row| (row.under_way, row.waiting));
        let nobody_before = self.queues[..=class as usize].iter().all(|queue| queue.calls == 0);
        if nobody_before && self.under_way + weight <= class.share(self.limit) {
            return Arrival::In(self.let_in(class, row, weight, false));
        }
        let reserve = class.share(self.limit) / 2;
        let part = (reserve / self.rows.len().max(1)).max(1);
        if own_waiting == 0 && own_under_way + weight <= part && self.reserved + weight <= reserve {
            return Arrival::In(self.let_in(class, row, weight, true));
        }
        if self.ahead(class, row) > ahead_max {
            return Arrival::Full;
        }
        let mut pushed_out = None;
        if self.under_way() + self.waiting + weight > class.share(self.calls_max) {
            pushed_out = self.push_out(class, own_waiting);
            if pushed_out.is_none() {
                return Arrival::Full;
            }
        }
        let number = self.next_number;
        self.next_number += 1;
        self.waiting += weight;
        self.rows.entry(row).or_default().waiting += weight;
        self.queues[class as usize].push(row, Waiter { number, weight, handle: waiter() });
        Arrival::Waits { ticket: Ticket { class, row, number }, pushed_out }
    }

    /// About how many calls, by weight, are let in before a new one of a row: all that wait in its class and those before
    /// it, or, as rows take turns, as many of each row as of its own.
    fn ahead(&self, class: Class, row: RowKey) -> usize {
        let queues = &self.queues[..=class as usize];
        let sum = |of: &dyn Fn(&Queue<W>) -> usize| queues.iter().map(of).sum::<usize>();
        let (weight, calls) = (sum(&|queue| queue.weight), sum(&|queue| queue.calls));
        let turns = sum(&|queue| queue.rows.len()).saturating_mul(sum(&|queue| queue.calls_of(row)) + 1);
        weight.min(turns.saturating_mul(weight) / calls.max(1))
    }

    /// Takes all who wait out, class by class.
    pub(crate) fn drain(&mut self) -> Vec<W> {
        let mut all = Vec::with_capacity(self.queues.iter().map(|queue| queue.calls).sum());
        for class in Class::ALL {
            while let Some((row, waiter)) = self.queues[class as usize].next(|_| true) {
                self.no_longer_waits(row, waiter.weight);
                all.push(waiter.handle);
            }
        }
        all
    }

    /// A call has ended; says how heavy its row was until then.
    pub(crate) fn leave(&mut self, place: Place) -> Heft {
        // Of what waits, each row counts for as much as may be under way: rows take turns, however long their queues are.
        let rows: usize = self.queues.iter().map(|queue| queue.rows.len()).sum();
        let all = self.under_way() + self.waiting.min(self.limit.saturating_mul(rows));
        if place.reserve {
            self.reserved -= place.weight;
        } else {
            self.under_way -= place.weight;
        }
        let Some(row) = self.rows.get_mut(&place.row) else { return Heft::Light };
        let own = row.under_way + row.waiting.min(self.limit);
        row.under_way -= place.weight;
        self.forget_if_empty(place.row);
        match () {
            () if own * 2 >= all => Heft::Heavy,
            () if own * 4 < all => Heft::Light,
            () => Heft::Middling,
        }
    }

    /// Lets in the next one who waits, if there is room.
    pub(crate) fn next(&mut self) -> Option<(Place, W)> {
        for class in Class::ALL {
            let (bound, under_way) = (class.share(self.limit), self.under_way);
            let queue = &mut self.queues[class as usize];
            if queue.calls == 0 {
                continue;
            }
            // Who is first does not fit: nobody goes past, or a heavy call would never get in.
            let (row, waiter) = queue.next(|weight| under_way + weight <= bound || under_way == 0)?;
            self.no_longer_waits(row, waiter.weight);
            return Some((self.let_in(class, row, waiter.weight, false), waiter.handle));
        }
        None
    }

    /// Somebody no longer wants to wait; `None` if it is not waiting any more.
    pub(crate) fn withdraw(&mut self, ticket: Ticket) -> Option<W> {
        let waiter = self.queues[ticket.class as usize].take(ticket.row, |waiters| {
            let position = waiters.binary_search_by_key(&ticket.number, |waiter| waiter.number).ok()?;
            waiters.remove(position)
        })?;
        self.no_longer_waits(ticket.row, waiter.weight);
        Some(waiter.handle)
    }

    fn let_in(&mut self, class: Class, row: RowKey, weight: usize, reserve: bool) -> Place {
        if reserve {
            self.reserved += weight;
        } else {
            self.under_way += weight;
        }
        self.rows.entry(row).or_default().under_way += weight;
        Place { row, weight, neighbour: class != Class::Browse && row != NO_ROW, reserve }
    }

    fn no_longer_waits(&mut self, row: RowKey, weight: usize) {
        self.waiting -= weight;
        if let Some(entry) = self.rows.get_mut(&row) {
            entry.waiting -= weight;
        }
        self.forget_if_empty(row);
    }

    fn forget_if_empty(&mut self, row: RowKey) {
        if self.rows.get(&row).is_some_and(|row| row.under_way + row.waiting == 0) {
            self.rows.remove(&row);
        }
    }

    /// Makes room for a call of a row that has `own_waiting`: the newest call of the row that waits most goes, unless
    /// the new one would be the heaviest itself.
    fn push_out(&mut self, class: Class, own_waiting: usize) -> Option<W> {
        let queue = &mut self.queues[class as usize];
        // A row with an even share cannot be far from the heaviest; only lighter ones are worth a search.
        if queue.rows.len() > PUSH_OUT_ROWS_MAX || own_waiting * queue.rows.len() >= self.waiting {
            return None;
        }
        let (count, heaviest) = queue.rows.iter().map(|(row, waiters)| (waiters.len(), *row)).max()?;
        if count <= own_waiting + 1 {
            return None;
        }
        let waiter = queue.take(heaviest, VecDeque::pop_back)?;
        self.no_longer_waits(heaviest, waiter.weight);
        Some(waiter.handle)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HOT: RowKey = 1;
    const COLD: RowKey = 2;

    fn arrive(room: &mut Room<u32>, class: Class, row: RowKey, name: u32) -> Arrival<u32> {
        room.arrive(class, row, 1, usize::MAX, || name)
    }

    fn place(arrival: Arrival<u32>) -> Place {
        match arrival {
            Arrival::In(place) => place,
            other => panic!("not let in: {other:?}"),
        }
    }

    fn waits(arrival: &Arrival<u32>) -> bool {
        matches!(arrival, Arrival::Waits { pushed_out: None, .. })
    }

    /// A room of limit 8 with a flood on one row: 8 under way, the rest waiting.
    fn flooded(calls: u32, calls_max: usize) -> (Room<u32>, Vec<Place>) {
        let mut room = Room::new(8, calls_max);
        let mut places = Vec::new();
        for name in 0..calls {
            match arrive(&mut room, Class::Start, HOT, name) {
                Arrival::In(place) => places.push(place),
                Arrival::Waits { pushed_out: None, .. } => {}
                other => panic!("{name}: {other:?}"),
            }
        }
        (room, places)
    }

    #[test]
    fn the_limit_holds_and_who_waits_gets_in_in_order() {
        let (mut room, mut places) = flooded(12, 100);
        assert_eq!((places.len(), room.under_way(), room.waiting()), (8, 8, 4));
        assert!(room.next().is_none());
        for expected in 8..12 {
            room.leave(places.pop().unwrap());
            assert_eq!(room.next().map(|(_, name)| name), Some(expected));
            assert!(room.next().is_none());
        }
        assert_eq!((room.under_way(), room.waiting()), (8, 0));
    }

    #[test]
    fn a_light_row_does_not_wait_for_a_flood() {
        let (mut room, _places) = flooded(50, 100);
        // Two rows share a reserve of 4: two calls each.
        let first = place(arrive(&mut room, Class::Browse, COLD, 100));
        let second = place(arrive(&mut room, Class::Start, COLD, 101));
        assert!(
            waits(&arrive(&mut room, Class::Start, COLD, 102)),
            "beyond its part of the reserve it queues"
        );
        assert_eq!(room.under_way(), 10);
        assert_eq!((room.leave(first), room.leave(second)), (Heft::Light, Heft::Light));
        assert!(room.next().is_none(), "what used the reserve frees no place for the flood");
    }

    #[test]
    fn rows_take_turns_whatever_their_queues() {
        let (mut room, mut places) = flooded(50, 100);
        // A third row takes the reserve, so that the cold row has to queue.
        while let Arrival::In(_) = arrive(&mut room, Class::Start, 3, 300) {}
        while let Arrival::In(_) = arrive(&mut room, Class::Start, 4, 400) {}
        for name in 100..103 {
            assert!(!matches!(arrive(&mut room, Class::Start, COLD, name), Arrival::Full));
        }
        let mut order = Vec::new();
        for _ in 0..8 {
            room.leave(places.pop().unwrap());
            order.extend(room.next().map(|(place, _)| place.row));
        }
        let of = |row: RowKey| order.iter().filter(|turn| **turn == row).count();
        assert!(of(HOT) <= 4 && of(COLD) >= 1, "{order:?}");
    }

    #[test]
    fn finishing_goes_first_and_browsing_last() {
        let (mut room, mut places) = flooded(20, 100);
        assert!(waits(&arrive(&mut room, Class::Browse, HOT, 200)));
        let finish = arrive(&mut room, Class::Finish, HOT, 300);
        assert!(matches!(finish, Arrival::In(_)), "finishing may go an eighth above the limit: {finish:?}");
        assert!(waits(&arrive(&mut room, Class::Finish, HOT, 301)));
        room.leave(places.pop().unwrap());
        assert_eq!(room.next().map(|(_, name)| name), Some(301));
    }

    #[test]
    fn a_full_room_pushes_out_the_heaviest_row_and_refuses_it() {
        let (mut room, _places) = flooded(16, 16);
        assert_eq!(arrive(&mut room, Class::Start, HOT, 99), Arrival::Full, "the flood itself is refused");
        // The reserve takes two calls of the cold row; the third one waits at the expense of the flood.
        place(arrive(&mut room, Class::Start, COLD, 100));
        place(arrive(&mut room, Class::Start, COLD, 101));
        let third = arrive(&mut room, Class::Start, COLD, 102);
        assert!(matches!(third, Arrival::Waits { pushed_out: Some(15), .. }), "{third:?}");
        assert_eq!(room.waiting(), 8);
    }

    #[test]
    fn nobody_waits_behind_more_than_it_has_time_for() {
        let (mut room, _places) = flooded(20, 100);
        let mut hasty = |row, ahead_max| room.arrive(Class::Start, row, 1, ahead_max, || 99);
        assert_eq!(hasty(HOT, 11), Arrival::Full, "12 of its own wait");
        assert!(waits(&hasty(HOT, 12)));
        // The reserve takes two calls of the cold row; then rows take turns: the 13 of the flood are not all before it.
        place(hasty(COLD, 0));
        place(hasty(COLD, 0));
        assert_eq!(hasty(COLD, 0), Arrival::Full);
        assert!(waits(&hasty(COLD, 1)));
        assert_eq!(hasty(COLD, 3), Arrival::Full);
        assert!(waits(&hasty(COLD, 4)));
    }

    #[test]
    fn finishing_does_not_count_what_comes_after_it() {
        let (mut room, _places) = flooded(1_000, 10_000);
        // One more than the limit gets in; then two wait behind each other, whatever of the other classes waits.
        place(arrive(&mut room, Class::Finish, HOT, 1_000));
        for ahead in 0..3 {
            let mut finish = |ahead_max| room.arrive(Class::Finish, HOT, 1, ahead_max, || 1_001);
            assert!(ahead == 0 || finish(ahead - 1) == Arrival::Full, "{ahead}");
            assert!(waits(&finish(ahead)), "{ahead}");
        }
    }

    #[test]
    fn heavy_calls_count_by_their_weight() {
        let (mut room, _places) = flooded(8, 10_000);
        for name in 0..10 {
            assert!(waits(&room.arrive(Class::Start, HOT, 100, usize::MAX, || name)));
        }
        place(arrive(&mut room, Class::Start, COLD, 1));
        place(arrive(&mut room, Class::Start, COLD, 2));
        // The first of the cold row has the turn after one heavy call, which weighs as much as the limit.
        assert_eq!(room.arrive(Class::Start, COLD, 1, 7, || 3), Arrival::Full);
        assert!(waits(&room.arrive(Class::Start, COLD, 1, 8, || 3)));
    }

    #[test]
    fn a_second_crowd_is_no_light_neighbour() {
        let (mut room, places) = flooded(1_000, 10_000);
        for name in 0..200 {
            assert!(!matches!(arrive(&mut room, Class::Start, COLD, name), Arrival::Full));
        }
        let cold = arrive_until_in(&mut room, places);
        assert_ne!(room.leave(cold), Heft::Light);
    }

    /// Ends calls until one of the cold row is under way.
    fn arrive_until_in(room: &mut Room<u32>, places: Vec<Place>) -> Place {
        for place in places {
            room.leave(place);
            while let Some((place, _)) = room.next() {
                if place.row == COLD {
                    return place;
                }
            }
        }
        panic!("the cold row has no turn")
    }

    #[test]
    fn who_waits_can_be_sent_away_together() {
        let (mut room, places) = flooded(12, 100);
        assert!(waits(&arrive(&mut room, Class::Browse, HOT, 50)));
        assert_eq!(room.drain(), [8, 9, 10, 11, 50]);
        assert_eq!((room.under_way(), room.waiting()), (8, 0));
        for place in places {
            room.leave(place);
        }
        assert!(room.next().is_none());
        assert!(room.rows.is_empty());
    }

    #[test]
    fn the_bound_on_calls_holds_for_all_classes() {
        let (mut room, _places) = flooded(16, 16);
        assert_eq!(arrive(&mut room, Class::Browse, HOT, 1), Arrival::Full);
        place(arrive(&mut room, Class::Finish, HOT, 1));
        assert!(waits(&arrive(&mut room, Class::Finish, HOT, 2)), "finishing may go an eighth above");
        assert_eq!(arrive(&mut room, Class::Finish, HOT, 3), Arrival::Full);
        let mut alone = Room::new(1, 1);
        place(arrive(&mut alone, Class::Start, HOT, 1));
        assert_eq!(arrive(&mut alone, Class::Start, COLD, 2), Arrival::Full);
    }

    #[test]
    fn a_heavy_call_is_not_overtaken_and_gets_in_alone() {
        let mut room = Room::new(8, 100);
        let light = place(arrive(&mut room, Class::Start, HOT, 1));
        assert!(
            waits(&room.arrive(Class::Start, HOT, 1000, usize::MAX, || 2)),
            "heavier than the limit: alone only"
        );
        assert!(waits(&arrive(&mut room, Class::Start, HOT, 3)), "nobody goes past");
        room.leave(light);
        let (heavy, name) = room.next().unwrap();
        assert_eq!((heavy.weight, name), (8, 2));
        assert!(room.next().is_none());
        room.leave(heavy);
        assert_eq!(room.next().unwrap().1, 3);
    }

    #[test]
    fn who_gives_up_leaves_nothing_behind() {
        let (mut room, mut places) = flooded(8, 100);
        let Arrival::Waits { ticket, .. } = arrive(&mut room, Class::Start, HOT, 9) else {
            panic!("must wait")
        };
        assert!(waits(&arrive(&mut room, Class::Start, HOT, 10)));
        assert_eq!(room.withdraw(ticket), Some(9));
        assert_eq!(room.withdraw(ticket), None, "twice is once");
        room.leave(places.pop().unwrap());
        assert_eq!(room.next().unwrap().1, 10);
        assert_eq!(room.withdraw(ticket), None);
        assert_eq!(room.waiting(), 0);
    }

    /// Any order of events keeps the bounds, and an empty room remembers no row.
    #[test]
    fn the_books_are_right_after_any_history() {
        let mut room: Room<u32> = Room::new(8, 40);
        let (mut places, mut tickets) = (Vec::new(), Vec::new());
        // A fixed generator: the test must not depend on luck.
        let mut seed = 42u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for name in 0..20_000u32 {
            let class = Class::ALL[random(3) as usize];
            match random(5) {
                0..=1 => {
                    match room.arrive(class, random(6), 1 + random(3) as usize, random(40) as usize, || name)
                    {
                        Arrival::In(place) => places.push(place),
                        Arrival::Waits { ticket, .. } => tickets.push(ticket),
                        Arrival::Full => {}
                    }
                }
                2 if !places.is_empty() => {
                    room.leave(places.swap_remove(random(places.len() as u64) as usize));
                }
                3 if !tickets.is_empty() => {
                    room.withdraw(tickets.swap_remove(random(tickets.len() as u64) as usize));
                }
                _ => room.set_limit(1 + random(12) as usize),
            }
            while let Some((place, _)) = room.next() {
                places.push(place);
            }
            let weight: usize = places.iter().map(|place| place.weight).sum();
            assert_eq!(room.under_way(), weight);
            assert!(room.rows.len() <= places.len() + tickets.len());
        }
        for place in places {
            room.leave(place);
        }
        while let Some((place, _)) = room.next() {
            room.leave(place);
        }
        assert_eq!((room.under_way(), room.waiting(), room.rows.len()), (0, 0, 0));
        assert!(room.queues.iter().all(|queue| queue.rows.is_empty() && queue.turns.is_empty()));
    }
}
