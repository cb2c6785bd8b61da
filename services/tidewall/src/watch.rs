//! `tidewall watch`: what happens in a region or to an event, a line for each change, through failovers and over gateways.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tidewall_gateway::auth::Role;
use tidewall_proto::v1;
use tidewall_proto::v1::change::What;
use tidewall_sdk::{Client, Error, Options, Reason, TokenError, token_fn};
use tokio::time::{Instant, sleep_until};

use crate::exit::{Exit, Failure};
use crate::gateway::TargetArgs;
use crate::output::{self, Format};
use crate::signals::Signals;
use crate::{duration, token};

/// How long a token lives that is minted for a connection.
const TOKEN_TTL: Duration = Duration::from_secs(3_600);

/// Arguments of `tidewall watch`.
#[derive(Debug, Args)]
pub struct WatchCommand {
    /// Region or event: regions/north or regions/north/events/gala
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Tell how the event is, not each change
    #[arg(long, conflicts_with_all = ["kind", "owner", "after"])]
    pub state: bool,
    /// Only changes of this kind, such as TICKETS_SOLD; may be given several times
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = kind)]
    pub kind: Vec<v1::ChangeKind>,
    /// Only changes that concern this owner
    #[arg(long, value_name = "SUBJECT")]
    pub owner: Option<String>,
    /// Go on behind this place, as an earlier watch has printed it
    #[arg(long, value_name = "PLACE")]
    pub after: Option<PlaceText>,
    /// Stop after so long [default: when interrupted]
    #[arg(long = "for", value_name = "TIME", value_parser = duration::parse)]
    pub limit: Option<Duration>,
    /// Stop after so many changes
    #[arg(long, value_name = "COUNT")]
    pub count: Option<u64>,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Bearer token to use instead of minting one
    #[arg(long, value_name = "JWT", env = "TIDEWALL_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// A place as it is printed: incarnation, index and changes, such as 1.4711.2.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlaceText(v1::Place);

impl FromStr for PlaceText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut parts = text.split('.');
            let place = v1::Place {
                incarnation: parts.next()?.parse().ok()?,
                index: parts.next()?.parse().ok()?,
                changes: parts.next()?.parse().ok()?,
            };
            parts.next().is_none().then_some(Self(place))
        };
        parse().ok_or_else(|| format!("{text:?} is no place: it looks like 1.4711.2"))
    }
}

fn place_text(place: Option<v1::Place>) -> String {
    let v1::Place { incarnation, index, changes } = place.unwrap_or_default();
    format!("{incarnation}.{index}.{changes}")
}

const KIND: &str = "CHANGE_KIND_";

/// A kind of change by its name.
pub fn kind(text: &str) -> Result<v1::ChangeKind, String> {
    let name = text.to_uppercase();
    let known = v1::ChangeKind::from_str_name(&format!("{KIND}{name}"));
    known.filter(|kind| *kind != v1::ChangeKind::Unspecified).ok_or_else(|| {
        let all = (1..).map_while(|number| v1::ChangeKind::try_from(number).ok());
        let all: Vec<_> = all.map(kind_name).collect();
        format!("there is no kind {text:?}: use {}", all.join(", "))
    })
}

/// The name of a kind of change.
pub fn kind_name(kind: v1::ChangeKind) -> &'static str {
    kind.as_str_name().trim_start_matches(KIND)
}

/// A change, as it is printed.
#[derive(Debug, Default, Serialize)]
struct Line {
    place: String,
    time: Option<String>,
    kind: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    event: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    account: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    session: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    owner: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tickets: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    hold: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantity: Option<i32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tiers: Vec<Tier>,
}

/// The numbers of a tier.
#[derive(Debug, Serialize)]
struct Tier {
    tier_id: String,
    free: i64,
    held: i64,
    sold: i64,
}

impl From<v1::TierStock> for Tier {
    fn from(stock: v1::TierStock) -> Self {
        let v1::TierStock { tier_id, free, held, sold } = stock;
        Self { tier_id, free, held, sold }
    }
}

impl From<v1::Tier> for Tier {
    fn from(tier: v1::Tier) -> Self {
        let v1::Tier { tier_id, free, held, sold, .. } = tier;
        Self { tier_id, free, held, sold }
    }
}

impl From<v1::Change> for Line {
    fn from(change: v1::Change) -> Self {
        let kind = kind_name(change.kind());
        let mut line = Self {
            place: place_text(change.place),
            time: change.change_time.map(|time| time.to_string()),
            kind,
            event: change.event,
            account: change.account,
            owner: change.owner,
            hold: change.from_hold,
            tiers: change.stock.into_iter().map(Tier::from).collect(),
            ..Self::default()
        };
        match change.what {
            Some(What::SavedEvent(event)) => line.tiers = event.tiers.into_iter().map(Tier::from).collect(),
            Some(What::Hold(hold) | What::EndedHold(hold)) => {
                (line.hold, line.quantity) = (hold.name, Some(hold.quantity));
            }
            Some(What::Purchase(purchase)) => line.tickets = purchase.tickets,
            Some(What::CancelledTicket(ticket)) => line.tickets = vec![ticket],
            Some(What::EndedSession(session)) => line.session = session,
            None => {}
        }
        line
    }
}

impl Line {
    /// How an event is, or what of it has changed.
    fn of_state(name: &str, answer: v1::WatchResponse) -> Option<Self> {
        let tiers: Vec<Tier> = match answer.event {
            Some(event) => event.tiers.into_iter().map(Tier::from).collect(),
            None => answer.stocks.into_iter().map(Tier::from).collect(),
        };
        let (place, event) = (place_text(answer.place), name.to_owned());
        (!tiers.is_empty()).then(|| Self { place, event, kind: "STATE", tiers, ..Self::default() })
    }

