//! The saga of an e-mail over several groups: whatever dies, is lost, repeated or goes back to an earlier state, an e-mail has one
//! account in all of them or none, and no claim stays that nobody wants.

use std::collections::{BTreeMap, BTreeSet};

use tidewall_domain::accounts::model::{Digest, Kept, Wish};
use tidewall_domain::outbox::GroupNo;
use tidewall_domain::{accounts, registry};
use tidewall_messages::Change;
use tidewall_messages::accounts::change::What;
use tidewall_messages::accounts::{self as messages, ClaimingState, answer, outcome};

use super::groups::Groups;
use super::*;

const GROUPS: GroupNo = 3;
/// Longer than a wish may wait, and a claim may be unconfirmed.
const LONG_MS: u64 = 61_000;

fn email(number: u8) -> Vec<u8> {
    vec![number; 32]
}

fn keeper(number: u8) -> GroupNo {
    1 + GroupNo::from(number) % GROUPS
}

fn register(number: u8) -> messages::Command {
    let credential = messages::Credential { salt: vec![7; 16], hash: vec![8; 16], ..Default::default() };
    messages::Command::from(messages::Register {
        email_hash: email(number),
        key_id: vec![1; 16],
        personal: vec![messages::Sealed { field: 1, ciphertext: vec![number] }],
        credential: Some(credential),
        region: "regions/r".into(),
        claim_group: keeper(number),
    })
}

fn change(account: u64, number: u8) -> messages::Command {
    messages::Command::from(messages::ChangeEmail {
        account_id: format!("a{account}"),
        credential_revision: 1,
        email_hash: email(number),
        email: Some(messages::Sealed { field: 1, ciphertext: vec![number] }),
        claim_group: keeper(number),
    })
}

fn world() -> Groups {
    Groups::new(GROUPS, registry::modules)
}

fn rows(groups: &Groups, group: GroupNo) -> &accounts::State {
    groups.rows(group).rows_of().unwrap()
}

fn claim_id(decision: &Decision) -> Vec<u8> {
    let Answer::Done { outcome, .. } = &decision.answer else { panic!("{decision:?}") };
    match messages::Outcome::decode(&outcome[..]).unwrap().result {
        Some(outcome::Result::Claiming(claiming)) => claiming.claim_id,
        other => panic!("{other:?}"),
    }
}

fn state(groups: &Groups, group: GroupNo, claim_id: &[u8]) -> ClaimingState {
    let query = messages::Query::from(messages::GetClaiming { claim_id: claim_id.to_vec() }).encode_to_vec();
    let answer = groups.rows(group).query(messages::MODULE, &query, Stamp::confirmed(groups.now_ms).into());
    match messages::Answer::decode(&answer.unwrap().unwrap()[..]).unwrap().result {
        Some(answer::Result::Claiming(view)) => view.state(),
        other => panic!("{other:?}"),
    }
}

/// Accounts by e-mail, over all groups.
fn holders(groups: &Groups) -> BTreeMap<Digest, Vec<(GroupNo, u64)>> {
    let mut holders: BTreeMap<Digest, Vec<_>> = BTreeMap::new();
    for group in groups.numbers() {
        for (account, row, _) in rows(groups, group).all() {
            holders.entry(row.email).or_default().push((group, account));
        }
    }
    holders
}

/// Comes to rest, and stays so for long.
fn rest(groups: &mut Groups) {
    for _ in 0..4 {
        groups.settle();
        groups.now_ms += LONG_MS;
    }
    for group in groups.numbers() {
        groups.entry(group, vec![tick()]);
    }
    groups.settle();
}

fn dead_letters(groups: &Groups) -> Vec<String> {
    let of = |group| groups.rows(group).dead_letters(&(0, 0, 0)).map(|(_, row)| row.reason.clone());
    groups.numbers().into_iter().flat_map(of).collect()
}

