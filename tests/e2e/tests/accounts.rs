//! Accounts as their owners, admins and thieves meet them.

use std::path::Path;
use std::time::Duration;

use tidewall_e2e::client::{Session, event_of, expect_refusal, request_id, tier};
use tidewall_e2e::cluster::run;
use tidewall_proto::v1::*;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{organiser, shared, someone};

const PASSWORD: &str = "correct horse battery";

/// Somebody who is about to register, with a region for accounts alone.
struct Person {
    region: String,
    email: String,
    /// Has a token that no call of hers needs.
    nobody: Session,
}

async fn person() -> Person {
    let cluster = shared().await;
    let nobody = cluster.session(&someone("visitor"), &[]).unwrap();
    let region = nobody.region_names().await.unwrap().swap_remove(4);
    Person { region, email: format!("{}@example.org", someone("ann")), nobody }
}

impl Person {
    fn registration(&self) -> RegisterRequest {
        RegisterRequest {
            parent: self.region.clone(),
            email: self.email.clone(),
            password: PASSWORD.into(),
            display_name: "Ann Tester".into(),
            locale: "de-AT".into(),
            time_zone: "Europe/Vienna".into(),
            request_id: request_id(),
        }
    }

    async fn register(&self, request: RegisterRequest) -> Result<RegisterResponse, Status> {
        self.nobody.accounts().register(anonymous(request)).await.map(tonic::Response::into_inner)
    }

    async fn log_in(&self, password: &str) -> Result<LogInResponse, Status> {
        self.log_in_with(password, &request_id()).await
    }

    async fn log_in_with(&self, password: &str, id: &str) -> Result<LogInResponse, Status> {
        let request = LogInRequest {
            parent: self.region.clone(),
            email: self.email.clone(),
            password: password.into(),
            device: "a test".into(),
            request_id: id.into(),
        };
        self.nobody.accounts().log_in(anonymous(request)).await.map(tonic::Response::into_inner)
    }

    async fn refresh(&self, refresh_token: &str) -> Result<Tokens, Status> {
        let request = RefreshRequest { refresh_token: refresh_token.into(), request_id: request_id() };
        let answer = self.nobody.accounts().refresh(anonymous(request)).await?;
        Ok(answer.into_inner().tokens.unwrap())
    }

    /// Registers and logs in: the account and its session, and a caller with its token.
    async fn logged_in(&self) -> (LogInResponse, Session) {
        self.register(self.registration()).await.unwrap();
        let login = self.log_in(PASSWORD).await.unwrap();
        let session = self.nobody.with_token(&tokens(&login).access_token).unwrap();
        (login, session)
    }
}

/// A request without a token.
fn anonymous<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(Duration::from_secs(20));
    request
}

fn tokens(login: &LogInResponse) -> &Tokens {
    login.tokens.as_ref().unwrap()
}

async fn account(caller: &Session, name: &str) -> Result<Account, Status> {
    let request = GetAccountRequest { name: name.into(), ..Default::default() };
    let answer = caller.accounts().get_account(caller.request(request)).await?;
    Ok(answer.into_inner().account.unwrap())
}