    fn print(&self, format: Format) -> Result<(), Failure> {
        let text = match format {
            Format::Json => serde_json::to_string(self)
                .map_err(|e| Failure::new(Exit::Failed, format!("cannot write a change as JSON: {e}")))?,
            Format::Table => self.for_people(),
        };
        output::text(&(text + "\n"))
    }

    fn for_people(&self) -> String {
        let short = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
        let mut parts = vec![self.place.clone()];
        parts.extend(self.time.clone());
        parts.push(self.kind.to_owned());
        parts.push(match self.event.as_str() {
            "" => self.account.clone(),
            event => event.trim_start_matches("regions/").replace("/events/", "/"),
        });
        if !self.owner.is_empty() && self.owner != self.account {
            parts.push(self.owner.clone());
        }
        match self.tickets.as_slice() {
            [] => {}
            [one] => parts.push(short(one)),
            [first, .., last] => {
                parts.push(format!("{} to {} ({})", short(first), short(last), self.tickets.len()))
            }
        }
        for name in [&self.hold, &self.session].into_iter().filter(|name| !name.is_empty()) {
            parts.push(short(name));
        }
        parts.extend(self.quantity.map(|quantity| format!("{quantity} places")));
        parts.extend(self.tiers.iter().map(|Tier { tier_id, free, held, sold }| {
            format!("{tier_id}: {free} free, {held} held, {sold} sold")
        }));
        parts.join("  ")
    }
}

/// Runs the command.
pub async fn run(command: &WatchCommand, format: Format) -> Result<(), Failure> {
    let urls = command.target.urls()?;
    let given = command.token.as_ref().map(|token| token.trim().to_owned());
    let key = given.is_none().then(|| command.target.private_key()).transpose()?;
    let tokens = token_fn(move || {
        let token = match (&given, &key) {
            (Some(token), _) => Ok(token.clone()),
            (None, Some(key)) => token::mint(key, "operator", &[Role::Operator], TOKEN_TTL),
            (None, None) => Err(Failure::new(Exit::Usage, "there is no key")),
        };
        std::future::ready(token.map_err(|failure| TokenError(failure.to_string())))
    });
    let client = Client::connect(urls, tokens, Options::default())
        .map_err(|error| Failure::new(Exit::Usage, format!("cannot watch {}: {error}", command.name)))?;
    let mode = if command.state { v1::WatchMode::State } else { v1::WatchMode::Events };
    let mut watch = client.watch(v1::WatchRequest {
        parent: command.name.clone(),
        mode: mode.into(),
        kinds: command.kind.iter().map(|kind| (*kind).into()).collect(),
        owner: command.owner.clone().unwrap_or_default(),
        after: command.after.map(|after| after.0),
    });
    let mut signals = Signals::new()?;
    let until = command.limit.map(|limit| Instant::now() + limit);
    let mut left = command.count.unwrap_or(u64::MAX);
    while left > 0 {
        let answer = tokio::select! {
            answer = watch.next() => answer.map_err(|error| failure(&command.name, &error))?,
            _ = signals.next() => break,
            () = time_over(until) => break,
        };
        let lines = match command.state {
            true => Line::of_state(&command.name, answer).into_iter().collect(),
            false => answer.changes.into_iter().map(Line::from).collect::<Vec<_>>(),
        };
        for line in lines.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            line.print(format)?;
            left -= 1;
        }
    }
    Ok(())
}

async fn time_over(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

fn failure(name: &str, error: &Error) -> Failure {
    match (error.reason(), error.failure()) {
        (Some(Reason::PlaceGone), _) => Failure::new(
            Exit::Refused,
            format!(
                "cannot go on watching {name}: {error}; watch without --after, and look at what is there"
            ),
        ),
        (_, Some(failure)) => {
            Failure::new(Exit::of_status(failure.code), format!("cannot watch {name}: {error}"))
        }
        (_, None) => Failure::new(Exit::Unavailable, format!("cannot watch {name}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn places_and_kinds_are_read_as_they_are_printed() {
        let place = v1::Place { incarnation: 1, index: 4711, changes: 2 };
        assert_eq!("1.4711.2".parse::<PlaceText>().unwrap(), PlaceText(place));
        assert_eq!(place_text(Some(place)), "1.4711.2");
        for wrong in ["", "1", "1.2", "1.2.3.4", "a.b.c", "1.-2.3"] {
            assert!(wrong.parse::<PlaceText>().is_err(), "{wrong}");
        }
        assert_eq!(kind("tickets_sold").unwrap(), v1::ChangeKind::TicketsSold);
        assert!(kind("UNSPECIFIED").is_err() && kind("x").unwrap_err().contains("HOLD_PLACED"));
    }

    #[test]
    fn a_line_says_what_has_happened_to_whom_and_what_is_left() {
        let tickets = (1..4).map(|n| format!("regions/north/events/gala/tickets/ga-{n}")).collect();
        let line = Line::from(v1::Change {
            place: Some(v1::Place { incarnation: 1, index: 7, changes: 1 }),
            kind: v1::ChangeKind::TicketsSold.into(),
            event: "regions/north/events/gala".into(),
            owner: "ann".into(),
            what: Some(What::Purchase(v1::Purchase { tickets, ..Default::default() })),
            stock: Some(v1::TierStock { tier_id: "ga".into(), free: 2, held: 0, sold: 3 }),
            ..Default::default()
        });
        let expected = "1.7.1  TICKETS_SOLD  north/gala  ann  ga-1 to ga-3 (3)  ga: 2 free, 0 held, 3 sold";
        assert_eq!(line.for_people(), expected);
    }
}
