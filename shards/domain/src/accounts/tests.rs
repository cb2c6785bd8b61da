//! Properties of the accounts module: whatever is asked in whatever order, the invariants hold over all rows, rejections change
//! nothing, and no attempt and no refresh counts twice.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::Message as _;
use tidewall_messages::accounts::outcome::Result as Done;
use tidewall_messages::accounts::{self as messages, Command, Query, answer};

use super::model::*;
use super::*;
use crate::Roles;
use crate::module::{AnyModule, Reason as _, apply, fire_next, looked_at};

struct World {
    state: State,
    context: Context,
}

fn world() -> World {
    let context = Context {
        now_ms: 1_000_000,
        steady_ms: 1_000,
        incarnation: 1,
        request_id: 1,
        index: 1,
        position: 0,
        apply_version: 2,
    };
    World { state: State::default(), context }
}

fn email(name: &str) -> Vec<u8> {
    let mut hash = [0; 32];
    hash[..name.len()].copy_from_slice(name.as_bytes());
    hash.to_vec()
}

fn credential(password: &str) -> messages::Credential {
    let hash = format!("{password:16}").into_bytes();
    messages::Credential { pepper: 1, memory_kib: 8, passes: 1, lanes: 1, salt: vec![7; 16], hash }
}

fn sealed(field: u32, text: &str) -> messages::Sealed {
    messages::Sealed { field, ciphertext: text.as_bytes().to_vec() }
}

fn register(name: &str, password: &str) -> messages::Register {
    messages::Register {
        email_hash: email(name),
        key_id: vec![1; 16],
        personal: vec![sealed(2, name)],
        credential: Some(credential(password)),
        region: "regions/north".into(),
        claim_group: 0,
    }
}

fn attempt(name: &str) -> messages::CountAttempt {
    messages::CountAttempt { email_hash: email(name) }
}

fn start(name: &str, revision: u64, session: u8) -> messages::StartSession {
    messages::StartSession {
        email_hash: email(name),
        credential_revision: revision,
        session_id: vec![session; 16],
        token_hash: token(session, 1),
        device: None,
    }
}

/// The hash of a session's token of a generation.
fn token(session: u8, generation: u64) -> Vec<u8> {
    let mut hash = vec![session; 32];
    hash[..8].copy_from_slice(&generation.to_be_bytes());
    hash
}

fn refresh(account: &str, session: u8, generation: u64) -> messages::RefreshSession {
    messages::RefreshSession {
        account_id: account.into(),
        session_id: vec![session; 16],
        generation,
        token_hash: token(session, generation),
        next_hash: token(session, generation + 1),
    }
}

fn end(account: &str, session: u8, token_hash: Vec<u8>) -> messages::EndSession {
    messages::EndSession { account_id: account.into(), session_id: vec![session; 16], token_hash }
}

fn password(account: &str, revision: u64, new: &str, kept: &[u8]) -> messages::ChangePassword {
    messages::ChangePassword {
        account_id: account.into(),
        credential_revision: revision,
        credential: Some(credential(new)),
        kept_session_id: kept.iter().flat_map(|session| [*session; 16]).collect(),
    }
}

fn roles(account: &str, granted: Roles, withdrawn: Roles) -> messages::ChangeRoles {
    messages::ChangeRoles { account_id: account.into(), granted: granted.0, withdrawn: withdrawn.0 }
}

impl World {
    /// Has a command decided, and checks that a rejection has changed nothing.
    fn ask(&mut self, principal: &str, roles: Roles, command: impl Into<Command>) -> Result<Done, Rejection> {
        self.context.index += 1;
        self.context.request_id += 1;
        let any: &dyn AnyModule = &self.state;
        let before = any.digest();
        let caller = Caller { principal, roles, on_behalf_of: None };
        let answer = apply(&mut self.state, &self.context, caller, &command.into()).unwrap();
        let any: &dyn AnyModule = &self.state;
        assert!(answer.is_ok() || any.digest() == before, "a rejection has changed rows");
        answer.map(|outcome| outcome.result.unwrap())
    }

    /// As nobody in particular: who has no token yet.
    fn anybody(&mut self, command: impl Into<Command>) -> Result<Done, Rejection> {
        self.ask("?", Roles::NONE, command)
    }