fn check(groups: &Groups) {
    let dead = dead_letters(groups);
    assert!(dead.iter().all(|reason| reason.starts_with("A5")), "{dead:?}");
    let holders = holders(groups);
    let mut kept = BTreeMap::new();
    for group in groups.numbers() {
        for (email, row) in rows(groups, group).kept() {
            assert_eq!(row.kept, Kept::Confirmed, "{:?} of group {group}: {row:?}", email[0]);
            kept.insert((*email, group), (row.owner, row.id));
        }
        for (id, row) in rows(groups, group).wishes() {
            assert!(!matches!(row.wish, Wish::Open(_)), "{id:x}: {row:?}");
        }
        for (peer, row) in groups.rows(group).streams() {
            assert_eq!(
                (row.open, row.queued(), row.reconcile.is_some()),
                (0, 0, false),
                "{group} {peer}: {row:?}"
            );
        }
    }
    let (mut conflicts, mut used) = (0, BTreeSet::new());
    for group in groups.numbers() {
        for (account, row, claimed) in rows(groups, group).all() {
            let Some(claimed) = claimed else {
                conflicts += 1;
                continue;
            };
            match kept.get(&(row.email, claimed.keeper)) {
                Some(owner) if *owner == (group, claimed.id) => {
                    used.insert((row.email, claimed.keeper));
                }
                Some(_) => conflicts += 1,
                None => panic!("account {account} of group {group} has no claim"),
            }
        }
    }
    kept.retain(|claim, _| !used.contains(claim));
    assert!(kept.is_empty(), "claims that nobody has: {kept:?}");
    assert!(conflicts <= dead.len(), "{conflicts} accounts share an e-mail, and nobody was told: {dead:?}");
    let shared = holders.values().map(|of| of.len() - 1).sum::<usize>();
    assert!(shared <= conflicts, "{shared} accounts share an e-mail, and {conflicts} have no claim");
}

#[derive(Debug, Clone)]
enum Step {
    Register(GroupNo, u8),
    Change(GroupNo, u64, u8),
    Courier { from: GroupNo, to: GroupNo, lost: bool },
    Copy(usize),
    ChangeLead(GroupNo),
    Reload(GroupNo),
    Pass(u64),
    Save(GroupNo),
    Restore(GroupNo),
}

fn step(disasters: bool) -> impl Strategy<Value = Step> {
    let group = || 1..=GROUPS;
    let disaster = if disasters { 2 } else { 0 };
    prop_oneof![
        6 => (group(), 0..6_u8).prop_map(|(group, email)| Step::Register(group, email)),
        4 => (group(), 1..4_u64, 0..6_u8).prop_map(|(group, account, email)| Step::Change(group, account, email)),
        24 => (group(), group(), any::<bool>()).prop_map(|(from, to, lost)| Step::Courier { from, to, lost }),
        2 => any::<usize>().prop_map(Step::Copy),
        1 => group().prop_map(Step::ChangeLead),
        1 => group().prop_map(Step::Reload),
        1 => (1..2 * LONG_MS).prop_map(Step::Pass),
        disaster => group().prop_map(Step::Save),
        disaster => group().prop_map(Step::Restore),
    ]
}

fn play(steps: Vec<Step>) -> Groups {
    let mut groups = world();
    for step in steps {
        match step {
            Step::Register(group, email) => {
                groups.ask(group, "gateway", &register(email));
            }
            Step::Change(group, account, email) => {
                groups.ask(group, &format!("regions/r/accounts/a{account}"), &change(account, email));
            }
            Step::Courier { from, to, lost } => {
                groups.step(from, to, lost);
            }
            Step::Copy(at) => {
                let count = groups.delivered.len().max(1);
                if let Some((to, delivery)) = groups.delivered.get(at % count).cloned() {
                    groups.arrive(to, delivery);
                }
            }
            Step::ChangeLead(group) => groups.change_lead(group),
            Step::Reload(group) => groups.reload(group),
            Step::Pass(ms) => {
                groups.now_ms += ms;
                for group in groups.numbers() {
                    groups.entry(group, vec![tick()]);
                }
            }
            Step::Save(group) => groups.save(group),
            Step::Restore(group) => groups.restore(group),
        }
    }
    rest(&mut groups);
    check(&groups);
    groups
}

