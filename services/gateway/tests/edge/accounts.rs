//! What the gateway does for accounts before a region sees anything.

use std::time::Duration;

use prost::Message as _;
use tidewall_gateway::{AccountsConfig, HashingOptions, LimitOptions};
use tidewall_messages::accounts;
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;
use tidewall_proto::v1::account_service_client::AccountServiceClient;
use tidewall_proto::v1::ticket_service_client::TicketServiceClient;
use tonic::{Code, Request};

use crate::fake::{Cluster, cluster, cluster_with, outcome};
use crate::{buy, reason};

/// A gateway that serves accounts, and lets one call into a region at a time.
async fn serving(hashing: HashingOptions) -> Cluster {
    cluster_with(|config| {
        let key = tidewall_gateway::auth::generate_key().unwrap();
        config.public_keys.push(key.public);
        config.accounts = Some(AccountsConfig { secret: [5; 32], signing_key: key.pkcs8, hashing });
        config.limit = LimitOptions { floor: 1, ceiling: 1, ..LimitOptions::default() };
    })
    .await
}

fn register() -> v1::RegisterRequest {
    v1::RegisterRequest {
        parent: "regions/north".into(),
        email: "ann@example.org".into(),
        password: "correct horse".into(),
        request_id: uuid::Uuid::now_v7().to_string(),
        ..Default::default()
    }
}

fn anonymous<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(20));
    request
}

/// The region says that it has made an account.
fn registered() -> pb::Outcome {
    let registered = accounts::Registered { account_id: "a1".into(), key_id: vec![1; 16] };
    let done = accounts::Outcome { result: Some(accounts::outcome::Result::Registered(registered)) };
    pb::Outcome {
        module: accounts::MODULE.into(),
        receipt: Some(pb::Receipt::default()),
        result: Some(pb::outcome::Result::Done(done.encode_to_vec().into())),
        ..Default::default()
    }
}

/// Whoever reads a log must not be able to try passwords by its fingerprints; and copies of a request, whatever was made of them,
/// must have one.
#[tokio::test]
async fn copies_of_a_secret_message_have_one_fingerprint_which_gives_nothing_away() {
    let cluster = serving(HashingOptions::cheap()).await;
    let message = register();
    for _ in 0..2 {
        cluster.nodes[0].plan([outcome(registered())]);
        let mut client = AccountServiceClient::new(cluster.channel().await);
        client.register(anonymous(message.clone())).await.unwrap();
    }
    let commands = cluster.nodes[0].commands.lock();
    assert_eq!(commands[0].fingerprint, commands[1].fingerprint);
    assert_ne!(commands[0].payload, commands[1].payload, "another salt, another key");
    let mut plain = xxhash_rust::xxh3::Xxh3::new();
    for part in [b"Register".as_slice(), &message.encode_to_vec()] {
        plain.update(&(part.len() as u64).to_le_bytes());
        plain.update(part);
    }
    assert_ne!(commands[0].fingerprint, plain.digest(), "anybody could compute it");
    let sent = commands[0].encode_to_vec();
    for secret in ["ann@example.org", "correct horse"] {
        assert!(!sent.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret}");
    }
}

/// A password that is never hashed keeps nobody from buying, though one call at a time is let into the region.
#[tokio::test]
async fn who_waits_for_a_hash_takes_nobodys_place_in_the_region() {
    let cluster = serving(HashingOptions { threads: 0, ..HashingOptions::cheap() }).await;
    let mut client = AccountServiceClient::new(cluster.channel().await);
    let waiting = tokio::spawn(async move { client.register(anonymous(register())).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    tickets.buy_tickets(cluster.request("bob", &[], buy())).await.unwrap();
    assert!(!waiting.is_finished());
    waiting.abort();
}

#[tokio::test]
async fn without_its_secret_a_gateway_serves_no_accounts_and_says_so() {
    let cluster = cluster().await;
    let mut client = AccountServiceClient::new(cluster.channel().await);
    let refused = client.register(anonymous(register())).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::FailedPrecondition, "ACCOUNTS_NOT_SERVED")
    );
    let request = v1::RefreshRequest { refresh_token: "my password".into(), ..Default::default() };
    let refused = client.refresh(anonymous(request)).await.unwrap_err();
    assert_eq!(reason(&refused), "ACCOUNTS_NOT_SERVED");
}

/// What was typed into the wrong field is not said again.
#[tokio::test]
async fn what_is_no_token_is_refused_before_the_region_hears_of_it_and_not_repeated() {
    let cluster = serving(HashingOptions::cheap()).await;
    let mut client = AccountServiceClient::new(cluster.channel().await);
    for text in ["my password", "regions/north/my password", ""] {
        let request_id = uuid::Uuid::now_v7().to_string();
        let request = v1::RefreshRequest { refresh_token: text.into(), request_id };
        let refused = client.refresh(anonymous(request)).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unauthenticated, "SESSION_INVALID"));
        assert!(!format!("{refused:?}").contains("password"), "{refused:?}");
    }
    assert!(cluster.nodes[0].commands.lock().is_empty());
}
