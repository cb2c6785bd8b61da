//! Webhooks in the words of the public API.

use prost::Message as _;
use tidewall_messages::{tickets, webhooks};
use tidewall_proto::v1;

use super::{Decider, mismatch, timestamp};
use crate::errors::ApiError;
use crate::names;
use crate::webhooks::call;

/// What the webhooks module decided for a request.
pub(super) fn show(
    decider: Decider<'_>,
    outcome: &[u8],
) -> Result<Option<v1::get_outcome_response::Result>, ApiError> {
    use v1::get_outcome_response::Result as Shown;
    use webhooks::outcome::Result as Done;
    match webhooks::Outcome::decode(outcome).map_err(|_| mismatch())?.result {
        Some(Done::Webhook(view)) => Ok(Some(Shown::Webhook(webhook(decider.region, view)))),
        Some(Done::DeletedId(id)) => Ok(Some(Shown::DeletedWebhook(names::webhook(decider.region, &id)))),
        None => Err(mismatch()),
    }
}

/// A webhook.
pub(crate) fn webhook(region: &str, view: webhooks::WebhookView) -> v1::Webhook {
    let settings = view.settings.unwrap_or_default();
    let event = match settings.module {
        module if module == u32::from(tickets::MODULE) => names::event(region, &settings.row),
        _ => String::new(),
    };
    v1::Webhook {
        name: names::webhook(region, &view.webhook_id),
        owner: view.owner,
        url: settings.url,
        // Their numbers are the same.
        kinds: settings.kinds.into_iter().filter_map(|kind| i32::try_from(kind).ok()).collect(),
        event,
        revision: view.revision,
        create_time: Some(timestamp(view.created_at_ms)),
        rotate_end_time: (view.rotating_until_ms > 0).then(|| timestamp(view.rotating_until_ms)),
        missed: view.missed.map(call::missed),
    }
}

#[cfg(test)]
mod tests {
    use tidewall_messages::{Change, ModuleChange, accounts};

    use super::*;
    use crate::feed::Place;

    /// Kinds of changes have the same numbers where they are asked for and where they are told.
    #[test]
    fn kinds_are_called_the_same_inside_and_outside() {
        use tickets::change::What;
        let tickets = [
            What::Event(tickets::EventView::default()),
            What::Deleted(tickets::EventDeleted {}),
            What::Held(tickets::HoldView::default()),
            What::HoldEnded(tickets::HoldEnded::default()),
            What::HoldEnded(tickets::HoldEnded { expired: true, ..Default::default() }),
            What::Sold(tickets::PurchaseView::default()),
            What::Cancelled(tickets::TicketCancelled::default()),
        ];
        let tickets = tickets.map(tickets::Change::from);
        let tickets = tickets.iter().map(|change| (tickets::MODULE, change.kind(), change.encode_to_vec()));
        let accounts = [
            accounts::change::What::Saved(accounts::AccountSaved::default()),
            accounts::change::What::EndedSessionId(vec![7; 16]),
        ];
        let accounts = accounts.map(|what| accounts::Change { what: Some(what) });
        let accounts =
            accounts.iter().map(|change| (accounts::MODULE, change.kind(), change.encode_to_vec()));
        let place = Place { incarnation: 1, index: 1, changes: 1 };
        let mut all = Vec::new();
        for (module, kind, payload) in tickets.chain(accounts) {
            let change = Change { module: module.into(), row: "gala".into(), owner: "ann".into(), payload };
            let shown = crate::convert::change("north", &change, place, 1).ok().flatten();
            let shown = shown.map(|shown| shown.kind).unwrap_or_default();
            assert_eq!(Ok(shown), i32::try_from(kind), "{change:?}");
            all.push(shown);
        }
        let known = (1..).map_while(|kind| v1::ChangeKind::try_from(kind).ok()).map(|kind| kind as i32);
        assert_eq!(all, known.collect::<Vec<_>>());
    }
}
