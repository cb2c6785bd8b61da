//! Hand-made histories: good ones that must pass, and each kind of bad one that must not.
#![allow(clippy::unwrap_used)]

use crate::history::{
    Ask, Call, Cut, End, FORGOTTEN, Final, Freshness, History, Read, Receipt, SEALED, Said, Saw, TicketSeen,
    TierSeen, Told,
};
use crate::oracle::judge;

const T0: u64 = 1_000_000;

/// Builds a history of one group with one event, as a correct group would make it.
struct Story {
    history: History,
    index: u64,
    now_us: u64,
}

fn receipt(index: u64) -> Receipt {
    Receipt { index, position: 0, incarnation: 1, term: 1, chain: 1_000 + index, decided_ms: T0 + index }
}

fn sold(first: u64, count: u32) -> Said {
    Said::Sold { tier: "ga".into(), first, count, seats: vec![] }
}

fn buy(quantity: u32) -> Ask {
    Ask::Buy { event: "gala".into(), tier: "ga".into(), quantity, seats: vec![] }
}

fn hold(ttl_ms: u32) -> Ask {
    Ask::Hold { event: "gala".into(), tier: "ga".into(), quantity: 1, ttl_ms }
}

fn rejected(reason: &str) -> Said {
    Said::Rejected(reason.into())
}

impl Story {
    /// An event with `capacity` places and a quota of 3.
    fn new(capacity: u64) -> Self {
        let history = History { began_ms: T0, ..History::default() };
        let mut story = Self { history, index: 0, now_us: 0 };
        let tiers = vec![("ga".into(), capacity, false), ("seat".into(), 5, true)];
        story.decides("organiser", Ask::Create { event: "gala".into(), quota: 3, tiers }, Said::Created);
        story
    }

    /// A request that is asked, decided and told, after everything before it.
    fn decides(&mut self, who: &str, ask: Ask, said: Said) -> usize {
        self.index += 1;
        let told = Told { receipt: Some(receipt(self.index)), said };
        self.calls(who, ask, End::Told(told))
    }

    fn calls(&mut self, who: &str, ask: Ask, end: End) -> usize {
        let id = self.history.calls.len() as u128;
        self.now_us += 20;
        let call = Call {
            group: 1,
            principal: who.into(),
            request_id: id,
            ask,
            invoked_us: self.now_us - 15,
            expires_ms: T0 + 1_000,
            returned: Some((self.now_us - 5, end.clone())),
        };
        let remembered = match end {
            End::Told(told) if told.receipt.is_some() => Some(told),
            _ => None,
        };
        self.history.at_end.outcomes.insert((1, (who.into(), id)), remembered);
        self.history.calls.push(call);
        self.history.calls.len() - 1
    }

    /// The same request once more, with another end.
    fn repeats(&mut self, at: usize, end: End) {
        self.now_us += 20;
        let mut call = self.history.calls[at].clone();
        (call.invoked_us, call.returned) = (self.now_us - 15, Some((self.now_us - 5, end)));
        self.history.calls.push(call);
    }

    fn reads(&mut self, saw: Saw) {
        self.reads_as(Freshness::Latest, None, saw);
    }

    fn reads_as(&mut self, freshness: Freshness, session: Option<u64>, saw: Saw) {
        self.now_us += 20;
        let (invoked_us, returned_us) = (self.now_us - 15, self.now_us - 5);
        self.history.reads.push(Read { group: 1, invoked_us, returned_us, freshness, session, saw });
    }

    fn told(&mut self, at: usize) -> &mut Told {
        match &mut self.history.calls[at].returned {
            Some((_, End::Told(told))) => told,
            _ => panic!("call {at} was not told anything"),
        }
    }

    /// What is remembered of a request at the end.
    fn remembers(&mut self, at: usize, told: Option<Told>) {
        let call = &self.history.calls[at];
        self.history.at_end.outcomes.insert((1, (call.principal.clone(), call.request_id)), told);
    }

    /// Ends as (sold, held) of the tier without seats, with these tickets.
    fn ends(mut self, capacity: u64, held: u64, tickets: &[(&str, bool)]) -> History {
        let Final { events, tickets: all, .. } = &mut self.history.at_end;
        let sold = tickets.iter().filter(|(_, cancelled)| !cancelled).count() as u64;
        events.insert((1, "gala".into()), tiers(capacity, held, sold));
        let ticket = |(at, (owner, cancelled)): (usize, &(&str, bool))| TicketSeen {
            ticket: format!("ga-{}", at + 1),
            owner: (*owner).into(),
            seat: String::new(),
            cancelled: *cancelled,
        };
        all.insert((1, "gala".into()), tickets.iter().enumerate().map(ticket).collect());
        self.history
    }
}