    fn pass(&mut self, ms: u64) {
        self.context.steady_ms += ms;
        self.context.now_ms += ms;
    }

    fn read(&self, query: impl Into<Query>) -> answer::Result {
        let now = Now { log_ms: self.context.now_ms, steady_ms: self.context.steady_ms };
        Module::query(&self.state, now, &query.into()).unwrap().result.unwrap()
    }

    fn sessions(&self, account: &str) -> usize {
        match self.read(messages::ListSessions { account_id: account.into() }) {
            answer::Result::Sessions(list) => list.sessions.len(),
            other => panic!("{other:?}"),
        }
    }

    /// Checks the invariants over all rows.
    fn check_all(&self) {
        let state = &self.state;
        assert_eq!(state.emails.len(), state.accounts.len());
        let mut admins = 0;
        for (no, row) in state.accounts.iter() {
            assert_eq!(state.emails.get(&row.email), Some(&EmailRow(*no)), "A1");
            assert!(row.roles.contains(Roles::USER) && ROLES.contains(row.roles), "A4");
            admins += u64::from(row.roles.contains(Roles::ADMIN));
        }
        assert_eq!(state.counter(COUNTER_ADMINS), admins);
        let mut sessions: BTreeMap<AccountNo, usize> = BTreeMap::new();
        for (key, row) in state.sessions.iter() {
            assert!(state.accounts.get(&key.0).is_some() && row.generation > 0, "A2");
            *sessions.entry(key.0).or_default() += 1;
        }
        assert!(sessions.values().all(|count| *count <= SESSIONS_MAX), "A2");
        assert!(state.attempts.iter().all(|(_, row)| (1..=ATTEMPTS_MAX).contains(&row.count)));
    }
}

fn granted(done: Result<Done, Rejection>) -> messages::SessionGranted {
    match done {
        Ok(Done::SessionGranted(granted)) => granted,
        other => panic!("{other:?}"),
    }
}

/// Somebody with a session of this number; gives the account's id.
fn logged_in(world: &mut World, name: &str, session: u8) -> String {
    world.anybody(register(name, "one")).unwrap();
    granted(world.anybody(start(name, 1, session))).account_id
}

const REUSED: Done = Done::SessionEnded(messages::SessionEnded { reused: true });
const ENDED: Done = Done::SessionEnded(messages::SessionEnded { reused: false });

#[test]
fn an_email_has_one_account_and_who_asks_again_learns_nothing_and_changes_nothing() {
    let mut world = world();
    let Ok(Done::Registered(first)) = world.anybody(register("ann", "one")) else { panic!() };
    assert_eq!(first.account_id, "a1");
    let Ok(Done::Registered(second)) = world.anybody(register("ann", "two")) else { panic!() };
    assert_eq!(second.account_id, "", "the gateway hides both alike");
    let answer::Result::Credential(found) = world.read(messages::GetCredential { email_hash: email("ann") })
    else {
        panic!()
    };
    assert_eq!((found.credential, found.credential_revision), (Some(credential("one")), 1));
    let answer::Result::Credential(nobody) = world.read(messages::GetCredential { email_hash: email("bob") })
    else {
        panic!()
    };
    assert_eq!(nobody, messages::CredentialView::default());
    (0..ATTEMPTS_MAX).for_each(|_| drop(world.anybody(attempt("bob"))));
    let exhausted = world.read(messages::GetCredential { email_hash: email("bob") });
    assert!(
        matches!(exhausted, answer::Result::Credential(view) if view.exhausted),
        "known before anything is hashed"
    );
    // A later life of the rows gives no number twice.
    world.context.incarnation = 2;
    let Ok(Done::Registered(later)) = world.anybody(register("bob", "one")) else { panic!() };
    assert!(
        parse_id(&later.account_id).unwrap() > crate::incarnation::NUMBERS_PER_INCARNATION,
        "{}",
        later.account_id
    );
    world.check_all();
}

