//! Decides what a command leads to: events and an outcome, or a rejection. It only reads rows, and never changes one.

use tidewall_messages::webhooks::command::Op;
use tidewall_messages::webhooks::outcome::Result as Done;
use tidewall_messages::webhooks::{Command, Outcome, Settings};

use tidewall_mutant::{Mutant, active};

use crate::{Caller, Context, Now, incarnation};

use super::super::model::*;
use super::super::queries;
use super::{Event, Rejection};

/// What a command leads to.
type Decision = Result<(Vec<Event>, Outcome), Rejection>;

/// Decides a command.
pub(in crate::webhooks) fn decide(
    state: &State,
    context: &Context,
    caller: Caller<'_>,
    command: &Command,
) -> Decision {
    let case = Case { state, context, caller };
    match &command.op {
        Some(Op::CreateWebhook(create)) => case.create(create.settings.as_ref()),
        Some(Op::UpdateWebhook(update)) => {
            let (number, row) = case.own(&update.webhook_id)?;
            if update.revision != 0 && update.revision != row.revision {
                return Err(Rejection::RevisionMismatch { expected: update.revision, actual: row.revision });
            }
            let now = queries::view(number, row, case.now()).settings.unwrap_or_default();
            let asked = update.settings.clone().unwrap_or_default();
            let (module, name) = match update.set_row {
                true => (asked.module, asked.row),
                false => (now.module, now.row),
            };
            let wanted = Settings {
                url: if update.set_url { asked.url } else { now.url },
                kinds: if update.set_kinds { asked.kinds } else { now.kinds },
                module,
                row: name,
            };
            let (url, kinds, only) = settings(Some(&wanted))?;
            Ok(case.saved(number, WebhookRow { url, kinds, row: only, ..row.clone() }))
        }
        Some(Op::RotateSecret(rotate)) => {
            let (number, row) = case.own(&rotate.webhook_id)?;
            let (generation, previous_generation) =
                (case.first_number().max(row.generation.saturating_add(1)), row.generation);
            let generation = if active(Mutant::OldSecretComesBack) { row.generation } else { generation };
            let rotating_until_ms = context.steady_ms.saturating_add(ROTATING_MS);
            Ok(case.saved(
                number,
                WebhookRow { generation, previous_generation, rotating_until_ms, ..row.clone() },
            ))
        }
        Some(Op::DeleteWebhook(delete)) => {
            let (webhook, _) = case.own(&delete.webhook_id)?;
            let done = Outcome { result: Some(Done::DeletedId(delete.webhook_id.clone())) };
            Ok((vec![Event::Deleted { webhook }], done))
        }
        None => Err(Rejection::invalid("op", "the command asks for nothing")),
    }
}

/// Address, kinds as bits, and the only row.
type Sound = (String, u64, Option<(u8, String)>);

fn settings(settings: Option<&Settings>) -> Result<Sound, Rejection> {
    let settings = settings.ok_or_else(|| Rejection::invalid("webhook", "is missing"))?;
    if settings.url.is_empty() || settings.url.len() > URL_MAX {
        return Err(Rejection::invalid("url", format!("has not 1 to {URL_MAX} bytes")));
    }
    let mut kinds = 0;
    for kind in &settings.kinds {
        if !(1..KINDS_MAX).contains(kind) {
            return Err(Rejection::invalid("kinds", format!("{kind} is no kind of change")));
        }
        kinds |= 1u64 << kind;
    }
    let only = match (settings.module, settings.row.as_str()) {
        (0, _) => None,
        (module, row) if !row.is_empty() && row.len() <= 256 => {
            let module = u8::try_from(module).map_err(|_| Rejection::invalid("module", "is none"))?;
            Some((module, row.to_owned()))
        }
        _ => return Err(Rejection::invalid("row", "is not the name of a row")),
    };
    Ok((settings.url.clone(), kinds, only))
}

/// The rows before the command, what the log says about it, and who asks.
struct Case<'a> {
    state: &'a State,
    context: &'a Context,
    caller: Caller<'a>,
}

impl<'a> Case<'a> {
    fn create(&self, asked: Option<&Settings>) -> Decision {
        let (url, kinds, row) = settings(asked)?;
        let owner = self.caller.principal;
        if self.state.of(owner).count() >= WEBHOOKS_MAX {
            return Err(Rejection::TooManyWebhooks(owner.to_owned()));
        }
        if self.state.webhooks.len() >= WEBHOOKS_OF_ALL_MAX {
            return Err(Rejection::RegionFull);
        }
        let last = self.state.counters.get(&COUNTER_WEBHOOKS).map_or(0, |counter| counter.0);
        let row = WebhookRow {
            owner: owner.to_owned(),
            url,
            kinds,
            row,
            generation: self.first_number(),
            previous_generation: 0,
            rotating_until_ms: 0,
            revision: 0,
            created_ms: self.context.now_ms,
            missed: None,
        };
        Ok(self.saved(self.first_number().max(last + 1), row))
    }

    /// The first number of this incarnation, of webhooks and of generations of secrets alike.
    fn first_number(&self) -> u64 {
        incarnation::first_number(self.context.incarnation)
    }

    fn now(&self) -> Now {
        Now { log_ms: self.context.now_ms, steady_ms: self.context.steady_ms }
    }

    /// A webhook that the caller may change.
    fn own(&self, id: &str) -> Result<(WebhookNo, &'a WebhookRow), Rejection> {
        let found = self.state.webhook(id).ok_or_else(|| Rejection::WebhookNotFound(id.to_owned()))?;
        if found.1.owner != self.caller.principal && !self.caller.is_operator() {
            return Err(Rejection::NotOwner(id.to_owned()));
        }
        Ok(found)
    }

    fn saved(&self, webhook: WebhookNo, row: WebhookRow) -> (Vec<Event>, Outcome) {
        let row = WebhookRow { revision: row.revision + 1, ..row };
        let view = queries::view(webhook, &row, self.now());
        (vec![Event::Saved { webhook, row }], Outcome { result: Some(Done::Webhook(view)) })
    }
}