fn tiers(capacity: u64, held: u64, sold: u64) -> Vec<TierSeen> {
    let seen = |tier: &str, capacity, held, sold| TierSeen {
        tier: tier.into(),
        capacity,
        free: capacity - held - sold,
        held,
        sold,
    };
    vec![seen("ga", capacity, held, sold), seen("seat", 5, 0, 0)]
}

fn event(capacity: u64, held: u64, sold: u64) -> Saw {
    Saw::Event { event: "gala".into(), tiers: tiers(capacity, held, sold) }
}

/// The checks that object, each once.
fn checks(history: &History) -> Vec<&'static str> {
    let mut checks: Vec<_> = judge(history).into_iter().map(|violation| violation.check).collect();
    checks.sort_unstable();
    checks.dedup();
    checks
}

/// Two purchases of the only two places, and everything around them.
fn good() -> Story {
    let mut story = Story::new(2);
    story.decides("ann", buy(1), sold(1, 1));
    story.reads(event(2, 0, 1));
    story.decides("bob", buy(1), sold(2, 1));
    story.decides("cleo", buy(1), rejected("SOLD_OUT"));
    story.calls("dan", buy(1), End::Told(Told { receipt: None, said: rejected("SOLD_OUT") }));
    story
}

#[test]
fn a_correct_history_passes() {
    let mut story = good();
    story.decides("ann", Ask::Cancel { event: "gala".into(), ticket: "ga-1".into() }, Said::Cancelled);
    let said = Said::Held { hold: "ga-h1".into(), quantity: 1, seats: vec![], expires_ms: T0 + 6 + 50 };
    story.decides("eve", hold(50), said);
    story.decides("eve", Ask::Confirm { event: "gala".into(), hold: "ga-h1".into() }, sold(3, 1));
    story.calls("fay", buy(1), End::Unknown);
    story.calls("gil", buy(1), End::NotDecided);
    assert_eq!(judge(&story.ends(2, 0, &[("ann", true), ("bob", false), ("eve", false)])), vec![]);
}

#[test]
fn selling_more_than_there_is_is_found() {
    let mut story = good();
    story.decides("eve", buy(1), sold(3, 1));
    let history = story.ends(3, 0, &[("ann", false), ("bob", false), ("eve", false)]);
    assert!(checks(&history).contains(&"oversold"));
}

#[test]
fn a_seat_given_to_two_is_found() {
    let mut story = Story::new(2);
    let seat = || Ask::Buy { event: "gala".into(), tier: "seat".into(), quantity: 1, seats: vec![] };
    let said = |first| Said::Sold { tier: "seat".into(), first, count: 1, seats: vec!["A-1".into()] };
    story.decides("ann", seat(), said(1));
    story.decides("bob", seat(), said(2));
    assert!(checks(&story.ends(2, 0, &[])).contains(&"sold-twice"));
}

#[test]
fn a_lost_acknowledgement_is_found() {
    let mut story = good();
    story.remembers(2, None);
    assert!(checks(&story.ends(2, 0, &[("ann", false), ("bob", false)])).contains(&"acknowledged-lost"));
    // Remembered, and yet the ticket is gone.
    assert!(checks(&good().ends(2, 0, &[("ann", false)])).contains(&"acknowledged-lost"));
}

#[test]
fn two_outcomes_of_one_request_are_found() {
    let mut story = good();
    let again = Call {
        returned: Some((story.now_us + 10, End::Told(Told { receipt: Some(receipt(9)), said: sold(3, 1) }))),
        invoked_us: story.now_us + 1,
        ..story.history.calls[1].clone()
    };
    story.history.calls.push(again);
    assert!(checks(&story.ends(2, 0, &[("ann", false), ("bob", false)])).contains(&"one-outcome"));
}

