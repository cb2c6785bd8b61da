//! The books of a room: bounds, turns, who is refused and who is pushed out.
#![allow(clippy::unwrap_used)]

use super::*;

const HOT: RowKey = 1;
const COLD: RowKey = 2;

fn arrive(room: &mut Room<u32>, priority: Priority, row: RowKey, name: u32) -> Arrival<u32> {
    room.arrive(priority, row, 1, usize::MAX, || name)
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
        match arrive(&mut room, Priority::Start, HOT, name) {
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
    let first = place(arrive(&mut room, Priority::Browse, COLD, 100));
    let second = place(arrive(&mut room, Priority::Start, COLD, 101));
    assert!(
        waits(&arrive(&mut room, Priority::Start, COLD, 102)),
        "beyond its part of the reserve it queues"
    );
    assert_eq!(room.under_way(), 10);
    room.leave(first);
    room.leave(second);
    assert!(room.next().is_none(), "what used the reserve frees no place for the flood");
}

#[test]
fn rows_take_turns_whatever_their_queues() {
    let (mut room, mut places) = flooded(50, 100);
    // A third row takes the reserve, so that the cold row has to queue.
    while let Arrival::In(_) = arrive(&mut room, Priority::Start, 3, 300) {}
    while let Arrival::In(_) = arrive(&mut room, Priority::Start, 4, 400) {}
    for name in 100..103 {
        assert!(!matches!(arrive(&mut room, Priority::Start, COLD, name), Arrival::Full));
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
    assert!(waits(&arrive(&mut room, Priority::Browse, HOT, 200)));
    let finish = arrive(&mut room, Priority::Finish, HOT, 300);
    assert!(matches!(finish, Arrival::In(_)), "finishing may go an eighth above the limit: {finish:?}");
    assert!(waits(&arrive(&mut room, Priority::Finish, HOT, 301)));
    room.leave(places.pop().unwrap());
    assert_eq!(room.next().map(|(_, name)| name), Some(301));
}

#[test]
fn a_full_room_pushes_out_the_heaviest_row_and_refuses_it() {
    let (mut room, _places) = flooded(16, 16);
    assert_eq!(arrive(&mut room, Priority::Start, HOT, 99), Arrival::Full, "the flood itself is refused");
    // The reserve takes two calls of the cold row; the third one waits at the expense of the flood.
    place(arrive(&mut room, Priority::Start, COLD, 100));
    place(arrive(&mut room, Priority::Start, COLD, 101));
    let third = arrive(&mut room, Priority::Start, COLD, 102);
    assert!(matches!(third, Arrival::Waits { pushed_out: Some(15), .. }), "{third:?}");
    assert_eq!(room.waiting(), 8);
}

#[test]
fn nobody_waits_behind_more_than_it_has_time_for() {
    let (mut room, _places) = flooded(20, 100);
    let mut hasty = |row, ahead_max| room.arrive(Priority::Start, row, 1, ahead_max, || 99);
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
    // One more than the limit gets in; then two wait behind each other, whatever of the other priorities waits.
    place(arrive(&mut room, Priority::Finish, HOT, 1_000));
    for ahead in 0..3 {
        let mut finish = |ahead_max| room.arrive(Priority::Finish, HOT, 1, ahead_max, || 1_001);
        assert!(ahead == 0 || finish(ahead - 1) == Arrival::Full, "{ahead}");
        assert!(waits(&finish(ahead)), "{ahead}");
    }
}

#[test]
fn heavy_calls_count_by_their_weight() {
    let (mut room, _places) = flooded(8, 10_000);
    for name in 0..10 {
        assert!(waits(&room.arrive(Priority::Start, HOT, 100, usize::MAX, || name)));
    }
    place(arrive(&mut room, Priority::Start, COLD, 1));
    place(arrive(&mut room, Priority::Start, COLD, 2));
    // The first of the cold row has the turn after one heavy call, which weighs as much as the limit.
    assert_eq!(room.arrive(Priority::Start, COLD, 1, 7, || 3), Arrival::Full);
    assert!(waits(&room.arrive(Priority::Start, COLD, 1, 8, || 3)));
}

#[test]
fn who_waits_can_be_sent_away_together() {
    let (mut room, places) = flooded(12, 100);
    assert!(waits(&arrive(&mut room, Priority::Browse, HOT, 50)));
    assert_eq!(room.drain(), [8, 9, 10, 11, 50]);
    assert_eq!((room.under_way(), room.waiting()), (8, 0));
    for place in places {
        room.leave(place);
    }
    assert!(room.next().is_none());
    assert!(room.rows.is_empty());
}

#[test]
fn the_bound_on_calls_holds_for_all_priorities() {
    let (mut room, _places) = flooded(16, 16);
    assert_eq!(arrive(&mut room, Priority::Browse, HOT, 1), Arrival::Full);
    place(arrive(&mut room, Priority::Finish, HOT, 1));
    assert!(waits(&arrive(&mut room, Priority::Finish, HOT, 2)), "finishing may go an eighth above");
    assert_eq!(arrive(&mut room, Priority::Finish, HOT, 3), Arrival::Full);
    let mut alone = Room::new(1, 1);
    place(arrive(&mut alone, Priority::Start, HOT, 1));
    assert_eq!(arrive(&mut alone, Priority::Start, COLD, 2), Arrival::Full);
}

#[test]
fn a_heavy_call_is_not_overtaken_and_gets_in_alone() {
    let mut room = Room::new(8, 100);
    let light = place(arrive(&mut room, Priority::Start, HOT, 1));
    assert!(
        waits(&room.arrive(Priority::Start, HOT, 1000, usize::MAX, || 2)),
        "heavier than the limit: alone only"
    );
    assert!(waits(&arrive(&mut room, Priority::Start, HOT, 3)), "nobody goes past");
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
    let Arrival::Waits { queued, .. } = arrive(&mut room, Priority::Start, HOT, 9) else {
        panic!("must wait")
    };
    assert!(waits(&arrive(&mut room, Priority::Start, HOT, 10)));
    assert_eq!(room.withdraw(queued), Some(9));
    assert_eq!(room.withdraw(queued), None, "twice is once");
    room.leave(places.pop().unwrap());
    assert_eq!(room.next().unwrap().1, 10);
    assert_eq!(room.withdraw(queued), None);
    assert_eq!(room.waiting(), 0);
}

/// Any order of events keeps the bounds, and an empty room remembers no row.
#[test]
fn the_books_are_right_after_any_history() {
    let mut room: Room<u32> = Room::new(8, 40);
    let (mut places, mut waiting) = (Vec::new(), Vec::new());
    // A fixed generator: the test must not depend on luck.
    let mut seed = 42u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for name in 0..20_000u32 {
        let priority = Priority::ALL[random(3) as usize];
        match random(5) {
            0..=1 => {
                match room.arrive(priority, random(6), 1 + random(3) as usize, random(40) as usize, || name) {
                    Arrival::In(place) => places.push(place),
                    Arrival::Waits { queued, .. } => waiting.push(queued),
                    Arrival::Full => {}
                }
            }
            2 if !places.is_empty() => {
                room.leave(places.swap_remove(random(places.len() as u64) as usize));
            }
            3 if !waiting.is_empty() => {
                room.withdraw(waiting.swap_remove(random(waiting.len() as u64) as usize));
            }
            _ => room.set_limit(1 + random(12) as usize),
        }
        while let Some((place, _)) = room.next() {
            places.push(place);
        }
        let weight: usize = places.iter().map(|place| place.weight).sum();
        assert_eq!(room.under_way(), weight);
        assert!(room.rows.len() <= places.len() + waiting.len());
    }
    for place in places {
        room.leave(place);
    }
    while let Some((place, _)) = room.next() {
        room.leave(place);
    }
    assert_eq!((room.under_way(), room.waiting(), room.rows.len()), (0, 0, 0));
    assert!(room.queues.iter().all(|queue| queue.is_empty() && queue.rows() == 0));
}
