//! Judges a history: could a single machine that decides one command after the other have told the clients this?
//!
//! There is no search: receipts say in which order commands were decided, so the order is checked and then replayed. Reads
//! and quick refusals have no receipt: each must fit somewhere between what had ended before it began and what began
//! before it ended. **Never here:** mercy. What cannot be explained is a violation.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{
    Ask, Call, End, FORGOTTEN, Final, Freshness, History, Read, Receipt, RequestKey, SEALED, Said, Saw,
    TierSeen, Told,
};
use crate::model::{Model, Numbers, Time};

/// Refusals that need no decision: a quick no, and a deadline that had passed.
const WITHOUT_LOG: [&str; 2] = ["SOLD_OUT", "EXPIRED"];

/// Something that must not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The check that found it.
    pub check: &'static str,
    /// What happened.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.check, self.what)
    }
}

/// Log time leaps no further than this by a clock that no majority confirms, and that one may be off by half a second. ms.
const AHEAD_MS_MAX: u64 = 5_500;

/// Finds what must not have happened.
pub fn judge(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for (group, (principal, id)) in history.decided_again() {
        let what =
            format!("group {group}: {principal}/{id:032x} was decided before a restore, and again after it");
        found.push(Violation { check: "decided-again", what });
    }
    let history = &*history.since_cuts();
    let groups: BTreeSet<u32> = history.calls.iter().map(|call| call.group).collect();
    for group in groups {
        Judge::new(group, history, &mut found).judge();
    }
    found
}

/// All that is known of one request.
struct Request<'a> {
    key: RequestKey,
    calls: Vec<&'a Call>,
    /// With a receipt.
    decided: Option<Told>,
    first_invoked_us: u64,
    /// First time that a client knew the decision.
    known_us: Option<u64>,
}

/// What was true after some decisions.
#[derive(Default)]
struct Moment {
    tiers: BTreeMap<(String, String), Numbers>,
    /// Log time less steady time at the last of them, ms.
    offset_ms: i64,
}

/// How far a group's time may be ahead of the world: a clock that is followed is so by 2 s at most until it is found out. ms.
const CLOCKS_MS: u64 = 3_000;

struct Judge<'a> {
    group: u32,
    history: &'a History,
    requests: Vec<Request<'a>>,
    found: &'a mut Vec<Violation>,
}

impl<'a> Judge<'a> {
    fn new(group: u32, history: &'a History, found: &'a mut Vec<Violation>) -> Self {
        let mut by_key: BTreeMap<RequestKey, Request<'a>> = BTreeMap::new();
        for call in history.calls.iter().filter(|call| call.group == group) {
            let key = (call.principal.clone(), call.request_id);
            let request = by_key.entry(key.clone()).or_insert_with(|| Request {
                key,
                calls: Vec::new(),
                decided: None,
                first_invoked_us: call.invoked_us,
                known_us: None,
            });
            request.first_invoked_us = request.first_invoked_us.min(call.invoked_us);
            request.calls.push(call);
        }
        Self { group, history, requests: by_key.into_values().collect(), found }
    }

    fn object(&mut self, check: &'static str, what: impl Into<String>) {
        let what = format!("group {}: {}", self.group, what.into());
        self.found.push(Violation { check, what });
    }

    fn judge(mut self) {
        self.one_outcome_per_request();
        self.requests.sort_by_key(|request| {
            let receipt = request.decided.as_ref().and_then(|told| told.receipt);
            (receipt.is_none(), receipt, request.first_invoked_us)
        });
        let count = self.requests.iter().filter(|request| request.decided.is_some()).count();
        self.receipts_are_of_one_log(count);
        self.receipts_agree_with_time(count);
        self.log_time_is_not_ahead(count);
        let (model, moments) = self.replay(count);
        self.quick_refusals_were_true(count, &moments);
        self.reads_fit(count, &moments);
        self.the_end_is_what_was_decided(&model, &moments);
    }