#[test]
fn an_id_is_sealed_only_by_who_asked_for_it_and_for_ever() {
    let story = |seals: bool, end: Option<Said>| {
        let mut story = Story::new(2);
        let at = story.calls("ann", buy(1), End::Unknown);
        let sealed = Told { receipt: Some(receipt(2)), said: rejected(SEALED) };
        if seals {
            story.repeats(at, End::Told(sealed.clone()));
            story.history.calls.last_mut().unwrap().ask = Ask::Seal;
        }
        let said = end.map(|said| Told { receipt: Some(receipt(3)), said });
        let sold = usize::from(said.is_some());
        story.remembers(at, Some(said.unwrap_or(sealed)));
        checks(&story.ends(2, 0, &[("ann", false)][..sold]))
    };
    assert_eq!(story(true, None), [""; 0]);
    assert_eq!(story(false, None), ["sealed"]);
    // A copy that was still on its way was decided behind the seal.
    assert!(story(true, Some(sold(1, 1))).contains(&"one-outcome"));
    assert_eq!(story(false, Some(sold(1, 1))), [""; 0]);
}

#[test]
fn a_refusal_that_was_carried_out_is_found() {
    let mut story = Story::new(2);
    let at = story.calls("ann", buy(1), End::NotDecided);
    story.remembers(at, Some(Told { receipt: Some(receipt(2)), said: sold(1, 1) }));
    assert_eq!(checks(&story.ends(2, 0, &[("ann", false)])), ["refused-and-done"]);
}

#[test]
fn who_was_refused_may_have_bought_with_another_attempt_in_time() {
    let found = |expires_ms: u64| {
        let mut story = Story::new(2);
        let at = story.calls("ann", buy(1), End::Unknown);
        story.history.calls[at].expires_ms = expires_ms;
        story.repeats(at, End::NotDecided);
        story.remembers(at, Some(Told { receipt: Some(receipt(2)), said: sold(1, 1) }));
        checks(&story.ends(2, 0, &[("ann", false)]))
    };
    assert_eq!(found(T0 + 2), [""; 0]);
    assert_eq!(found(T0 + 1), ["refused-and-done"]);
}

#[test]
fn a_refusal_that_nobody_decided_is_found() {
    let mut story = Story::new(2);
    story.calls("ann", buy(1), End::Told(Told { receipt: None, said: rejected("QUOTA_EXCEEDED") }));
    assert_eq!(checks(&story.ends(2, 0, &[])), ["receipt"]);
}

#[test]
fn an_order_that_contradicts_time_is_found() {
    let mut story = Story::new(2);
    let (first, second) =
        (story.decides("ann", buy(1), sold(2, 1)), story.decides("bob", buy(1), sold(1, 1)));
    // Decided in the other order, though the one had ended before the other began.
    for (at, index) in [(first, 3), (second, 2)] {
        story.told(at).receipt = Some(receipt(index));
        let told = story.told(at).clone();
        story.remembers(at, Some(told));
    }
    assert_eq!(checks(&story.ends(2, 0, &[("bob", false), ("ann", false)])), ["real-time"]);
}

#[test]
fn tickets_out_of_order_are_found() {
    let mut story = Story::new(5);
    story.decides("ann", buy(1), sold(2, 1));
    story.decides("bob", buy(1), sold(1, 1));
    assert!(checks(&story.ends(5, 0, &[("bob", false), ("ann", false)])).contains(&"fifo"));
}

#[test]
fn stale_and_future_reads_are_found() {
    for (saw, when) in [(event(2, 0, 0), "stale"), (event(2, 0, 2), "too new")] {
        let mut story = Story::new(2);
        story.decides("ann", buy(1), sold(1, 1));
        story.reads(saw);
        story.decides("bob", buy(1), sold(2, 1));
        assert_eq!(checks(&story.ends(2, 0, &[("ann", false), ("bob", false)])), ["stale-read"], "{when}");
    }
    // Each fits alone, but the second reader saw less than the first, who had ended before.
    let mut story = Story::new(2);
    let at = story.decides("ann", buy(1), sold(1, 1));
    story.reads(event(2, 0, 1));
    story.reads(event(2, 0, 0));
    let after = story.now_us + 100;
    story.history.calls[at].returned.as_mut().unwrap().0 = after;
    assert_eq!(checks(&story.ends(2, 0, &[("ann", false)])), ["stale-read"]);
}

