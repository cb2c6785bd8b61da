//! What a Raft entry of the state machine looks like: many commands under one time stamp.
//!
//! Format 3: version byte, stamp and whether it is confirmed, count, then each command: its envelope, and the payload of its
//! module as the gateway sent it. Decoding checks everything but the payload; an entry that does not decode is never skipped.

use tidewall_domain::codec::{DecodeError, Reader, Writer};
use tidewall_domain::outbox::GroupNo;
use tidewall_domain::table::Row as _;
use tidewall_domain::{Caller, Roles};
use tidewall_messages::ModuleCommand;

use crate::effects::EffectKey;
use crate::streams::{DeadKey, Message};
use crate::time::Stamp;

/// Version of the entry format that this build writes, and the highest that it reads.
pub const ENTRY_FORMAT: u8 = 3;

const SYSTEM: u8 = 0;
const MODULE: u8 = 1;
const SEAL: u8 = 2;

/// A request as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Who asks: scope of the request id.
    pub principal: String,
    /// UUIDv7 as a number.
    pub request_id: u128,
    /// No copy of it may be decided after this time, Unix milliseconds.
    pub expires_ms: u64,
    /// What the principal may beyond its own.
    pub roles: Roles,
    /// For whom it acts; empty for itself.
    pub on_behalf_of: String,
    /// Hash of what the client sent: guards the request id against other content. Whoever builds the payload, and however often,
    /// copies of a request have the same one.
    pub fingerprint: u64,
    /// What is asked for.
    pub op: Op,
}

/// What a command asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Something of a module, in its own words.
    Module {
        /// Number of the module.
        module: u8,
        /// The encoded command of the module.
        payload: Vec<u8>,
    },
    /// Nothing shall ever be decided under this request id, unless something was before. The answer is what was.
    Seal,
    /// The shard group's own business.
    System(SystemCommand),
}

/// Commands of the shard group itself. They are not remembered by request id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SystemCommand {
    /// Nothing but the entry's time: lets due holds end when nothing else flows.
    Tick,
    /// One part of a snapshot file to be restored.
    ImportChunk {
        /// Names the import.
        import: u128,
        /// Parts are numbered from 0.
        number: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Verifies the parts of an import and replaces the rows of the group by it: a new incarnation.
    ImportCommit {
        /// Names the import.
        import: u128,
        /// Number of parts.
        chunks: u32,
        /// Also when the group holds events.
        replace: bool,
    },
    /// Throws the parts of all imports away.
    ImportAbort,
    /// Raises the apply version; proposed when every member supports it. A build that does not halts.
    RaiseVersion(u32),
    /// Log time was ahead of the world: it is this one, Unix milliseconds.
    Rebase {
        /// The time by the clocks of a majority.
        log_ms: u64,
    },
    /// Messages of another group. From apply version 6 on, as all that follow.
    Deliver(Delivery),
    /// Another group has the messages before one of them.
    Acknowledge {
        /// The other group.
        group: GroupNo,
        /// Its incarnation, and this group's.
        pair: (u64, u64),
        /// The first message that it has not.
        next: u64,
    },
    /// The incarnation of another group.
    Meet {
        /// The other group.
        group: GroupNo,
        /// Its incarnation.
        incarnation: u64,
    },
    /// Carries a dead letter out once more, or drops it.
    Resolve {
        /// Which.
        key: DeadKey,
        /// It is to be dropped.
        drop: bool,
    },
    /// How attempts at effects have ended. From apply version 8 on.
    EndEffects(Vec<EffectEnd>),
}

/// How an attempt at an effect has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectEnd {
    /// Which.
    pub key: EffectKey,
    /// Attempts that had failed before this one.
    pub attempts: u32,
    /// `None`: it was done.
    pub failure: Option<Failure>,
}

/// Why an effect was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For people.
    pub why: String,
    /// It should not be tried before so long, milliseconds.
    pub after_ms: u64,
}

/// Messages from one group to another, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The group that sends.
    pub from: GroupNo,
    /// Its incarnation.
    pub from_incarnation: u64,
    /// Incarnation of the group that receives, as far as the sender knows; 0 when it does not.
    pub to_incarnation: u64,
    /// Number of the first message of this pair of incarnations.
    pub origin: u64,
    /// Hash over all messages before that.
    pub origin_chain: u64,
    /// Number of the first message.
    pub first: u64,
    /// Hash over all messages before it.
    pub chain: u64,
    /// Number of the first message of the receiver that the sender has not; 0 when it has none.
    pub received: u64,
    /// The messages.
    pub messages: Vec<Message>,
}