    /// Gathers what is known of each request, and finds what contradicts itself.
    fn one_outcome_per_request(&mut self) {
        let mut objections = Vec::new();
        let mut object = |check, what: String| objections.push((check, what));
        for request in &mut self.requests {
            let id = format!("{}/{:032x}", request.key.0, request.key.1);
            let mut refused = false;
            // Until when an attempt may have been executed of which nobody knows.
            let mut doubted_until_ms = 0;
            for call in &request.calls {
                let Some((returned_us, end)) = &call.returned else {
                    doubted_until_ms = doubted_until_ms.max(call.expires_ms);
                    continue;
                };
                match end {
                    End::Told(told) if told.receipt.is_some() => {
                        match &request.decided {
                            None => request.decided = Some(told.clone()),
                            Some(first) if first == told => {}
                            Some(first) => object("one-outcome", format!("{id} got {first:?} and {told:?}")),
                        }
                        request.known_us =
                            Some(request.known_us.map_or(*returned_us, |at| at.min(*returned_us)));
                    }
                    End::Told(Told { said: Said::Rejected(reason), .. }) => {
                        refused = true;
                        // What a batch is told is final, so that the log has decided it.
                        let quick = reason == "SOLD_OUT" && matches!(call.ask, Ask::Sell { .. });
                        let forgotten =
                            reason == FORGOTTEN && self.history.may_be_forgotten(self.group, call.request_id);
                        if quick || !(forgotten || WITHOUT_LOG.contains(&reason.as_str())) {
                            object("receipt", format!("{id} was refused for {reason} without a receipt"));
                        }
                    }
                    End::NotDecided => refused = true,
                    End::Told(told) => {
                        object("receipt", format!("{id} was told {:?} without a receipt", told.said))
                    }
                    End::Unknown => doubted_until_ms = doubted_until_ms.max(call.expires_ms),
                }
            }
            match self.history.at_end.outcomes.get(&(self.group, request.key.clone())) {
                None => object("oracle", format!("{id} was not asked for at the end")),
                Some(None) => {
                    if let Some(told) = &request.decided {
                        object("acknowledged-lost", format!("{id} was told {told:?}, and nobody remembers"));
                    }
                }
                Some(Some(told)) => match &request.decided {
                    Some(first) if first == told => {}
                    Some(first) => {
                        object("one-outcome", format!("{id} was told {first:?}, remembered is {told:?}"))
                    }
                    None => {
                        let decided_ms = told.receipt.map_or(u64::MAX, |receipt| receipt.decided_ms);
                        // Another attempt, of which nobody knows, may have done it in time.
                        if refused && doubted_until_ms < decided_ms {
                            object("refused-and-done", format!("{id} was refused, and yet {told:?}"));
                        }
                        request.decided = Some(told.clone());
                    }
                },
            }
        }
        for (check, what) in objections {
            self.object(check, what);
        }
    }

    fn receipt(&self, at: usize) -> Receipt {
        let receipt = self.requests[at].decided.as_ref().and_then(|told| told.receipt);
        receipt.expect("sorted: the first requests are those with a receipt")
    }

    /// The latest log time that somebody can have gone by who had an answer then, ms.
    fn latest_ms(&self, returned_us: u64) -> u64 {
        self.history.began_ms + returned_us / 1_000 + CLOCKS_MS
    }

    fn steady_ms(&self, receipt: &Receipt) -> u64 {
        self.history.steady_ms(self.group, receipt)
    }

    fn receipts_are_of_one_log(&mut self, count: usize) {
        for at in 1..count {
            let (before, this) = (self.receipt(at - 1), self.receipt(at));
            let same_place = (before.index, before.position) == (this.index, this.position);
            let same_entry = before.index == this.index;
            if same_place {
                self.object("receipt", format!("two requests have the receipt {this:?}"));
            } else if same_entry && (before.term, before.chain) != (this.term, this.chain) {
                self.object("receipt", format!("entry {} is two: {before:?} and {this:?}", this.index));
            } else if before.term > this.term || self.steady_ms(&before) > self.steady_ms(&this) {
                self.object("receipt", format!("term or log time go back from {before:?} to {this:?}"));
            }
        }
    }

    /// What ended before another began must come before it in the log.
    fn receipts_agree_with_time(&mut self, count: usize) {
        let mut latest_begin = (0, 0);
        for at in 0..count {
            if let Some(known_us) = self.requests[at].known_us
                && known_us < latest_begin.0
            {
                let (this, earlier) = (self.receipt(at), self.receipt(latest_begin.1));
                let what = format!(
                    "{this:?} was told at {known_us} us, before the request of {earlier:?} was made at {} us",
                    latest_begin.0
                );
                self.object("real-time", what);
            }
            latest_begin = latest_begin.max((self.requests[at].first_invoked_us, at));
        }
    }