#[test]
fn attempts_are_counted_before_they_are_made_for_whoever_exists_or_not() {
    for name in ["ann", "nobody"] {
        let mut world = world();
        world.anybody(register("ann", "one")).unwrap();
        for _ in 0..ATTEMPTS_MAX {
            world.anybody(attempt(name)).unwrap();
        }
        let until = world.context.now_ms + ATTEMPTS_WINDOW_MS;
        assert_eq!(world.anybody(attempt(name)), Err(Rejection::TooManyAttempts(until)));
        let now = Now { log_ms: world.context.now_ms, steady_ms: world.context.steady_ms };
        let quick = Module::quick_no(&world.state, now, &attempt(name).into());
        assert_eq!(quick, Some(Rejection::TooManyAttempts(until)), "said without the log as well");
        assert_eq!(Module::quick_no(&world.state, now, &attempt("other").into()), None);
        world.pass(ATTEMPTS_WINDOW_MS - 1);
        assert!(world.anybody(attempt(name)).is_err());
        world.pass(1);
        // The timer has not fired.
        world.anybody(attempt(name)).unwrap();
        assert_eq!(world.state.attempts.get(&email(name).try_into().unwrap()).unwrap().count, 1);
    }
    let mut world = world();
    logged_in(&mut world, "ann", 1);
    (0..ATTEMPTS_MAX).for_each(|_| drop(world.anybody(attempt("ann"))));
    granted(world.anybody(start("ann", 1, 2)));
    assert!(world.anybody(attempt("ann")).is_ok(), "a log-in forgets them");
    world.pass(ATTEMPTS_WINDOW_MS);
    assert!(fire_next(&mut world.state, &world.context).is_some_and(|fired| fired.fault.is_none()));
    assert!(world.state.attempts.is_empty());
}

#[test]
fn a_token_gives_the_next_one_once_more_when_its_answer_was_lost_and_ends_the_session_when_it_was_copied() {
    let mut world = world();
    let ann = logged_in(&mut world, "ann", 1);
    let second = granted(world.anybody(refresh(&ann, 1, 1)));
    assert_eq!(second.generation, 2);
    world.pass(REFRESH_AGAIN_MS - 1);
    assert_eq!(granted(world.anybody(refresh(&ann, 1, 1))).generation, 2, "the answer was lost");
    assert_eq!(world.sessions(&ann), 1, "nobody is logged out");
    world.pass(1);
    assert_eq!(world.anybody(refresh(&ann, 1, 1)), Ok(REUSED), "a minute later it was copied");
    assert_eq!(world.sessions(&ann), 0);
    assert_eq!(world.anybody(refresh(&ann, 1, 2)), Err(Rejection::SessionInvalid), "for the thief as well");
    granted(world.anybody(start("ann", 1, 2)));
    granted(world.anybody(refresh(&ann, 2, 1)));
    granted(world.anybody(refresh(&ann, 2, 2)));
    assert_eq!(world.anybody(refresh(&ann, 2, 1)), Ok(REUSED), "older than the last, at once");
    granted(world.anybody(start("ann", 1, 3)));
    for forged in [
        messages::RefreshSession { token_hash: token(9, 1), ..refresh(&ann, 3, 1) },
        refresh(&ann, 3, 7),
        refresh(&ann, 3, 0),
        refresh(&ann, 9, 1),
        refresh("a77", 3, 1),
    ] {
        assert_eq!(world.anybody(forged), Err(Rejection::SessionInvalid));
    }
    assert_eq!(world.sessions(&ann), 1, "what is no copy ends nothing");
}

#[test]
fn sessions_end_by_themselves_by_hand_and_when_there_are_too_many() {
    let mut world = world();
    let ann = logged_in(&mut world, "ann", 0);
    for session in 1..=SESSIONS_MAX as u8 {
        world.pass(1_000);
        granted(world.anybody(start("ann", 1, session)));
    }
    assert_eq!(world.sessions(&ann), SESSIONS_MAX);
    assert!(world.anybody(refresh(&ann, 0, 1)).is_err(), "the oldest gave way");
    let subject = "regions/north/accounts/a1";
    let theirs = end(&ann, 1, Vec::new());
    assert!(matches!(world.ask("bob", Roles::SELLER, theirs.clone()), Err(Rejection::NotOwner(_))));
    assert_eq!(world.anybody(end(&ann, 1, token(9, 9))), Err(Rejection::SessionInvalid));
    assert_eq!(world.anybody(end(&ann, 1, token(1, 1))), Ok(ENDED));
    assert_eq!(world.anybody(end(&ann, 1, token(1, 1))), Ok(ENDED), "as often as one likes");
    assert_eq!(world.ask(subject, Roles::USER, end(&ann, 2, Vec::new())), Ok(ENDED));
    assert_eq!(world.ask("helper", Roles::SUPPORT, end(&ann, 3, Vec::new())), Ok(ENDED));
    assert_eq!(world.sessions(&ann), SESSIONS_MAX - 3);
    world.pass(1);
    granted(world.anybody(refresh(&ann, 4, 1)));
    world.pass(SESSION_IDLE_MS - 1);
    assert_eq!(world.sessions(&ann), 1, "ended ones are not shown, whether their timers have fired or not");
    granted(world.anybody(refresh(&ann, 4, 2)));
    while Module::due_ms(&world.state).is_some_and(|due| due <= world.context.steady_ms) {
        assert_eq!(fire_next(&mut world.state, &world.context).unwrap().fault, None);
    }
    assert_eq!(world.state.sessions.len(), 1);
    for generation in 3.. {
        world.pass(SESSION_IDLE_MS - 1);
        if world.anybody(refresh(&ann, 4, generation)).is_err() {
            break;
        }
        assert!(generation < 20, "a session does not live for ever");
    }
    world.check_all();
}