impl Delivery {
    /// Its bytes, as in the log.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer::new();
        self.encode(&mut w);
        w.into_bytes()
    }

    /// Whether the messages go on from where `chain` is the hash over all before number `received`, which is among them or the next.
    pub(crate) fn follows(&self, received: u64, chain: u64) -> bool {
        let Some(known) = received.checked_sub(self.first).map(|known| known as usize) else { return false };
        let before = self.messages.get(..known);
        before.is_some_and(|before| {
            before.iter().fold(self.chain, |chain, message| message.chain(chain)) == chain
        })
    }

    /// A delivery from its bytes.
    ///
    /// # Errors
    /// They are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let delivery = Self::decode(&mut r)?;
        r.finish()?;
        Ok(delivery)
    }

    fn encode(&self, w: &mut Writer) {
        w.u32(self.from);
        for number in [self.from_incarnation, self.to_incarnation, self.origin, self.first, self.received] {
            w.u64(number);
        }
        w.key_u64(self.origin_chain);
        w.key_u64(self.chain);
        w.seq(&self.messages, |w, message| message.encode(w));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let from = r.u32()?;
        let [from_incarnation, to_incarnation, origin, first, received] =
            [r.u64()?, r.u64()?, r.u64()?, r.u64()?, r.u64()?];
        Ok(Self {
            from,
            from_incarnation,
            to_incarnation,
            origin,
            first,
            received,
            origin_chain: r.key_u64()?,
            chain: r.key_u64()?,
            messages: r.seq(Message::decode)?,
        })
    }
}

/// The commands of one Raft entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Clock of the active when it made the entry.
    pub stamp: Stamp,
    /// In the order in which they are decided.
    pub commands: Vec<Command>,
}

impl Command {
    fn encode(&self, w: &mut Writer) {
        w.str(&self.principal);
        w.u128(self.request_id);
        w.u64(self.expires_ms);
        w.u32(self.roles.0);
        w.str(&self.on_behalf_of);
        w.key_u64(self.fingerprint);
        match &self.op {
            Op::System(command) => {
                w.u8(SYSTEM);
                command.encode(w);
            }
            Op::Module { module, payload } => {
                w.u8(MODULE);
                w.u8(*module);
                w.bytes(payload);
            }
            Op::Seal => w.u8(SEAL),
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            principal: r.str()?.to_owned(),
            request_id: r.u128()?,
            expires_ms: r.u64()?,
            roles: Roles(r.u32()?),
            on_behalf_of: r.str()?.to_owned(),
            fingerprint: r.key_u64()?,
            op: match r.u8()? {
                SYSTEM => Op::System(SystemCommand::decode(r)?),
                MODULE => Op::Module { module: r.u8()?, payload: r.bytes()?.to_vec() },
                SEAL => Op::Seal,
                tag => return Err(DecodeError::Tag { what: "kind of command", tag: tag.into() }),
            },
        })
    }

    /// About the bytes of its encoded form.
    pub fn bytes(&self) -> usize {
        /// Envelope and numbers.
        const FIXED: usize = 64;
        let op = match &self.op {
            Op::Module { payload, .. } => payload.len(),
            Op::System(SystemCommand::ImportChunk { bytes, .. }) => bytes.len(),
            Op::System(SystemCommand::Deliver(delivery)) => {
                delivery.messages.iter().map(Message::bytes).sum()
            }
            Op::System(SystemCommand::EndEffects(ends)) => {
                let failures = ends.iter().filter_map(|end| end.failure.as_ref());
                64 * ends.len() + failures.map(|failure| failure.why.len()).sum::<usize>()
            }
            Op::System(_) | Op::Seal => 0,
        };
        FIXED + self.principal.len() + self.on_behalf_of.len() + op
    }

    /// A command of a module as somebody sends it who has no client: fingerprint and payload say the same. For tests and tools.
    pub fn asking(principal: &str, request_id: u128, expires_ms: u64, command: &impl ModuleCommand) -> Self {
        let op = Op::of(command);
        let fingerprint = match &op {
            Op::Module { payload, .. } => crate::hash_64(payload),
            Op::Seal | Op::System(_) => 0,
        };
        let (roles, on_behalf_of) = (Roles::NONE, String::new());
        Self { principal: principal.to_owned(), request_id, expires_ms, roles, on_behalf_of, fingerprint, op }
    }

    /// A command of the group itself.
    pub fn system(op: SystemCommand) -> Self {
        Self {
            principal: String::new(),
            request_id: 0,
            expires_ms: u64::MAX,
            roles: Roles::NONE,
            on_behalf_of: String::new(),
            fingerprint: 0,
            op: Op::System(op),
        }
    }

    /// Who asks, as modules see it.
    pub(crate) fn caller(&self) -> Caller<'_> {
        let on_behalf_of = (!self.on_behalf_of.is_empty()).then_some(self.on_behalf_of.as_str());
        Caller { principal: &self.principal, roles: self.roles, on_behalf_of }
    }
}