    /// A clock that is far ahead must not take log time along: holds would end early, and requests expire.
    fn log_time_is_not_ahead(&mut self, count: usize) {
        for at in 0..count {
            let receipt = self.receipt(at);
            let Some(known_us) = self.requests[at].known_us else { continue };
            let latest_ms = self.history.began_ms + known_us / 1_000 + AHEAD_MS_MAX;
            if receipt.decided_ms > latest_ms {
                self.object(
                    "log-time",
                    format!("{receipt:?} is of the future: it was told at {known_us} us"),
                );
            }
            // A correction of log time leaves steady time where it was, ahead once more by as much as before.
            let corrected = self.history.rebases_before(self.group, receipt.index) as u64;
            let steady_ms = self.steady_ms(&receipt);
            if steady_ms > latest_ms + corrected * AHEAD_MS_MAX {
                let what =
                    format!("by {receipt:?} holds end at {steady_ms} ms: it was told at {known_us} us");
                self.object("steady-time", what);
            }
        }
    }

    /// Replays all decisions; the second part is what was true after each number of them.
    fn replay(&mut self, count: usize) -> (Model, Vec<Moment>) {
        let (mut model, mut moments) = (Model::default(), vec![Moment::default()]);
        for at in 0..count {
            let (request, receipt) = (&self.requests[at], self.receipt(at));
            let sealed = request.calls.iter().any(|call| call.ask == Ask::Seal);
            let mut asks = request.calls.iter().map(|call| &call.ask).filter(|ask| **ask != Ask::Seal);
            let (ask, principal) = (asks.next().unwrap_or(&Ask::Seal), &request.key.0);
            if asks.any(|other| other != ask) {
                self.object(
                    "oracle",
                    format!("request {:032x} asks for two things", self.requests[at].key.1),
                );
                continue;
            }
            let said = &request.decided.as_ref().expect("has a receipt").said;
            let time = Time {
                log_ms: receipt.decided_ms,
                steady_ms: self.steady_ms(&receipt),
                incarnation: receipt.incarnation,
            };
            let taken = match said {
                // It changes nothing, and only who has used the id can have asked for it.
                Said::Rejected(reason) if reason == SEALED && sealed => Ok(()),
                Said::Rejected(reason) if reason == SEALED => {
                    Err(("sealed", format!("nobody has sealed {:032x}", request.key.1)))
                }
                _ => model.take(time, principal, ask, said),
            };
            if let Err((check, what)) = taken {
                self.object(check, format!("at {receipt:?}: {what}"));
            }
            let tiers = model.all_numbers(time.steady_ms);
            moments.push(Moment { tiers, offset_ms: self.history.offset_ms(self.group, receipt.index) });
        }
        (model, moments)
    }

    /// Numbers of decisions between which something fits that lasted from `invoked_us` to `returned_us`.
    fn window(&self, count: usize, invoked_us: u64, returned_us: u64) -> (usize, usize) {
        let decided = &self.requests[..count];
        let ended_before =
            |request: &Request<'_>| request.known_us.is_some_and(|known_us| known_us < invoked_us);
        let least = decided.iter().rposition(ended_before).map_or(0, |at| at + 1);
        let began_after = |request: &Request<'_>| request.first_invoked_us > returned_us;
        let most = decided.iter().position(began_after).unwrap_or(count);
        (least, most)
    }

    fn quick_refusals_were_true(&mut self, count: usize, moments: &[Moment]) {
        let mut objections = Vec::new();
        for call in self.requests.iter().flat_map(|request| &request.calls) {
            let Some((returned_us, End::Told(Told { receipt: None, said: Said::Rejected(reason) }))) =
                &call.returned
            else {
                continue;
            };
            let (Ask::Buy { event, tier, quantity, .. } | Ask::Hold { event, tier, quantity, .. }) =
                &call.ask
            else {
                continue;
            };
            if reason != "SOLD_OUT" {
                continue;
            }
            let (least, most) = self.window(count, call.invoked_us, *returned_us);
            let place = (event.clone(), tier.clone());
            let short = |moment: &Moment| {
                moment.tiers.get(&place).is_none_or(|numbers| numbers.obtainable() < u64::from(*quantity))
            };
            if !moments[least..=most.max(least)].iter().any(short) {
                objections.push(format!(
                    "{:?} was refused as sold out between {} and {returned_us} us, when it never was",
                    call.ask, call.invoked_us
                ));
            }
        }
        for what in objections {
            self.object("lost-sale", what);
        }
    }