#[test]
fn what_may_be_old_is_not_older_and_nobody_is_shown_less_than_before() {
    // Decided 20 µs before it was read, give or take.
    let read = |reads: &[(Freshness, u64, u64)]| {
        let mut story = Story::new(2);
        story.decides("ann", buy(1), sold(1, 1));
        for (freshness, session, sold) in reads {
            story.reads_as(*freshness, Some(*session), event(2, 0, *sold));
        }
        checks(&story.ends(2, 0, &[("ann", false)]))
    };
    let session = |age_us| Freshness::Session { age_us };
    let stale = |age_us| Freshness::Stale { age_us };
    assert_eq!(read(&[(stale(100), 1, 0)]), [""; 0]);
    assert_eq!(read(&[(stale(1), 1, 0)]), ["stale-read"]);
    assert_eq!(read(&[(stale(100), 1, 2)]), ["stale-read"], "nobody has decided that");
    assert_eq!(read(&[(stale(100), 1, 1), (stale(100), 1, 0)]), [""; 0]);
    assert_eq!(read(&[(session(100), 1, 0), (session(100), 1, 1)]), [""; 0]);
    assert_eq!(read(&[(session(100), 1, 1), (session(100), 2, 0)]), [""; 0]);
    assert_eq!(read(&[(session(100), 1, 1), (session(100), 1, 0)]), ["stale-read"]);
    assert_eq!(read(&[(stale(100), 1, 1), (session(100), 1, 0)]), ["stale-read"], "it was seen, however");
    assert_eq!(read(&[(session(1), 1, 0)]), ["stale-read"]);
    assert_eq!(read(&[(stale(100), 1, 1), (Freshness::Latest, 2, 0)]), ["stale-read"]);
}

#[test]
fn an_outcome_that_a_reader_misses_or_invents_is_found() {
    let key = |story: &Story, at: usize| {
        let call = &story.history.calls[at];
        (call.principal.clone(), call.request_id)
    };
    let mut story = Story::new(2);
    let at = story.decides("ann", buy(1), sold(1, 1));
    let seen = key(&story, at);
    story.reads(Saw::Outcome { key: seen.clone(), told: None });
    assert_eq!(checks(&story.ends(2, 0, &[("ann", false)])), ["stale-read"]);

    let mut story = Story::new(2);
    let at = story.decides("ann", buy(1), sold(1, 1));
    let invented = Told { receipt: Some(receipt(2)), said: sold(1, 2) };
    let seen = key(&story, at);
    story.reads(Saw::Outcome { key: seen, told: Some(invented) });
    assert_eq!(checks(&story.ends(2, 0, &[("ann", false)])), ["stale-read"]);
}

#[test]
fn a_sale_refused_without_reason_is_found() {
    let mut story = Story::new(2);
    story.decides("ann", buy(1), rejected("SOLD_OUT"));
    assert_eq!(checks(&story.ends(2, 0, &[])), ["lost-sale"]);
    let mut story = Story::new(2);
    story.calls("ann", buy(1), End::Told(Told { receipt: None, said: rejected("SOLD_OUT") }));
    story.decides("bob", buy(2), sold(1, 2));
    let history = story.ends(2, 0, &[("bob", false), ("bob", false)]);
    assert_eq!(checks(&history), ["lost-sale"], "sold out only afterwards");
}

#[test]
fn a_late_confirmation_is_found() {
    let mut story = Story::new(2);
    let said = Said::Held { hold: "ga-h1".into(), quantity: 1, seats: vec![], expires_ms: T0 + 2 + 1 };
    story.decides("eve", hold(1), said);
    story.decides("eve", Ask::Confirm { event: "gala".into(), hold: "ga-h1".into() }, sold(1, 1));
    assert!(checks(&story.ends(2, 0, &[("eve", false)])).contains(&"expiry"));
}

/// Once a hold was due and somebody could know it, it must not be shown; before that, it must.
#[test]
fn a_hold_that_is_shown_when_it_is_due_or_not_shown_before_is_found() {
    let reads = |held: u64, later_us: u64| {
        let mut story = Story::new(2);
        let said =
            Said::Held { hold: "ga-h1".into(), quantity: 1, seats: vec![], expires_ms: T0 + 2 + 5_000 };
        story.decides("eve", hold(5_000), said);
        story.now_us += later_us;
        story.reads(event(2, held, 0));
        checks(&story.ends(2, held.min(1), &[]))
    };
    assert_eq!(reads(1, 0), [""; 0]);
    assert_eq!(reads(0, 0), ["stale-read"], "it is not due for seconds");
    assert_eq!(reads(0, 5_000_000), [""; 0]);
    assert_eq!(reads(2, 0), ["stale-read"], "more than there are");
}