impl Op {
    /// What a module's command asks for.
    pub fn of<C: ModuleCommand>(command: &C) -> Self {
        Self::Module { module: C::MODULE, payload: command.encode_to_vec() }
    }
}

impl SystemCommand {
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::Tick => w.u8(1),
            Self::ImportChunk { import, number, bytes } => {
                w.u8(2);
                w.u128(*import);
                w.u32(*number);
                w.bytes(bytes);
            }
            Self::ImportCommit { import, chunks, replace } => {
                w.u8(3);
                w.u128(*import);
                w.u32(*chunks);
                w.bool(*replace);
            }
            Self::ImportAbort => w.u8(4),
            Self::RaiseVersion(version) => {
                w.u8(5);
                w.u32(*version);
            }
            Self::Rebase { log_ms } => {
                w.u8(6);
                w.u64(*log_ms);
            }
            Self::Deliver(delivery) => {
                w.u8(7);
                delivery.encode(w);
            }
            Self::Acknowledge { group, pair, next } => {
                w.u8(8);
                w.u32(*group);
                w.u64(pair.0);
                w.u64(pair.1);
                w.u64(*next);
            }
            Self::Meet { group, incarnation } => {
                w.u8(9);
                w.u32(*group);
                w.u64(*incarnation);
            }
            Self::Resolve { key, drop } => {
                w.u8(10);
                w.u64(key.0);
                w.u64(key.1);
                w.u32(key.2);
                w.bool(*drop);
            }
            Self::EndEffects(ends) => {
                w.u8(11);
                w.seq(ends, |w, end| {
                    end.key.encode(w);
                    w.u32(end.attempts);
                    w.option(end.failure.as_ref(), |w, failure| {
                        w.str(&failure.why);
                        w.u64(failure.after_ms);
                    });
                });
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match r.u8()? {
            1 => Self::Tick,
            2 => Self::ImportChunk { import: r.u128()?, number: r.u32()?, bytes: r.bytes()?.to_vec() },
            3 => Self::ImportCommit { import: r.u128()?, chunks: r.u32()?, replace: r.bool()? },
            4 => Self::ImportAbort,
            5 => Self::RaiseVersion(r.u32()?),
            6 => Self::Rebase { log_ms: r.u64()? },
            7 => Self::Deliver(Delivery::decode(r)?),
            8 => Self::Acknowledge { group: r.u32()?, pair: (r.u64()?, r.u64()?), next: r.u64()? },
            9 => Self::Meet { group: r.u32()?, incarnation: r.u64()? },
            10 => Self::Resolve { key: (r.u64()?, r.u64()?, r.u32()?), drop: r.bool()? },
            11 => Self::EndEffects(r.seq(|r| {
                Ok(EffectEnd {
                    key: EffectKey::decode(r)?,
                    attempts: r.u32()?,
                    failure: r.option(|r| Ok(Failure { why: r.str()?.to_owned(), after_ms: r.u64()? }))?,
                })
            })?),
            tag => return Err(DecodeError::Tag { what: "system command", tag: tag.into() }),
        })
    }
}

impl Entry {
    /// Encodes the entry.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::over(Vec::with_capacity(16 + self.commands.len() * 128));
        w.u8(ENTRY_FORMAT);
        w.u64(self.stamp.ms);
        w.bool(self.stamp.confirmed);
        w.seq(&self.commands, |w, command| command.encode(w));
        w.into_bytes()
    }

    /// Highest apply version that a command of the entry raises the rows to.
    pub(crate) fn raises_to(&self) -> Option<u32> {
        let versions = self.commands.iter().filter_map(|command| match &command.op {
            Op::System(SystemCommand::RaiseVersion(version)) => Some(*version),
            _ => None,
        });
        versions.max()
    }

    /// Decodes an entry.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let version = r.u8()?;
        if version != ENTRY_FORMAT {
            return Err(DecodeError::Tag { what: "entry format", tag: version.into() });
        }
        let stamp = Stamp { ms: r.u64()?, confirmed: r.bool()? };
        let entry = Self { stamp, commands: r.seq(Command::decode)? };
        r.finish()?;
        Ok(entry)
    }
}
