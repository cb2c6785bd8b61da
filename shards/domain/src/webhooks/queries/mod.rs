//! Reads over the rows of the webhooks module. Nothing here changes anything, and who may read is the gateway's business.

use tidewall_messages::webhooks::answer::Result as Found;
use tidewall_messages::webhooks::query::Op;
use tidewall_messages::webhooks::{Answer, Query, Settings, WebhookList, WebhookView};

use super::commands::Rejection;
use super::model::*;
use crate::Now;
use crate::page::page;

/// Webhooks of a page.
const PAGE_MAX: u32 = 1_000;

/// Answers a query.
pub(super) fn query(state: &State, now: Now, query: &Query) -> Result<Answer, Rejection> {
    let found = match &query.op {
        Some(Op::GetWebhook(asked)) => {
            let found = state.webhook(&asked.webhook_id);
            let (number, row) = found.ok_or_else(|| Rejection::WebhookNotFound(asked.webhook_id.clone()))?;
            Found::Webhook(view(number, row, now))
        }
        Some(Op::ListWebhooks(asked)) => {
            let first = match asked.after.as_str() {
                "" => 0,
                after => {
                    let after = parse_id(after);
                    let after = after.ok_or_else(|| Rejection::invalid("after", "is no id of a webhook"))?;
                    after.saturating_add(1)
                }
            };
            let shown = |number: WebhookNo| Some(view(number, state.webhooks.get(&number)?, now));
            let (webhooks, more) = match asked.owner.as_str() {
                "" => {
                    let all = state.webhooks.range_from(&first).map(|(number, row)| view(*number, row, now));
                    page(all, asked.limit, PAGE_MAX)
                }
                owner => {
                    let own = state.of(owner).filter(|number| *number >= first).filter_map(shown);
                    page(own, asked.limit, PAGE_MAX)
                }
            };
            Found::Webhooks(WebhookList { webhooks, more })
        }
        None => return Err(Rejection::invalid("op", "the query asks for nothing that this build has")),
    };
    Ok(Answer { result: Some(found) })
}

/// A webhook as it is shown.
pub(super) fn view(number: WebhookNo, row: &WebhookRow, now: Now) -> WebhookView {
    let (module, name) = row.row.clone().map_or((0, String::new()), |(module, name)| (module.into(), name));
    let rotating = row.rotating_until_ms.checked_sub(now.steady_ms).filter(|left| *left > 0);
    let previous_generation = rotating.map_or(0, |_| row.previous_generation);
    WebhookView {
        webhook_id: webhook_id(number),
        owner: row.owner.clone(),
        settings: Some(Settings {
            url: row.url.clone(),
            kinds: (1..KINDS_MAX).filter(|kind| row.kinds & (1 << kind) != 0).collect(),
            module,
            row: name,
        }),
        generation: row.generation,
        previous_generation,
        queue: u128::from(number).to_be_bytes().to_vec(),
        rotating_until_ms: rotating.map_or(0, |left| now.log_ms.saturating_add(left)),
        revision: row.revision,
        created_at_ms: row.created_ms,
        missed: row.missed.map(Into::into),
    }
}