#[test]
fn a_new_password_ends_all_other_sessions_and_nobody_gets_in_with_the_old_one() {
    let mut world = world();
    let ann = logged_in(&mut world, "ann", 1);
    let subject = "regions/north/accounts/a1";
    (2..5).for_each(|session| drop(granted(world.anybody(start("ann", 1, session)))));
    assert!(matches!(world.anybody(password(&ann, 1, "two", &[])), Err(Rejection::NotOwner(_))));
    world.ask(subject, Roles::USER, password(&ann, 1, "two", &[3])).unwrap();
    assert_eq!(world.sessions(&ann), 1);
    granted(world.anybody(refresh(&ann, 3, 1)));
    // A gateway has checked the old password just before.
    assert_eq!(world.anybody(start("ann", 1, 7)), Err(Rejection::LogInFailed));
    assert_eq!(world.anybody(start("bob", 1, 7)), Err(Rejection::LogInFailed), "in the same words");
    let again = world.ask(subject, Roles::USER, password(&ann, 1, "three", &[]));
    assert_eq!(again, Err(Rejection::PasswordChanged));
    world.check_all();
}

#[test]
fn only_admins_change_roles_and_one_is_always_left() {
    let mut world = world();
    let ann = logged_in(&mut world, "ann", 1);
    let bob = logged_in(&mut world, "bob", 1);
    let bootstrap = messages::BootstrapAdmin { account_id: ann.clone() };
    assert_eq!(world.anybody(bootstrap.clone()), Err(Rejection::RoleRequired("admin")));
    world.ask("operator", Roles::ADMIN, bootstrap.clone()).unwrap();
    assert_eq!(world.ask("operator", Roles::ADMIN, bootstrap), Err(Rejection::AdminExists));
    let admin = roles(&bob, Roles::ADMIN, Roles::NONE);
    assert!(world.ask("regions/north/accounts/a2", Roles::OPERATOR, admin.clone()).is_err());
    let last = roles(&ann, Roles::NONE, Roles::ADMIN);
    assert!(matches!(world.ask("ann", Roles::ADMIN, last.clone()), Err(Rejection::LastAdmin(_))));
    world.ask("ann", Roles::ADMIN, admin.clone()).unwrap();
    world.ask("ann", Roles::ADMIN, admin).unwrap();
    world.ask("ann", Roles::ADMIN, last).unwrap();
    assert_eq!(world.state.counter(COUNTER_ADMINS), 1);
    for senseless in [
        roles(&bob, Roles::NONE, Roles::USER),
        roles(&bob, Roles(1 << 20), Roles::NONE),
        roles(&bob, Roles::SELLER, Roles::SELLER),
        roles(&bob, Roles::NONE, Roles::NONE),
    ] {
        assert!(matches!(world.ask("bob", Roles::ADMIN, senseless), Err(Rejection::Invalid { .. })));
    }
    world.ask("bob", Roles::ADMIN, roles(&bob, Roles::ORGANISER, Roles::NONE)).unwrap();
    let refreshed = granted(world.anybody(refresh(&bob, 1, 1)));
    assert_eq!(refreshed.roles, Roles::USER.0 | Roles::ADMIN.0 | Roles::ORGANISER.0);
    world.check_all();
}