/// Log time goes back where it was corrected, and nowhere else; what lasts is not cut short by it.
#[test]
fn log_time_goes_back_where_it_was_corrected_and_nowhere_else() {
    let story = || {
        let mut story = Story::new(2);
        let said = Said::Held { hold: "ga-h1".into(), quantity: 1, seats: vec![], expires_ms: T0 + 2 + 50 };
        story.decides("eve", hold(50), said);
        let confirm = Ask::Confirm { event: "gala".into(), hold: "ga-h1".into() };
        let at = story.decides("eve", confirm, sold(1, 1));
        // An hour before, as the clock on the wall has it.
        story.told(at).receipt.as_mut().unwrap().decided_ms = 3;
        let told = story.told(at).clone();
        story.remembers(at, Some(told));
        story.ends(2, 0, &[("eve", false)])
    };
    assert!(checks(&story()).contains(&"receipt"));
    let mut corrected = story();
    corrected.rebases.entry(1).or_default().insert(2, -(T0 as i64));
    assert_eq!(checks(&corrected), [""; 0]);
    // Corrected so that the hold was over by steady time: it was confirmed too late.
    let mut late = story();
    late.rebases.entry(1).or_default().insert(2, -(T0 as i64) - 60);
    assert!(checks(&late).contains(&"expiry"));
}

#[test]
fn log_time_of_the_future_is_found() {
    let of = |ahead_ms: u64| {
        let mut story = Story::new(2);
        let at = story.decides("ann", buy(1), sold(1, 1));
        story.told(at).receipt.as_mut().unwrap().decided_ms = T0 + ahead_ms;
        let told = story.told(at).clone();
        story.remembers(at, Some(told));
        checks(&story.ends(2, 0, &[("ann", false)]))
    };
    assert_eq!(of(5_000), [""; 0]);
    assert_eq!(of(600_000), ["log-time", "steady-time"], "ten minutes");
    // Log time was corrected, and holds end ten minutes early all the same.
    let mut story = Story::new(2);
    story.decides("ann", buy(1), sold(1, 1));
    story.history.rebases.entry(1).or_default().insert(1, -600_000);
    assert_eq!(checks(&story.ends(2, 0, &[("ann", false)])), ["steady-time"]);
}

#[test]
fn more_than_the_quota_is_found() {
    let mut story = Story::new(9);
    story.decides("ann", buy(3), sold(1, 3));
    story.decides("ann", buy(1), sold(4, 1));
    assert!(checks(&story.ends(9, 0, &[("ann", false); 4])).contains(&"quota"));
}

#[test]
fn receipts_of_another_log_are_found() {
    let changes: [fn(&mut Receipt); 4] = [
        |receipt| receipt.index = 2,
        |receipt| (receipt.index, receipt.position, receipt.chain) = (2, 1, 7),
        |receipt| receipt.term = 0,
        |receipt| receipt.decided_ms = 1,
    ];
    for change in changes {
        let mut story = Story::new(2);
        story.decides("ann", buy(1), sold(1, 1));
        let at = story.decides("bob", buy(1), sold(2, 1));
        change(story.told(at).receipt.as_mut().unwrap());
        let told = story.told(at).clone();
        story.remembers(at, Some(told));
        let history = story.ends(2, 0, &[("ann", false), ("bob", false)]);
        assert!(checks(&history).contains(&"receipt"));
    }
}

#[test]
fn a_success_without_a_receipt_is_found() {
    let mut story = Story::new(2);
    story.calls("ann", buy(1), End::Told(Told { receipt: None, said: sold(1, 1) }));
    assert_eq!(checks(&story.ends(2, 0, &[])), ["receipt"]);
}

#[test]
fn numbers_that_do_not_add_up_are_found() {
    let mut history = good().ends(2, 0, &[("ann", false), ("bob", false)]);
    history.at_end.events.get_mut(&(1, "gala".to_owned())).unwrap()[0].free = 1;
    assert_eq!(checks(&history), ["conservation"]);
}

#[test]
fn a_request_that_nobody_asked_for_at_the_end_is_found() {
    let mut history = good().ends(2, 0, &[("ann", false), ("bob", false)]);
    history.at_end.outcomes.pop_first();
    assert_eq!(checks(&history), ["oracle"]);
}

#[test]
fn a_quick_no_is_no_answer_to_a_batch() {
    let sale = || Ask::Sell { event: "gala".into(), tier: "ga".into(), quantity: 1, buyer: "eve".into() };
    let mut story = good();
    story.decides("box-office", sale(), rejected("SOLD_OUT"));
    assert_eq!(checks(&story.ends(2, 0, &[("ann", false), ("bob", false)])), [""; 0]);
    let mut story = good();
    story.calls("box-office", sale(), End::Told(Told { receipt: None, said: rejected("SOLD_OUT") }));
    assert_eq!(checks(&story.ends(2, 0, &[("ann", false), ("bob", false)])), ["receipt"]);
    // Who owns the tickets is the buyer, whose quota counts.
    let mut story = Story::new(9);
    for first in 1..=4 {
        story.decides("box-office", sale(), sold(first, 1));
    }
    assert!(checks(&story.ends(9, 0, &[("eve", false); 4])).contains(&"quota"));
}