proptest! {
    #[test]
    fn an_e_mail_has_one_account(steps in proptest::collection::vec(step(false), 1..150)) {
        let groups = play(steps);
        prop_assert_eq!(dead_letters(&groups), Vec::<String>::new());
        prop_assert!(holders(&groups).values().all(|of| of.len() == 1));
    }

    /// Groups go back to earlier states. Where an e-mail was given away twice for it, a dead letter says so.
    #[test]
    fn an_e_mail_has_one_account_or_somebody_is_told(steps in proptest::collection::vec(step(true), 1..150)) {
        play(steps);
    }
}

#[test]
fn who_comes_second_in_another_region_has_no_account_and_is_told_nothing() {
    let mut groups = world();
    let first = claim_id(&groups.ask(1, "gateway", &register(1)));
    let second = claim_id(&groups.ask(2, "gateway", &register(1)));
    assert_eq!(state(&groups, 1, &first), ClaimingState::Open);
    groups.settle();
    let states = (state(&groups, 1, &first), state(&groups, 2, &second));
    assert_eq!(states, (ClaimingState::Done, ClaimingState::Taken));
    assert_eq!(holders(&groups)[&[1; 32]], [(1, 1)]);
    // Long after, nobody knows how it was.
    groups.now_ms += accounts::model::CLAIMING_KNOWN_MS;
    groups.entry(1, vec![tick()]);
    assert_eq!(state(&groups, 1, &first), ClaimingState::Unspecified);
}

#[test]
fn a_keeper_that_does_not_answer_in_time_changes_nothing_and_keeps_nothing() {
    let mut groups = world();
    let home = 1;
    let wish = claim_id(&groups.ask(home, "gateway", &register(1)));
    while !groups.delivered.iter().any(|(_, delivery)| !delivery.messages.is_empty()) {
        groups.step(home, keeper(1), false);
    }
    assert_eq!(rows(&groups, keeper(1)).kept().count(), 1);
    groups.now_ms += LONG_MS;
    groups.entry(home, vec![tick()]);
    assert_eq!(state(&groups, home, &wish), ClaimingState::Undone);
    groups.settle();
    assert_eq!((rows(&groups, keeper(1)).kept().count(), holders(&groups).len()), (0, 0));
    groups.ask(home, "gateway", &register(1));
    rest(&mut groups);
    check(&groups);
    assert_eq!(holders(&groups).len(), 1);
}

#[test]
fn an_account_changes_its_e_mail_and_the_old_one_is_free() {
    let mut groups = world();
    groups.ask(1, "gateway", &register(1));
    groups.ask(2, "gateway", &register(2));
    groups.settle();
    let me = "regions/r/accounts/a1";
    let taken = claim_id(&groups.ask(1, me, &change(1, 2)));
    assert_eq!(reason(&groups.ask(1, me, &change(1, 3))), "EMAIL_CHANGING", "one at a time");
    groups.settle();
    assert_eq!(state(&groups, 1, &taken), ClaimingState::Taken);
    let done = claim_id(&groups.ask(1, me, &change(1, 3)));
    groups.settle();
    assert_eq!(state(&groups, 1, &done), ClaimingState::Done);
    let (_, row, _) = rows(&groups, 1).all().next().unwrap();
    assert_eq!((row.email, row.revision, row.personal[0].ciphertext.as_slice()), ([3; 32], 2, &[3][..]));
    groups.ask(3, "gateway", &register(1));
    rest(&mut groups);
    check(&groups);
    assert_eq!(holders(&groups).into_values().flatten().collect::<Vec<_>>(), [(3, 1), (2, 1), (1, 1)]);
    assert_eq!(reason(&groups.ask(2, "somebody", &change(1, 4))), "NOT_OWNER");
}