async fn sessions(caller: &Session, account: &str) -> Vec<tidewall_proto::v1::Session> {
    let request = ListSessionsRequest { parent: account.into(), ..Default::default() };
    caller.accounts().list_sessions(caller.request(request)).await.unwrap().into_inner().sessions
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_registers_logs_in_and_buys() {
    let ann = person().await;
    let registration = ann.registration();
    let first = ann.register(registration.clone()).await.unwrap();
    // A copy of the request, whatever gateway makes of it: another salt, another key. The same answer.
    assert_eq!(ann.register(registration.clone()).await.unwrap(), first);
    let other = RegisterRequest { password: "another horse".into(), ..registration.clone() };
    expect_refusal("another password", ann.register(other).await, Code::InvalidArgument, "REQUEST_ID_REUSED")
        .unwrap();
    let spelling = RegisterRequest {
        email: ann.email.to_uppercase(),
        password: "of a stranger".into(),
        request_id: request_id(),
        ..registration
    };
    let again = ann.register(spelling).await.unwrap();
    assert!(again.receipt.is_some(), "who asks again learns nothing");
    expect_refusal("the stranger", ann.log_in("of a stranger").await, Code::Unauthenticated, "LOG_IN_FAILED")
        .unwrap();

    let id = request_id();
    let login = ann.log_in_with(PASSWORD, &id).await.unwrap();
    assert_eq!(ann.log_in_with(PASSWORD, &id).await.unwrap(), login, "a lost answer is given again");
    let caller = ann.nobody.with_token(&tokens(&login).access_token).unwrap();
    let organiser = organiser().await;
    let event = organiser.create_event(&ann.region, event_of(vec![tier("ga", 5)])).await.unwrap().name;
    caller.buy(&event, "ga", 2, &request_id()).await.unwrap();
    let tickets = caller.tickets_of(&event, "").await.unwrap();
    assert_eq!(tickets.len(), 2);
    assert!(tickets.iter().all(|ticket| ticket.owner == login.account), "{tickets:?}");

    let shown = account(&caller, &login.account).await.unwrap();
    let fields = (shown.email.as_str(), shown.display_name.as_str(), shown.locale.as_str());
    assert_eq!(fields, (ann.email.as_str(), "Ann Tester", "de-AT"));
    assert_eq!((shown.roles().collect::<Vec<_>>(), shown.erased), (vec![Role::User], false));
    let update = UpdateProfileRequest {
        account: Some(Account { display_name: "Ann".into(), ..shown.clone() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["display_name".into()] }),
        request_id: request_id(),
    };
    let updated =
        caller.accounts().update_profile(caller.request(update.clone())).await.unwrap().into_inner();
    let updated = updated.account.unwrap();
    assert_eq!((updated.display_name.as_str(), updated.locale.as_str()), ("Ann", "de-AT"));
    assert_eq!(account(&caller, &login.account).await.unwrap(), updated);
    let repeated = caller.accounts().update_profile(caller.request(update.clone())).await.unwrap();
    assert_eq!(repeated.into_inner().account, Some(updated), "the first answer again");
    let late = UpdateProfileRequest { request_id: request_id(), ..update };
    let late = caller.accounts().update_profile(caller.request(late)).await;
    expect_refusal("an old revision", late, Code::Aborted, "REVISION_MISMATCH").unwrap();
    let foreign = account(&ann.nobody, &login.account).await;
    expect_refusal("somebody else", foreign, Code::PermissionDenied, "NOT_YOUR_ACCOUNT").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_account_is_told_what_everybody_is_told() {
    let (ann, nobody) = (person().await, person().await);
    ann.register(ann.registration()).await.unwrap();
    let refused = |status: Status| {
        let info = status.get_details_error_info().unwrap();
        (status.code(), status.message().to_owned(), info.reason, info.metadata)
    };
    let wrong = refused(ann.log_in("wrong password").await.unwrap_err());
    assert_eq!(refused(nobody.log_in("wrong password").await.unwrap_err()), wrong);
    // Ten in all, and then it is the right password that is refused.
    for _ in 1..10 {
        assert_eq!(refused(ann.log_in("wrong password").await.unwrap_err()), wrong);
        assert_eq!(refused(nobody.log_in("wrong password").await.unwrap_err()), wrong);
    }
    for somebody in [&ann, &nobody] {
        let too_many = somebody.log_in(PASSWORD).await;
        expect_refusal("one too many", too_many, Code::FailedPrecondition, "TOO_MANY_ATTEMPTS").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_is_good_once_and_a_stolen_one_ends_the_session() {
    let ann = person().await;
    let (login, caller) = ann.logged_in().await;
    let first = tokens(&login).refresh_token.clone();
    let second = ann.refresh(&first).await.unwrap();
    assert_ne!(second.refresh_token, first);
    let again = ann.refresh(&first).await.unwrap();
    assert_eq!(
        again.refresh_token, second.refresh_token,
        "its answer was lost: the same one, and nobody is out"
    );
    let third = ann.refresh(&second.refresh_token).await.unwrap();
    assert_eq!(sessions(&caller, &login.account).await.len(), 1);
    // The thief comes with the first one.
    let stolen = ann.refresh(&first).await;
    expect_refusal("a copy", stolen, Code::Unauthenticated, "SESSION_INVALID").unwrap();
    let out = ann.refresh(&third.refresh_token).await;
    expect_refusal("both are out", out, Code::Unauthenticated, "SESSION_INVALID").unwrap();
    assert!(sessions(&caller, &login.account).await.is_empty());
    let made_up = third.refresh_token.replace("/3/", "/4/");
    expect_refusal("made up", ann.refresh(&made_up).await, Code::Unauthenticated, "SESSION_INVALID").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_revoked_and_ended_by_a_new_password() {
    let ann = person().await;
    let (login, caller) = ann.logged_in().await;
    let (phone, tablet) = (ann.log_in(PASSWORD).await.unwrap(), ann.log_in(PASSWORD).await.unwrap());
    let listed = sessions(&caller, &login.account).await;
    assert_eq!(listed.len(), 3);
    let current: Vec<_> = listed.iter().filter(|session| session.current).collect();
    assert_eq!((current.len(), current[0].name.as_str()), (1, login.session.as_str()));
    assert_eq!(current[0].device, "a test");

    let revoke = |name: &str| RevokeSessionRequest { name: name.into() };
    let foreign = ann.nobody.accounts().revoke_session(ann.nobody.request(revoke(&phone.session))).await;
    expect_refusal("a stranger", foreign, Code::PermissionDenied, "NOT_OWNER").unwrap();
    caller.accounts().revoke_session(caller.request(revoke(&phone.session))).await.unwrap();
    let out = ann.refresh(&tokens(&phone).refresh_token).await;
    expect_refusal("revoked", out, Code::Unauthenticated, "SESSION_INVALID").unwrap();
    let out = LogOutRequest { refresh_token: tokens(&tablet).refresh_token.clone() };
    ann.nobody.accounts().log_out(anonymous(out.clone())).await.unwrap();
    ann.nobody.accounts().log_out(anonymous(out)).await.unwrap();

    let other = ann.log_in(PASSWORD).await.unwrap();
    let change = |old: &str| ChangePasswordRequest {
        name: login.account.clone(),
        current_password: old.into(),
        new_password: "a new password".into(),
        request_id: request_id(),
    };
    let wrong = caller.accounts().change_password(caller.request(change("wrong password"))).await;
    expect_refusal("the old one is wrong", wrong, Code::Unauthenticated, "LOG_IN_FAILED").unwrap();
    let right = change(PASSWORD);
    let change_once = async |request: ChangePasswordRequest| {
        caller.accounts().change_password(caller.request(request)).await.map(tonic::Response::into_inner)
    };
    let changed = change_once(right.clone()).await.unwrap();
    assert_eq!(change_once(right.clone()).await.unwrap(), changed, "the answer was lost");
    let other_password = ChangePasswordRequest { new_password: "of a stranger".into(), ..right };
    let reused = change_once(other_password).await;
    expect_refusal("no copy", reused, Code::InvalidArgument, "REQUEST_ID_REUSED").unwrap();
    assert!(changed.receipt.is_some());
    let out = ann.refresh(&tokens(&other).refresh_token).await;
    expect_refusal("ended by it", out, Code::Unauthenticated, "SESSION_INVALID").unwrap();
    ann.refresh(&tokens(&login).refresh_token).await.unwrap();
    expect_refusal("the old one", ann.log_in(PASSWORD).await, Code::Unauthenticated, "LOG_IN_FAILED")
        .unwrap();
    ann.log_in("a new password").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_e_mail_has_one_account_in_all_regions_and_can_be_changed() {
    let ann = person().await;
    let (login, caller) = ann.logged_in().await;
    let regions = ann.nobody.region_names().await.unwrap();
    let elsewhere = |region: &String, email: &str| Person {
        region: region.clone(),
        email: email.into(),
        nobody: ann.nobody.clone(),
    };
    // Nobody is told that somebody in another region has it, and nobody gets in.
    for region in regions.iter().filter(|region| **region != ann.region).take(3) {
        let rival = elsewhere(region, &ann.email);
        assert!(rival.register(rival.registration()).await.unwrap().receipt.is_some());
        let refused = rival.log_in(PASSWORD).await;
        expect_refusal("no account", refused, Code::Unauthenticated, "LOG_IN_FAILED").unwrap();
    }
    let change = |password: &str, email: &str| ChangeEmailRequest {
        name: login.account.clone(),
        current_password: password.into(),
        new_email: email.into(),
        request_id: request_id(),
    };
    let change_once = async |request: ChangeEmailRequest| {
        caller.accounts().change_email(caller.request(request)).await.map(tonic::Response::into_inner)
    };
    let (old, new) = (ann.email.clone(), format!("{}@example.org", someone("ann-new")));
    let wrong = change_once(change("wrong password", &new)).await;
    expect_refusal("the password", wrong, Code::Unauthenticated, "LOG_IN_FAILED").unwrap();
    let same = change_once(change(PASSWORD, &old.to_uppercase())).await;
    expect_refusal("her own", same, Code::InvalidArgument, "INVALID_FIELD").unwrap();
    let bob = elsewhere(&regions[0], &format!("{}@example.org", someone("bob")));
    let (_, stranger) = bob.logged_in().await;
    let taken = change_once(change(PASSWORD, &bob.email)).await;
    expect_refusal("bob's", taken, Code::AlreadyExists, "EMAIL_TAKEN").unwrap();
    let request = change(PASSWORD, &new);
    let not_hers = stranger.accounts().change_email(stranger.request(request.clone())).await;
    expect_refusal("not hers", not_hers, Code::PermissionDenied, "NOT_YOUR_ACCOUNT").unwrap();
    let changed = change_once(request.clone()).await.unwrap();
    assert_eq!(change_once(request).await.unwrap(), changed, "the answer was lost");
    assert_eq!(account(&caller, &login.account).await.unwrap().email, new);
    let refused = ann.log_in(PASSWORD).await;
    expect_refusal("the old e-mail", refused, Code::Unauthenticated, "LOG_IN_FAILED").unwrap();
    elsewhere(&ann.region, &new).log_in(PASSWORD).await.unwrap();
    // The old one is free, everywhere.
    elsewhere(&regions[1], &old).logged_in().await;

    let data = shared().await.data().display().to_string();
    let dlq = run(&["dlq", "list", "--data", &data, "-o", "json"], Duration::from_secs(60)).unwrap();
    assert!(dlq.status.success(), "{}", String::from_utf8_lossy(&dlq.stderr));
    let letters: serde_json::Value = serde_json::from_slice(&dlq.stdout).unwrap();
    assert_eq!(letters["dead_letters"], serde_json::json!([]));
    let name = "regions/north/deadLetters/1-1-0";
    for verb in [&["show", name][..], &["replay", name], &["drop", name, "--yes"]] {
        let arguments = [&["dlq"], verb, &["--data", &data]].concat();
        let refused = run(&arguments, Duration::from_secs(60)).unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && said.contains("there is no regions/north/deadLetters"),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_admin_comes_from_the_command_line_and_makes_others() {
    let root = person().await;
    let cluster = shared().await;
    let data = cluster.data().display().to_string();
    let bootstrap = |email: &str| {
        let arguments =
            ["admin", "bootstrap", "--region", &root.region, "--email", email, "--data", &data, "-o", "json"];
        run(&arguments, Duration::from_secs(30)).unwrap()
    };
    let made = bootstrap(&root.email);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    let taken = bootstrap(&root.email);
    assert_eq!(taken.status.code(), Some(4), "who only knows the e-mail gets nothing");
    assert!(String::from_utf8_lossy(&taken.stderr).contains("another password"));
    let second = bootstrap("second@example.org");
    assert_eq!(second.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&second.stderr).contains("has an admin already"));
    let login = root.log_in(made["password"].as_str().unwrap()).await.unwrap();
    assert_eq!(made["account"], login.account);
    let admin = root.nobody.with_token(&tokens(&login).access_token).unwrap();

    let ann = person().await;
    let (theirs, caller) = ann.logged_in().await;
    let find = FindAccountRequest {
        parent: ann.region.clone(),
        email: ann.email.to_uppercase(),
        ..Default::default()
    };
    let found = admin.accounts().find_account(admin.request(find.clone())).await.unwrap().into_inner();
    let found = found.account.unwrap();
    assert_eq!((&found.name, &found.email), (&theirs.account, &ann.email));
    let denied = caller.accounts().find_account(caller.request(find)).await;
    expect_refusal("no admin", denied, Code::PermissionDenied, "ROLE_REQUIRED").unwrap();
    let grant = |role: Role| GrantRoleRequest {
        name: found.name.clone(),
        role: role.into(),
        request_id: request_id(),
    };
    let denied = caller.accounts().grant_role(caller.request(grant(Role::Admin))).await;
    expect_refusal("no admin", denied, Code::PermissionDenied, "ROLE_REQUIRED").unwrap();
    let granted =
        admin.accounts().grant_role(admin.request(grant(Role::Organiser))).await.unwrap().into_inner();
    assert_eq!(granted.roles().collect::<Vec<_>>(), [Role::Organiser, Role::User]);
    for senseless in [Role::User, Role::Unspecified] {
        let refused = admin.accounts().grant_role(admin.request(grant(senseless))).await;
        expect_refusal("no such grant", refused, Code::InvalidArgument, "INVALID_FIELD").unwrap();
    }
    let refused = caller.create_event(&ann.region, event_of(vec![tier("ga", 1)])).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied, "not with the token from before");
    let refreshed = ann.refresh(&tokens(&theirs).refresh_token).await.unwrap();
    let caller = ann.nobody.with_token(&refreshed.access_token).unwrap();
    let event = caller.create_event(&ann.region, event_of(vec![tier("ga", 1)])).await.unwrap();
    assert_eq!(event.organiser, theirs.account);
    let withdraw = |name: &str, role: Role| WithdrawRoleRequest {
        name: name.into(),
        role: role.into(),
        request_id: request_id(),
    };
    let last = admin.accounts().withdraw_role(admin.request(withdraw(&login.account, Role::Admin))).await;
    expect_refusal("the last admin", last, Code::FailedPrecondition, "LAST_ADMIN").unwrap();
    let ordinary = withdraw(&found.name, Role::Organiser);
    let withdrawn = admin.accounts().withdraw_role(admin.request(ordinary)).await.unwrap().into_inner();
    assert_eq!(withdrawn.roles().collect::<Vec<_>>(), [Role::User]);
}

/// Every file below a directory.
fn files(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_disk_and_no_export_has_a_password_a_token_or_anything_personal_in_plain_text() {
    let cluster = shared().await;
    let ann = person().await;
    let secret = "a secret that must not be anywhere";
    let registration = RegisterRequest {
        password: secret.into(),
        display_name: "Annabel Unmistakable".into(),
        time_zone: "Antarctica/Troll".into(),
        ..ann.registration()
    };
    ann.register(registration).await.unwrap();
    let login = ann.log_in(secret).await.unwrap();
    let (_, refresh_secret) = tokens(&login).refresh_token.rsplit_once('/').unwrap();
    // What can be found shows that the search works.
    let organiser = organiser().await;
    let event = Event { display_name: "Findable Gala".into(), ..event_of(vec![tier("ga", 1)]) };
    organiser.create_event(&ann.region, event).await.unwrap();
    let operator = cluster.session(&someone("operator"), &["operator"]).unwrap();
    let request = ExportRegionRequest { name: ann.region.clone() };
    let mut stream = operator.operator().export_region(operator.request(request)).await.unwrap().into_inner();
    let mut export = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        export.extend_from_slice(&part.chunk);
    }
    let mut paths = Vec::new();
    files(cluster.data(), &mut paths);
    let mut contents: Vec<(String, Vec<u8>)> = vec![("the export".into(), export)];
    for path in paths {
        // Logs and checkpoints are being written, and removed, meanwhile.
        contents.extend(std::fs::read(&path).ok().map(|bytes| (path.display().to_string(), bytes)));
    }
    let having = |text: &str| -> Vec<&str> {
        let found = contents.iter().filter(|(_, bytes)| memmem(bytes, text.as_bytes()));
        found.map(|(place, _)| place.as_str()).collect()
    };
    assert!(having("Findable Gala").len() > 2, "the search finds nothing: {}", contents.len());
    let access = &tokens(&login).access_token;
    for text in [secret, "Annabel", "Antarctica", &ann.email, refresh_secret, access.as_str()] {
        assert!(having(text).is_empty(), "{text:?} is in {:?}", having(text));
    }
}

/// Whether bytes have others among them.
fn memmem(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
