//! Turns events into rows, and checks the invariants of what they touched. It decides nothing: whatever does not fit is a
//! [`Fault`], and the caller takes the changes back.

use crate::counter::Counter;
use crate::module::Fault;

use super::super::model::*;
use super::Event;

/// Changes the rows as an event says.
pub(in crate::webhooks) fn evolve(state: &mut State, event: &Event) -> Result<(), Fault> {
    match event {
        Event::Saved { webhook, row } => {
            match state.webhooks.get(webhook) {
                None => state.counters.set(COUNTER_WEBHOOKS, Some(Counter(*webhook))),
                Some(old) if old.generation > row.generation || old.revision >= row.revision => {
                    return Err(Fault(format!("W2: webhook {webhook} goes back")));
                }
                Some(_) => {}
            }
            state.webhooks.set(*webhook, Some(row.clone()));
        }
        Event::Deleted { webhook } => {
            known(state, *webhook)?;
            state.webhooks.set(*webhook, None);
        }
        Event::Told { webhook, delivery } => {
            if delivery.missed.is_some() {
                let row = known(state, *webhook)?;
                state.webhooks.set(*webhook, Some(WebhookRow { missed: None, ..row }));
            }
        }
        Event::Missed { webhook, missed } => {
            let row = WebhookRow { missed: Some(*missed), ..known(state, *webhook)? };
            state.webhooks.set(*webhook, Some(row));
        }
    }
    Ok(())
}

fn known(state: &State, webhook: WebhookNo) -> Result<WebhookRow, Fault> {
    state.webhooks.get(&webhook).cloned().ok_or_else(|| Fault(format!("webhook {webhook} is missing")))
}

/// Checks the invariants of what events touched. W2 is checked where webhooks are written.
pub(in crate::webhooks) fn check(state: &State, events: &[Event]) -> Result<(), Fault> {
    for event in events {
        if let Event::Saved { row, .. } = event
            && state.of(&row.owner).count() > WEBHOOKS_MAX
        {
            return Err(Fault(format!("W1: {} has more than {WEBHOOKS_MAX} webhooks", row.owner)));
        }
    }
    Ok(())
}