/// The keeper went back to before the first account, and gave its e-mail away once more.
#[test]
fn who_has_lost_its_claim_is_told_of_and_can_claim_the_e_mail_anew() {
    let mut groups = world();
    let keeper = keeper(1);
    groups.save(keeper);
    groups.ask(1, "gateway", &register(1));
    groups.settle();
    groups.restore(keeper);
    groups.ask(3, "gateway", &register(1));
    rest(&mut groups);
    check(&groups);
    assert_eq!(holders(&groups)[&[1; 32]], [(1, 1), (3, 1)]);
    assert_eq!(dead_letters(&groups), ["A5: group 2 has given the e-mail of account a1 to somebody else"]);
    let (key, _) = groups.rows(1).dead_letters(&(0, 0, 0)).next().unwrap();
    let resolve = |drop| SystemCommand::Resolve { key: *key, drop };
    let (replay, dropped) = (resolve(false), resolve(true));
    let me = "regions/r/accounts/a1";
    let refused = claim_id(&groups.ask(1, me, &change(1, 1)));
    groups.settle();
    assert_eq!(state(&groups, 1, &refused), ClaimingState::Taken);
    groups.ask(3, me, &change(1, 2));
    groups.settle();
    let again = claim_id(&groups.ask(1, me, &change(1, 1)));
    groups.settle();
    assert_eq!(state(&groups, 1, &again), ClaimingState::Done);
    assert!(reason(&groups.system(1, replay)).contains("System"), "there is nothing to carry out");
    assert_eq!(reason(&groups.system(1, dropped)), "done");
    rest(&mut groups);
    check(&groups);
    assert_eq!(reason(&groups.ask(1, me, &change(1, 1))), "INVALID_FIELD", "it has it, in all regions");
}

/// Every participant dies before and after every step, and everything is said twice.
#[test]
fn a_crash_before_and_after_every_step_makes_one_account() {
    let deaths = 1..=GROUPS;
    for died in deaths {
        for at in 0..12 {
            let mut groups = world();
            groups.ask(1, "gateway", &register(1));
            for step in 0..12 {
                if step == at {
                    groups.reload(died);
                }
                for (from, to) in [(1, keeper(1)), (keeper(1), 1)] {
                    groups.step(from, to, step == at);
                    let copies = groups.delivered.clone();
                    copies.into_iter().for_each(|(to, delivery)| groups.arrive(to, delivery));
                }
            }
            rest(&mut groups);
            check(&groups);
            assert_eq!(holders(&groups)[&[1; 32]], [(1, 1)], "{died} died at step {at}");
        }
    }
}

/// What somebody has heard of accounts who listens to a group from its beginning: account, owner, what.
fn heard(groups: &Groups, group: GroupNo) -> Vec<(String, String, What)> {
    let machine = groups.rows(group);
    let begin = crate::feed::Place::behind(1, 0);
    let Heard::Changes { told, .. } = machine.changes_after(begin, 1 << 20) else { panic!("it is whole") };
    let mut changes = Vec::new();
    for entry in told {
        let mut bytes = entry.changes.as_slice();
        while !bytes.is_empty() {
            let change = Change::decode_length_delimited(&mut bytes).unwrap();
            let told = messages::Change::decode(change.payload.as_slice()).unwrap();
            changes.push((change.row, change.owner, told.what.unwrap()));
        }
    }
    changes
}

#[test]
fn what_happens_to_an_account_is_told_of_it_and_names_nothing_personal() {
    let mut groups = world();
    groups.ask(1, "gateway", &register(1));
    assert_eq!(heard(&groups, 1), [], "there is no account before its e-mail is claimed");
    groups.settle();
    let me = "regions/r/accounts/a1";
    groups.ask(1, me, &change(1, 3));
    groups.settle();
    let saved = |revision| {
        let what = What::Saved(messages::AccountSaved { revision });
        ("a1".to_owned(), me.to_owned(), what)
    };
    assert_eq!(heard(&groups, 1), [saved(1), saved(2)]);
    let others = groups.numbers().into_iter().filter(|group| *group != 1);
    assert!(others.into_iter().all(|group| heard(&groups, group).is_empty()), "a keeper tells nothing");
}
