//! Whoever wants to hear what happens in a group waits here until something does. Nothing waits for those who hear.

use std::time::Duration;

use tidewall_actors::Refusal;
use tidewall_consensus::Group;
use tidewall_domain::feed::TELLS_CHANGES;
use tidewall_machine::Machine;
use tidewall_proto::internal::v1 as pb;
use tokio::time::{Instant, timeout_at};

use crate::views;

/// No answer waits longer: whoever asks for more asks again.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// What has happened behind a place, as soon as there is something; nothing when there is nothing for as long as may be waited.
///
/// # Errors
/// Refusals, as of any query.
pub async fn hear(group: &Group, mut asked: pb::ListChanges) -> Result<pb::Changes, pb::Refusal> {
    let state = group.state();
    let until = Instant::now() + Duration::from_millis(asked.wait_ms.into()).min(WAIT_MAX);
    let mut told = state.told();
    loop {
        told.borrow_and_update();
        if state.read(Machine::apply_version) < TELLS_CHANGES {
            return Err(views::not_yet());
        }
        let changes = state.read(|machine| views::changes(machine, &asked));
        if changes.gone || !changes.entries.is_empty() || Instant::now() >= until {
            return Ok(changes);
        }
        // From where it is now, so that what happens from here on is heard.
        asked.after = asked.after.or(changes.place);
        let _ = timeout_at(until, told.changed()).await;
        if let Some(why) = state.halted() {
            return Err(views::refusal(&Refusal::Halted(why)));
        }
        if !group.believes_to_lead() {
            return Err(views::refusal(&Refusal::NotLeader { leader: group.believed_leader() }));
        }
    }
}
