//! From the wire to commands. Translates; the gateway has judged the form, the domain judges the rest.

use tidewall_domain::Roles;
use tidewall_machine::{Command, Op};
use tidewall_proto::internal::v1 as pb;

/// Largest command, bytes: a thousand times an ordinary one.
const COMMAND_BYTES_MAX: usize = 256 << 10;
/// Longest principal, bytes.
const PRINCIPAL_BYTES_MAX: usize = 128;

/// A request id from its 16 bytes.
pub fn request_id(bytes: &[u8]) -> Result<u128, String> {
    let bytes: [u8; 16] = bytes.try_into().map_err(|_| "a request id has 16 bytes".to_owned())?;
    Ok(u128::from_be_bytes(bytes))
}

/// A command from its wire form. Whether its module understands the payload is for the module to say.
pub fn command(message: pb::Command) -> Result<Command, String> {
    let bounded = |name: &str, text: &str| match text.len() {
        0..=PRINCIPAL_BYTES_MAX => Ok(()),
        _ => Err(format!("a {name} has 1 to {PRINCIPAL_BYTES_MAX} bytes")),
    };
    if message.principal.is_empty() {
        return Err(format!("a principal has 1 to {PRINCIPAL_BYTES_MAX} bytes"));
    }
    bounded("principal", &message.principal)?;
    bounded("principal for whom somebody acts", &message.on_behalf_of)?;
    let op = match message.module {
        0 if message.payload.is_empty() => Op::Seal,
        0 => return Err("a seal carries nothing".into()),
        _ if message.fingerprint == 0 => {
            return Err("a command carries the fingerprint of what was asked for".into());
        }
        module => Op::Module {
            module: u8::try_from(module).map_err(|_| format!("there is no module {module}"))?,
            payload: message.payload.into(),
        },
    };
    let command = Command {
        principal: message.principal,
        request_id: request_id(&message.request_id)?,
        expires_ms: message.expires_at_ms,
        roles: Roles(message.roles),
        on_behalf_of: message.on_behalf_of,
        fingerprint: message.fingerprint,
        op,
    };
    let bytes = command.bytes();
    if bytes > COMMAND_BYTES_MAX {
        return Err(format!("a command has at most {COMMAND_BYTES_MAX} bytes, not {bytes}"));
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(principal: usize, id: usize) -> pb::Command {
        pb::Command { principal: "p".repeat(principal), request_id: vec![7; id], ..Default::default() }
    }

    fn with(module: u32, payload: usize) -> pb::Command {
        pb::Command { module, payload: vec![1; payload].into(), fingerprint: 5, ..seal(1, 16) }
    }

    #[test]
    fn a_command_has_a_principal_an_id_and_a_module() {
        assert!(matches!(command(seal(PRINCIPAL_BYTES_MAX, 16)), Ok(Command { op: Op::Seal, .. })));
        for (bad, names) in [
            (seal(0, 16), "principal"),
            (seal(PRINCIPAL_BYTES_MAX + 1, 16), "principal"),
            (pb::Command { on_behalf_of: "p".repeat(PRINCIPAL_BYTES_MAX + 1), ..seal(1, 16) }, "acts"),
            (seal(1, 15), "request id"),
            (seal(1, 17), "request id"),
            (with(0, 1), "seal"),
            (with(256, 1), "module 256"),
            (pb::Command { fingerprint: 0, ..with(1, 1) }, "fingerprint"),
        ] {
            let why = command(bad).err();
            assert!(why.as_ref().is_some_and(|why| why.contains(names)), "{names}: {why:?}");
        }
    }

    #[test]
    fn a_command_has_a_largest_size() {
        let bytes = |payload: usize| command(with(1, payload)).map(|command| command.bytes());
        let around = bytes(1).unwrap_or(0);
        let fits = COMMAND_BYTES_MAX - around + 1;
        assert_eq!(bytes(fits), Ok(COMMAND_BYTES_MAX));
        assert!(bytes(fits + 1).is_err_and(|why| why.contains("at most")));
    }
}