#[test]
fn a_profile_is_changed_field_by_field_by_its_owner() {
    let mut world = world();
    let ann = logged_in(&mut world, "ann", 1);
    let subject = "regions/north/accounts/a1";
    let update = |revision, fields: Vec<messages::Sealed>| messages::UpdateProfile {
        account_id: ann.clone(),
        personal: fields,
        expected_revision: revision,
    };
    assert!(world.ask("bob", Roles::ADMIN, update(0, vec![sealed(3, "de")])).is_err(), "not even an admin");
    let Ok(Done::Account(view)) = world.ask(subject, Roles::USER, update(1, vec![sealed(3, "de")])) else {
        panic!()
    };
    assert_eq!((view.personal, view.revision), (vec![sealed(2, "ann"), sealed(3, "de")], 2));
    let late = world.ask(subject, Roles::USER, update(1, vec![sealed(2, "Ann")]));
    assert_eq!(late, Err(Rejection::RevisionMismatch { expected: 1, actual: 2 }));
    let many = (1..=PERSONAL_MAX as u32 + 1).map(|field| sealed(field, "x")).collect();
    assert!(world.ask(subject, Roles::USER, update(0, many)).is_err());
    let long = "x".repeat(CIPHERTEXT_MAX + 1);
    assert!(world.ask(subject, Roles::USER, update(0, vec![sealed(2, &long)])).is_err());
}

#[test]
fn an_account_has_one_spelling_and_no_actor_of_its_own() {
    let mut world = world();
    logged_in(&mut world, "ann", 1);
    assert!(world.state.account("a1").is_some() && !Module::has_row(&world.state, "a1"));
    for other in ["", "1", "a", "a01", "a2", "a+1", "b1", "a0"] {
        assert!(world.state.account(other).is_none(), "{other}");
    }
}

/// Rows that have come to nothing are shelved, and delay no other.
#[test]
fn a_timer_that_cannot_fire_is_put_aside() {
    let mut world = world();
    let ann = logged_in(&mut world, "ann", 1);
    world.anybody(attempt("ann")).unwrap();
    let key = (parse_id(&ann).unwrap(), u128::from_be_bytes([1; 16]));
    let hash: Digest = email("ann").try_into().unwrap();
    world.state.shelve(Timer::Session(key));
    world.state.shelve(Timer::Attempts(hash));
    assert_eq!(Module::due_ms(&world.state), None);
    assert_eq!(world.sessions(&ann), 0);
    assert!(world.anybody(refresh(&ann, 1, 1)).is_err());
}

/// What a command looks at goes by its own size, however many accounts and sessions there are.
#[test]
fn the_cost_of_a_command_does_not_grow_with_the_rows() {
    let costs = |accounts: u32| {
        let mut world = world();
        for number in 0..accounts {
            let name = format!("u{number}");
            let account = logged_in(&mut world, &name, 1);
            for session in 2..=SESSIONS_MAX as u8 {
                world.anybody(start(&name, 1, session)).unwrap();
            }
            world.anybody(attempt(&name)).unwrap();
            assert!(!account.is_empty());
        }
        let subject = "regions/north/accounts/a9";
        let commands: Vec<Command> = vec![
            register("new", "one").into(),
            register("u1", "one").into(),
            attempt("u8").into(),
            start("u8", 1, 99).into(),
            refresh("a9", 5, 1).into(),
            end("a9", 5, Vec::new()).into(),
            password("a9", 1, "two", &[6]).into(),
            roles("a9", Roles::ADMIN, Roles::NONE).into(),
        ];
        let cost = |command: Command| {
            let before = looked_at(&world.state);
            world.ask(subject, Roles::ADMIN, command).unwrap();
            looked_at(&world.state) - before
        };
        commands.into_iter().map(cost).collect::<Vec<u64>>()
    };
    let (few, many) = (costs(16), costs(400));
    assert_eq!(few, many);
    assert!(few.iter().all(|cost| *cost < 400), "{few:?}");
}