    /// Finds a place for each read; a read that began after another had ended must not see less, unless it may be old: then it must
    /// not see less than whoever asks had seen.
    fn reads_fit(&mut self, count: usize, moments: &[Moment]) {
        let mut reads: Vec<&Read> =
            self.history.reads.iter().filter(|read| read.group == self.group).collect();
        reads.sort_by_key(|read| read.returned_us);
        let mut placed: Vec<(u64, usize)> = Vec::new();
        let mut in_sessions: BTreeMap<u64, usize> = BTreeMap::new();
        let places: BTreeMap<&RequestKey, usize> =
            self.requests[..count].iter().enumerate().map(|(at, request)| (&request.key, at)).collect();
        let mut objections = Vec::new();
        for read in reads {
            // What was acknowledged, and what others saw, by then must be shown.
            let by_us = read.invoked_us.saturating_sub(read.freshness.age_us());
            let (least, _) = self.window(count, by_us, read.returned_us);
            let (_, most) = self.window(count, read.invoked_us, read.returned_us);
            let seen = placed.iter().filter(|(returned_us, _)| *returned_us < by_us);
            let least = seen.map(|(_, at)| *at).fold(least, usize::max);
            // Nobody asks twice at the same time.
            let least = match (read.freshness, read.session.and_then(|number| in_sessions.get(&number))) {
                (Freshness::Session { .. }, Some(at)) => least.max(*at),
                _ => least,
            };
            let fits = |at: &usize| match &read.saw {
                Saw::Event { event, tiers } => {
                    event_fits(&moments[*at], event, tiers, self.latest_ms(read.returned_us))
                }
                Saw::Outcome { key, told } => match (places.get(key), told) {
                    (Some(place), Some(told)) => {
                        *at > *place && self.requests[*place].decided.as_ref() == Some(told)
                    }
                    (Some(place), None) => *at <= *place,
                    (None, told) => told.is_none(),
                },
            };
            match (least..=most.max(least)).find(fits) {
                Some(at) => {
                    placed.push((read.returned_us, at));
                    if let Some(number) = read.session {
                        let seen = in_sessions.entry(number).or_default();
                        *seen = at.max(*seen);
                    }
                }
                None => objections.push(format!(
                    "{:?}, read between {} and {} us as {:?}, was true after none of {least} to {most} decisions",
                    read.saw, read.invoked_us, read.returned_us, read.freshness
                )),
            }
        }
        for what in objections {
            self.object("stale-read", what);
        }
    }

    fn the_end_is_what_was_decided(&mut self, model: &Model, moments: &[Moment]) {
        let Final { events, tickets, .. } = &self.history.at_end;
        for event in model.events() {
            let place = (self.group, event.clone());
            let last = moments.last().expect("there is one before the first decision");
            match events.get(&place) {
                Some(tiers) if event_fits(last, event, tiers, u64::MAX) => {}
                other => {
                    let expected = &last.tiers;
                    self.object("conservation", format!("{event} ends as {other:?}, expected {expected:?}"));
                }
            }
            let mut expected = model.tickets(event);
            let mut seen = tickets.get(&place).cloned().unwrap_or_default();
            expected.sort_by(|a, b| a.ticket.cmp(&b.ticket));
            seen.sort_by(|a, b| a.ticket.cmp(&b.ticket));
            if let Some((seen, expected)) =
                seen.iter().zip(&expected).find(|(seen, expected)| seen != expected)
            {
                self.object("acknowledged-lost", format!("{event} has {seen:?} instead of {expected:?}"));
            } else if seen.len() != expected.len() {
                let what = format!("{event} has {} tickets instead of {}", seen.len(), expected.len());
                self.object("acknowledged-lost", what);
            }
        }
    }
}

/// Whether a reader could have seen these numbers after these decisions, at a log time of `latest_ms` at most. Holds that have
/// fallen due since are not shown any more.
fn event_fits(moment: &Moment, event: &str, tiers: &[TierSeen], latest_ms: u64) -> bool {
    let until_ms = latest_ms.saturating_add_signed(-moment.offset_ms);
    let known = moment.tiers.keys().filter(|(id, _)| id == event).count();
    known == tiers.len()
        && tiers.iter().all(|seen| {
            moment.tiers.get(&(event.to_owned(), seen.tier.clone())).is_some_and(|numbers| {
                seen.capacity == numbers.capacity
                    && seen.sold == numbers.sold
                    && seen.free + seen.held + seen.sold == seen.capacity
                    && numbers.may_show_held(seen.held, until_ms)
            })
        })
}
