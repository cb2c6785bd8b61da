//! From the wire to commands. Translates; the gateway has judged the form, the domain judges the rest.

use tidewall_domain::tickets;
use tidewall_domain::tickets::model::{SeatRowSpec, TierSpec};
use tidewall_machine::{Command, Op};
use tidewall_proto::internal::v1 as pb;

/// Largest command, bytes: a thousand times a purchase, and more than any event needs.
const COMMAND_BYTES_MAX: usize = 256 << 10;
/// Longest principal, bytes.
const PRINCIPAL_BYTES_MAX: usize = 128;

/// A request id from its 16 bytes.
pub fn request_id(bytes: &[u8]) -> Result<u128, String> {
    let bytes: [u8; 16] = bytes.try_into().map_err(|_| "a request id has 16 bytes".to_owned())?;
    Ok(u128::from_be_bytes(bytes))
}

fn tier(spec: pb::TierSpec) -> TierSpec {
    let seat_rows = spec.seat_rows.into_iter().map(|row| SeatRowSpec { label: row.label, seats: row.seats });
    TierSpec {
        id: spec.tier_id,
        display_name: spec.display_name,
        capacity: spec.capacity,
        currency: spec.currency_code,
        price: spec.price_minor_units,
        seat_rows: seat_rows.collect(),
    }
}

/// A command from its wire form.
pub fn command(message: pb::Command) -> Result<Command, String> {
    if message.principal.is_empty() || message.principal.len() > PRINCIPAL_BYTES_MAX {
        return Err(format!("a principal has 1 to {PRINCIPAL_BYTES_MAX} bytes"));
    }
    let op = match message.op.ok_or("the command asks for nothing")? {
        pb::command::Op::Seal(pb::Seal {}) => Op::Seal,
        op => Op::Tickets(tickets_op(op)?),
    };
    let command = Command {
        principal: message.principal,
        request_id: request_id(&message.request_id)?,
        expires_ms: message.expires_at_ms,
        privileged: message.privileged,
        op,
    };
    let bytes = command.bytes();
    if bytes > COMMAND_BYTES_MAX {
        return Err(format!("a command has at most {COMMAND_BYTES_MAX} bytes, not {bytes}"));
    }
    Ok(command)
}

fn tickets_op(op: pb::command::Op) -> Result<tickets::Command, String> {
    use pb::command::Op as Wire;
    use tickets::Command as C;
    Ok(match op {
        Wire::CreateEvent(m) => C::CreateEvent {
            event: m.event_id,
            display_name: m.display_name,
            quota: m.quota_per_buyer,
            opens_ms: m.sale_opens_at_ms,
            closes_ms: m.sale_closes_at_ms,
            tiers: m.tiers.into_iter().map(tier).collect(),
        },
        Wire::UpdateEvent(m) => C::UpdateEvent {
            event: m.event_id,
            display_name: m.display_name,
            quota: m.quota_per_buyer,
            opens_ms: m.sale_opens_at_ms,
            closes_ms: m.sale_closes_at_ms,
            tiers: m.set_tiers.then(|| m.tiers.into_iter().map(tier).collect()),
            expected_revision: m.expected_revision,
        },
        Wire::Hold(m) => C::Hold {
            event: m.event_id,
            tier: m.tier_id,
            quantity: m.quantity,
            seats: m.seats,
            ttl_ms: m.ttl_ms,
        },
        Wire::ConfirmHold(m) => C::ConfirmHold { event: m.event_id, hold: m.hold_id },
        Wire::ReleaseHold(m) => C::ReleaseHold { event: m.event_id, hold: m.hold_id },
        Wire::Buy(m) => C::Buy {
            event: m.event_id,
            tier: m.tier_id,
            quantity: m.quantity,
            seats: m.seats,
            buyer: m.buyer,
        },
        Wire::CancelTicket(m) => C::CancelTicket { event: m.event_id, ticket: m.ticket_id },
        Wire::Seal(_) => return Err("a seal is no command of tickets".into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(principal: usize, id: usize) -> pb::Command {
        pb::Command {
            principal: "p".repeat(principal),
            request_id: vec![7; id],
            op: Some(pb::command::Op::Seal(pb::Seal {})),
            ..Default::default()
        }
    }

    fn buy(seats: Vec<String>) -> pb::Command {
        let buy = pb::Buy { event_id: "gala".into(), seats, ..Default::default() };
        pb::Command { op: Some(pb::command::Op::Buy(buy)), ..seal(1, 16) }
    }

    #[test]
    fn a_command_has_a_principal_an_id_and_something_to_do() {
        assert!(command(seal(PRINCIPAL_BYTES_MAX, 16)).is_ok());
        for (bad, names) in [
            (seal(0, 16), "principal"),
            (seal(PRINCIPAL_BYTES_MAX + 1, 16), "principal"),
            (seal(1, 15), "request id"),
            (seal(1, 17), "request id"),
            (pb::Command { op: None, ..seal(1, 16) }, "nothing"),
        ] {
            let why = command(bad).err();
            assert!(why.as_ref().is_some_and(|why| why.contains(names)), "{names}: {why:?}");
        }
    }

    #[test]
    fn a_command_has_a_largest_size() {
        let bytes = |seat: usize| command(buy(vec!["s".repeat(seat)])).map(|command| command.bytes());
        let around = bytes(1).unwrap_or(0);
        let fits = COMMAND_BYTES_MAX - around + 1;
        assert_eq!(bytes(fits), Ok(COMMAND_BYTES_MAX));
        assert!(bytes(fits + 1).is_err_and(|why| why.contains("at most")));
    }
}