/// What is remembered of a "no" is rows: its words are part of them. A figure here changes only together with an apply version, under
/// which the new words begin.
#[test]
fn rejections_have_the_bytes_that_they_always_had() {
    let id = || "a1".to_owned();
    let rejections = [
        Rejection::AccountNotFound(id()),
        Rejection::TooManyAttempts(5),
        Rejection::LogInFailed,
        Rejection::SessionInvalid,
        Rejection::PasswordChanged,
        Rejection::NotOwner(id()),
        Rejection::RoleRequired("admin"),
        Rejection::RevisionMismatch { expected: 7, actual: 8 },
        Rejection::AdminExists,
        Rejection::LastAdmin(id()),
        Rejection::Invalid { field: "field", why: id() },
    ];
    let bytes: Vec<u8> =
        rejections.iter().flat_map(|rejection| rejection.rejection().encode_to_vec()).collect();
    assert_eq!(
        xxhash_rust::xxh3::xxh3_64(&bytes),
        960_392_784_869_857_367,
        "see above before you change this"
    );
}

#[derive(Debug, Clone)]
enum Step {
    Register(u8),
    Attempt(u8),
    Start(u8, u64, u8),
    Refresh(u8, u8, u64),
    End(u8, u8, bool),
    Password(u8, u64, u8),
    Roles(u8, u32, u32),
    Pass(u64),
    Fire,
}

fn step() -> impl Strategy<Value = Step> {
    let role = || prop_oneof![Just(0u32), Just(64), Just(1), Just(16), Just(8), Just(1 << 9)];
    prop_oneof![
        3 => (0..5u8).prop_map(Step::Register),
        3 => (0..5u8).prop_map(Step::Attempt),
        6 => (0..5u8, 1..4u64, 0..30u8).prop_map(|(a, r, s)| Step::Start(a, r, s)),
        6 => (0..5u8, 0..30u8, 0..4u64).prop_map(|(a, s, g)| Step::Refresh(a, s, g)),
        2 => (0..5u8, 0..30u8, any::<bool>()).prop_map(|(a, s, t)| Step::End(a, s, t)),
        1 => (0..5u8, 1..4u64, 0..30u8).prop_map(|(a, r, s)| Step::Password(a, r, s)),
        2 => (0..5u8, role(), role()).prop_map(|(a, g, w)| Step::Roles(a, g, w)),
        2 => prop_oneof![Just(1_000), Just(ATTEMPTS_WINDOW_MS), Just(SESSION_IDLE_MS)].prop_map(Step::Pass),
        2 => Just(Step::Fire),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn whatever_is_asked_the_invariants_hold_and_stored_rows_are_the_same(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = world();
        for step in steps {
            let account = |number: u8| format!("a{}", number + 1);
            let name = |number: u8| format!("u{number}");
            let answer = match step {
                Step::Register(a) => world.anybody(register(&name(a), "one")),
                Step::Attempt(a) => world.anybody(attempt(&name(a))),
                Step::Start(a, r, s) => world.anybody(start(&name(a), r, s)),
                Step::Refresh(a, s, g) => world.anybody(refresh(&account(a), s, g)),
                Step::End(a, s, true) => world.anybody(end(&account(a), s, token(s, 1))),
                Step::End(a, s, false) => world.ask("helper", Roles::SUPPORT, end(&account(a), s, Vec::new())),
                Step::Password(a, r, s) => {
                    let subject = format!("regions/north/accounts/{}", account(a));
                    world.ask(&subject, Roles::USER, password(&account(a), r, "two", &[s]))
                }
                Step::Roles(a, g, w) => world.ask("admin", Roles::ADMIN, roles(&account(a), Roles(g), Roles(w))),
                Step::Pass(ms) => {
                    world.pass(ms);
                    continue;
                }
                Step::Fire => {
                    if let Some(fired) = fire_next(&mut world.state, &world.context) {
                        prop_assert!(fired.fault.is_none());
                    }
                    continue;
                }
            };
            drop(answer);
            world.check_all();
        }
        let mut again = State::default();
        let (mut pages, mut copy) = (Vec::new(), BTreeMap::new());
        let any: &dyn AnyModule = &world.state;
        any.freeze_all(&mut pages);
        for page in pages {
            copy.entry(page.table()).or_insert_with(Vec::new).push(page.encode().unwrap());
        }
        Module::tables_mut(&mut again, &mut |table| {
            copy.remove(&table.id()).into_iter().flatten().for_each(|page| table.load(&page).unwrap());
        });
        let again: &dyn AnyModule = &again;
        prop_assert_eq!((again.digest(), again.due_ms()), (any.digest(), any.due_ms()));
    }
}
