//! Defects that can be switched on, so that the simulation can prove that it would find them.
//!
//! A check that has never failed proves little. Each [`Mutant`] is a mistake that somebody could make in the place
//! that asks for it by [`active`]. Without `--cfg tidewall_mutants`, which only the simulation is built with,
//! [`active`] is a constant `false` and nothing of a mutant is in the program.
//!
//! **Never here:** anything else. Every crate may use this one, the deterministic core included, so it knows nothing
//! and depends on nothing.

/// A mistake, in the words of who would have made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// The log reports an append as durable before its barrier.
    AcknowledgeBeforeFsync,
    /// The log calls a vote saved that never reaches the disk before the entries of its term do.
    VoteAfterEntries,
    /// A repetition of a request is executed again.
    ReplayAppliedTwice,
    /// Checkpoints and snapshots leave the remembered outcomes out.
    DedupeMissingFromSnapshot,
    /// Apply compares deadlines with the clock of the machine it runs on.
    ExpiryByWallClock,
    /// Apply runs the commands of an entry in the order of a hash map.
    HashOrderInApply,
    /// Leadership is taken for granted where it should be confirmed.
    ReadWithoutLease,
    /// A row actor remembers that a tier was sold out and refuses by that.
    StockDecidedOutsideApply,
    /// A snapshot leaves out a field that no digest covers: the chain hash.
    FieldMissingInSnapshot,
    /// The client of the shards never gives up a leader it once believed in.
    StaleRouteServed,
    /// The state digest leaves out the tables of the modules.
    DigestMissesModules,
    /// A request that is lost with its actor is answered as a success.
    LostMailboxIsSuccess,
    /// A call that may have arrived is reported as one that did not.
    UnknownReportedAsFailed,
    /// A seal is answered and not remembered: a late copy of the request is decided all the same.
    SealForgotten,
    /// A node is believed whatever state of its data it comes with.
    StaleDataBelieved,
    /// A stamp that leaps ahead is followed although no majority of clocks confirms it.
    LeapFollowed,
    /// An item of a batch is refused without the log.
    BatchGetsQuickNo,
    /// An import forgets which request ids were used before it.
    ImportForgetsIds,
    /// A forced recovery goes on from the rows, without the log behind them.
    RecoveryDropsLog,
    /// A request id is guarded by what a gateway built, not by what the client sent.
    IdGuardedByPayload,
    /// A refresh token that was used long ago gives tokens all the same.
    CopiedTokenAccepted,
    /// A key counts as kept when one node has it.
    KeyOnOneNode,
    /// An attempt at a password is allowed and not counted.
    AttemptNotCounted,
    /// A region gets a first admin although it has one.
    SecondFirstAdmin,
    /// A session that is ended lives on.
    EndedSessionLives,
    /// Whoever knows a hold may confirm it.
    HoldOfAnybody,
    /// An event is deleted although places of it were sold.
    UsedEventDeleted,
    /// A search goes on behind the first ticket that did not fit into its page.
    SearchSkipsATicket,
    /// A message of another group is applied twice.
    MessageAppliedTwice,
    /// Messages are let go that the other group has not acknowledged.
    OutboxTrimmedTooEarly,
    /// A new active passes over the messages that the old one has not delivered.
    MessageLostAtLeadChange,
    /// Messages of a saga go on although one before them was set aside.
    DeadLetterPassed,
    /// A dead letter that was dropped stays.
    DroppedLetterStays,
    /// An e-mail is granted to whoever asks.
    EmailGrantedTwice,
    /// A claim that nobody wants any more stays.
    ClaimStays,
    /// Whoever watches and has fallen behind goes on with what is at hand.
    WatchSkipsAhead,
    /// Whoever watches is told again what was told before.
    WatchRepeats,
    /// Whoever watches is shown what concerns others.
    WatchShowsOthers,
    /// What a timer does is told to nobody.
    TimerNotTold,
    /// Whoever asks for what is not kept any more is told what comes after it.
    GapIsPassedOver,
    /// Modules hear the first change of each entry only.
    OneChangeOfAnEntryHeard,
    /// All effects of a queue are due at once.
    QueueOvertaken,
    /// The end of an effect is taken for that of another one.
    AnotherEffectDone,
    /// An effect that has failed counts as done.
    FailedEffectDone,
    /// Each attempt at an effect has a name of its own.
    /// Each attempt at an effect has a name of its own.
    EffectRenamed,
    /// Webhooks are told what concerns others.
    WebhookHearsOthers,
    /// Deliveries are signed with the secret of no webhook.
    SignedForNobody,
    /// A secret that is changed stays the same.
    OldSecretComesBack,
    /// A standby answers whatever it is asked, however far it has come.
    StandbyReadsBehind,
    /// A gateway asks standbys without saying what its caller has seen.
    SeenForgotten,
    /// Whatever a region has told once counts as fresh for ever.
    AlwaysFresh,
    /// The time of a read goes back behind what was seen.
    TimeSeenForgotten,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 52] = [
        Self::AcknowledgeBeforeFsync,
        Self::VoteAfterEntries,
        Self::ReplayAppliedTwice,
        Self::DedupeMissingFromSnapshot,
        Self::ExpiryByWallClock,
        Self::HashOrderInApply,
        Self::ReadWithoutLease,
        Self::StockDecidedOutsideApply,
        Self::FieldMissingInSnapshot,
        Self::StaleRouteServed,
        Self::DigestMissesModules,
        Self::LostMailboxIsSuccess,
        Self::UnknownReportedAsFailed,
        Self::SealForgotten,
        Self::StaleDataBelieved,
        Self::LeapFollowed,
        Self::BatchGetsQuickNo,
        Self::ImportForgetsIds,
        Self::RecoveryDropsLog,
        Self::IdGuardedByPayload,
        Self::CopiedTokenAccepted,
        Self::KeyOnOneNode,
        Self::AttemptNotCounted,
        Self::SecondFirstAdmin,
        Self::EndedSessionLives,
        Self::HoldOfAnybody,
        Self::UsedEventDeleted,
        Self::SearchSkipsATicket,
        Self::MessageAppliedTwice,
        Self::OutboxTrimmedTooEarly,
        Self::MessageLostAtLeadChange,
        Self::DeadLetterPassed,
        Self::DroppedLetterStays,
        Self::EmailGrantedTwice,
        Self::ClaimStays,
        Self::WatchSkipsAhead,
        Self::WatchRepeats,
        Self::WatchShowsOthers,
        Self::TimerNotTold,
        Self::GapIsPassedOver,
        Self::OneChangeOfAnEntryHeard,
        Self::QueueOvertaken,
        Self::AnotherEffectDone,
        Self::FailedEffectDone,
        Self::EffectRenamed,
        Self::WebhookHearsOthers,
        Self::SignedForNobody,
        Self::OldSecretComesBack,
        Self::StandbyReadsBehind,
        Self::SeenForgotten,
        Self::AlwaysFresh,
        Self::TimeSeenForgotten,
    ];
}

#[cfg(tidewall_mutants)]
mod switch {
    use super::Mutant;
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
        static WALL_CLOCK: Cell<fn() -> u64> = const { Cell::new(|| 0) };
    }

    /// Whether a defect is switched on for this thread.
    pub fn active(mutant: Mutant) -> bool {
        ACTIVE.get() == Some(mutant)
    }

    /// Switches a defect on for this thread, and whichever was on before off.
    pub fn activate(mutant: Option<Mutant>) {
        ACTIVE.set(mutant);
    }

    /// The machine's clock, ms since 1970, for a defect that looks at it where nobody may.
    pub fn wall_clock_ms() -> u64 {
        WALL_CLOCK.get()()
    }

    /// Sets what [`wall_clock_ms`] looks at.
    pub fn set_wall_clock(clock: fn() -> u64) {
        WALL_CLOCK.set(clock);
    }
}

#[cfg(tidewall_mutants)]
pub use switch::{activate, active, set_wall_clock, wall_clock_ms};

/// Whether a defect is switched on: never in this build.
#[cfg(not(tidewall_mutants))]
#[inline]
pub const fn active(_: Mutant) -> bool {
    false
}
