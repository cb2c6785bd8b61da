//! What whoever watches is told of accounts. Nothing personal is in it: what has changed is asked for by who may see it.

use tidewall_messages::accounts::change::What;
use tidewall_messages::accounts::{AccountSaved, Change};

use crate::feed::Feed;

use super::commands::Event;
use super::model::*;

/// Tells what has happened.
pub(super) fn tell(state: &State, event: &Event, feed: &mut Feed) {
    match event {
        Event::Registered { account, row }
        | Event::AccountChanged { account, row }
        | Event::EmailChanged { account, row, .. } => {
            let what = What::Saved(AccountSaved { revision: row.revision });
            feed.tell(&account_id(*account), "", &row.subject, &Change { what: Some(what) });
        }
        Event::SessionEnded { session: (account, session) } => {
            let Some(row) = state.accounts.get(account) else { return };
            let what = What::EndedSessionId(session.to_be_bytes().to_vec());
            feed.tell(&account_id(*account), "", &row.subject, &Change { what: Some(what) });
        }
        // A log-in is told to who logs in, and what is known of e-mails to nobody.
        _ => {}
    }
}