/// Bob's purchase was decided, told and seen, and the group went back to the entry before it; dan asks once more. With the
/// check of that history.
fn gone_back(cut: Option<Cut>) -> Vec<&'static str> {
    let mut story = Story::new(2);
    story.decides("ann", buy(1), sold(1, 1));
    let lost = story.decides("bob", buy(1), sold(2, 1));
    story.reads(event(2, 0, 2));
    story.calls("dan", buy(1), End::Told(Told { receipt: None, said: rejected("SOLD_OUT") }));
    story.remembers(lost, None);
    // Dan's call is still under way.
    let seen_until_us = story.now_us - 10;
    let cut = cut.map(|cut| Cut { seen_until_us, ..cut });
    let forgets = cut.as_ref().is_some_and(|cut| cut.forgets_ids);
    let reason = if forgets { FORGOTTEN } else { "EXPIRED" };
    story.repeats(lost, End::Told(Told { receipt: None, said: rejected(reason) }));
    story.reads(event(2, 0, 1));
    story.history.cuts = cut.into_iter().map(|cut| (1, vec![cut])).collect();
    checks(&story.ends(2, 0, &[("ann", false)]))
}

#[test]
fn what_a_group_went_back_behind_is_lost_and_nothing_else() {
    let cut = |kept, forgets_ids| Cut { incarnation: 2, kept, seen_until_us: 0, forgets_ids, taken_us: 0 };
    assert_eq!(gone_back(Some(cut((1, 2), false))), [""; 0]);
    assert_eq!(gone_back(Some(cut((0, 9), true))), [""; 0], "of a term that the last one never knew");
    let stale = Cut { taken_us: 1_000, ..cut((1, 2), true) };
    assert!(gone_back(Some(stale)).contains(&"acknowledged-lost"), "the file was made after that was known");
    assert!(gone_back(None).contains(&"acknowledged-lost"));
    assert!(gone_back(Some(cut((1, 3), false))).contains(&"acknowledged-lost"), "it had that entry");
    let later = Cut { incarnation: 1, ..cut((1, 2), false) };
    assert!(gone_back(Some(later)).contains(&"acknowledged-lost"), "it was decided afterwards");
}

#[test]
fn ids_are_forgotten_over_imports_only_and_only_old_ones() {
    let mut story = Story::new(2);
    story.calls("ann", buy(1), End::Told(Told { receipt: None, said: rejected(FORGOTTEN) }));
    assert_eq!(checks(&story.ends(2, 0, &[])), ["receipt"]);
    let cut = Cut { incarnation: 2, kept: (9, 9), seen_until_us: 100, forgets_ids: true, taken_us: 0 };
    let with = |cut: Cut| {
        let mut history = History { began_ms: T0, ..History::default() };
        history.cuts.insert(1, vec![cut]);
        history
    };
    let of_the_past = with(cut.clone());
    assert!(of_the_past.may_be_forgotten(1, u128::from(T0) << 80) && !of_the_past.may_be_forgotten(2, 0));
    assert!(!of_the_past.may_be_forgotten(1, u128::from(T0 + 1) << 80), "made after the import");
    assert!(!with(Cut { forgets_ids: false, ..cut }).may_be_forgotten(1, 0));
}

#[test]
fn what_a_restore_has_undone_is_not_decided_again() {
    let again = |forgets_ids: bool| {
        let mut story = Story::new(2);
        let at = story.decides("ann", buy(1), sold(1, 1));
        let cut = Cut { incarnation: 2, kept: (9, 1), seen_until_us: story.now_us, forgets_ids, taken_us: 0 };
        story.history.cuts.insert(1, vec![cut]);
        let second = Receipt { incarnation: 2, ..receipt(5) };
        let told = Told { receipt: Some(second), said: sold(1_000_000_000_001, 1) };
        story.repeats(at, End::Told(told.clone()));
        story.remembers(at, Some(told));
        checks(&story.history)
    };
    assert!(again(true).contains(&"decided-again"));
    assert!(!again(false).contains(&"decided-again"), "after a recovery by force it may be");
}
