//! Webhooks: who may do what with whose, what a region is asked, what nobody is told, and how a ping goes.

use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message as _;
use tidewall_gateway::auth::Role;
use tidewall_gateway::{AccountsConfig, Answered, HashingOptions, Outside, Post};
use tidewall_messages::webhooks;
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;
use tidewall_proto::v1::webhook_service_client::WebhookServiceClient;
use tonic::Code;
use tonic::transport::Channel;

use super::fake::{Action, Cluster, cluster_with, outcome, query};
use super::reason;

const HOOK: &str = "regions/north/webhooks/w7";
const URL: &str = "https://shop.example/hooks";

/// A server outside.
#[derive(Debug, Default)]
struct Server {
    posts: Mutex<Vec<Post>>,
    answers: Mutex<Vec<Answered>>,
}

impl Outside for Server {
    fn post(&self, post: Post) -> Pin<Box<dyn Future<Output = Answered> + Send + '_>> {
        self.posts.lock().push(post);
        let answer = self.answers.lock().pop();
        Box::pin(async move { answer.unwrap_or(Answered::Status { code: 204, retry_after: None }) })
    }
}

async fn serving() -> (Cluster, Arc<Server>) {
    let server = Arc::new(Server::default());
    let outside: Arc<dyn Outside> = server.clone();
    let cluster = cluster_with(|config| {
        let key = tidewall_gateway::auth::generate_key().unwrap();
        config.public_keys.push(key.public);
        let hashing = HashingOptions::cheap();
        config.accounts = Some(AccountsConfig { secret: [5; 32], signing_key: key.pkcs8, hashing });
        config.webhooks.outside = Some(outside);
    })
    .await;
    (cluster, server)
}

async fn client(cluster: &Cluster) -> WebhookServiceClient<Channel> {
    WebhookServiceClient::new(cluster.channel().await)
}

fn view(generation: u64, previous_generation: u64) -> webhooks::WebhookView {
    let settings = webhooks::Settings { url: URL.into(), kinds: vec![6], module: 1, row: "gala".into() };
    webhooks::WebhookView {
        webhook_id: "w7".into(),
        owner: "shop".into(),
        settings: Some(settings),
        generation,
        previous_generation,
        queue: vec![7; 16],
        revision: 3,
        ..Default::default()
    }
}

/// The region has decided this.
fn decided(result: webhooks::outcome::Result) -> Action {
    let done = webhooks::Outcome { result: Some(result) }.encode_to_vec();
    outcome(pb::Outcome {
        module: webhooks::MODULE.into(),
        receipt: Some(pb::Receipt::default()),
        result: Some(pb::outcome::Result::Done(done.into())),
        ..Default::default()
    })
}

/// The region finds this.
fn found() -> Action {
    let answer = webhooks::Answer { result: Some(webhooks::answer::Result::Webhook(view(1, 0))) };
    query(pb::query_result::Result::Module(answer.encode_to_vec().into()))
}

fn webhook(url: &str) -> v1::Webhook {
    v1::Webhook {
        url: url.into(),
        kinds: vec![v1::ChangeKind::TicketsSold.into()],
        event: "regions/north/events/gala".into(),
        ..Default::default()
    }
}

fn create(webhook: v1::Webhook) -> v1::CreateWebhookRequest {
    let request_id = uuid::Uuid::now_v7().to_string();
    v1::CreateWebhookRequest { parent: "regions/north".into(), webhook: Some(webhook), request_id }
}

#[tokio::test]
async fn whoever_makes_a_webhook_is_told_its_secret_and_nobody_else_is() {
    let (cluster, _) = serving().await;
    let mut client = client(&cluster).await;
    let message = create(webhook("https://shop.example/\thooks"));
    let mut secrets = Vec::new();
    for _ in 0..2 {
        cluster.nodes[0].plan([decided(webhooks::outcome::Result::Webhook(view(1, 0)))]);
        let made = client.create_webhook(cluster.request("shop", &[], message.clone())).await.unwrap();
        let made = made.into_inner();
        assert_eq!(made.webhook.as_ref().unwrap().name, HOOK);
        assert_eq!(made.webhook.unwrap().event, "regions/north/events/gala");
        secrets.push(made.secret);
    }
    assert_eq!(secrets[0], secrets[1], "a copy of the request gets the same answer");
    let sent = cluster.nodes[0].commands.lock()[0].payload.clone();
    let Some(webhooks::command::Op::CreateWebhook(asked)) = webhooks::Command::decode(sent).unwrap().op
    else {
        panic!("another command")
    };
    assert_eq!(asked.settings, view(1, 0).settings, "the address is written in one way");
    let rotate =
        || v1::RotateWebhookSecretRequest { name: HOOK.into(), request_id: uuid::Uuid::now_v7().to_string() };
    for (who, roles, told) in [("shop", &[][..], true), ("oscar", &[Role::Operator][..], false)] {
        cluster.nodes[0].plan([decided(webhooks::outcome::Result::Webhook(view(2, 1)))]);
        let rotated = client.rotate_webhook_secret(cluster.request(who, roles, rotate())).await.unwrap();
        let secret = rotated.into_inner().secret;
        assert_eq!(!secret.is_empty(), told, "{who}");
        assert_ne!(secret, secrets[0]);
    }
}

#[tokio::test]
async fn what_makes_no_sense_reaches_no_region() {
    let (cluster, _) = serving().await;
    let mut client = client(&cluster).await;
    for url in
        ["http://shop.example/", "https://127.0.0.1/", "https://[::1]/", "https://a:b@shop.example/", "no"]
    {
        let told =
            client.create_webhook(cluster.request("shop", &[], create(webhook(url)))).await.unwrap_err();
        assert_eq!((told.code(), reason(&told).as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{url}");
    }
    let elsewhere = v1::Webhook { event: "regions/south/events/gala".into(), ..webhook(URL) };
    let unknown = v1::Webhook { kinds: vec![99], ..webhook(URL) };
    for wrong in [elsewhere, unknown] {
        let told = client.create_webhook(cluster.request("shop", &[], create(wrong))).await.unwrap_err();
        assert_eq!(told.code(), Code::InvalidArgument);
    }
    for paths in [vec![], vec!["owner".to_owned()]] {
        let update = v1::UpdateWebhookRequest {
            webhook: Some(v1::Webhook { name: HOOK.into(), ..webhook(URL) }),
            update_mask: Some(prost_types::FieldMask { paths }),
            request_id: uuid::Uuid::now_v7().to_string(),
        };
        let told = client.update_webhook(cluster.request("shop", &[], update)).await.unwrap_err();
        assert_eq!(reason(&told), "UPDATE_MASK_INVALID");
    }
    let list = |owner: &str| v1::ListWebhooksRequest {
        parent: "regions/north".into(),
        owner: owner.into(),
        ..Default::default()
    };
    for owner in ["-", "ann"] {
        let told = client.list_webhooks(cluster.request("shop", &[], list(owner))).await.unwrap_err();
        assert_eq!(reason(&told), "NOT_YOUR_WEBHOOK");
    }
    assert!(cluster.nodes[0].commands.lock().is_empty() && cluster.nodes[0].queries.lock().is_empty());
}

#[tokio::test]
async fn a_ping_is_signed_sent_once_and_says_what_became_of_it() {
    let (cluster, server) = serving().await;
    let mut client = client(&cluster).await;
    let ping = || v1::PingWebhookRequest { name: HOOK.into() };
    for (who, roles) in [("ann", &[][..]), ("ada", &[Role::Auditor][..]), ("sue", &[Role::Support][..])] {
        cluster.nodes[0].plan([found()]);
        let told = client.ping_webhook(cluster.request(who, roles, ping())).await.unwrap_err();
        assert_eq!(
            (told.code(), reason(&told).as_str()),
            (Code::PermissionDenied, "NOT_YOUR_WEBHOOK"),
            "{who}"
        );
    }
    assert!(server.posts.lock().is_empty());
    let status = |code| Answered::Status { code, retry_after: None };
    for (answer, failure) in [
        (status(200), ""),
        (status(302), "answered with status 302"),
        (Answered::Failed("it does not answer".into()), "it does not answer"),
    ] {
        server.answers.lock().push(answer);
        cluster.nodes[0].plan([found()]);
        let told = client.ping_webhook(cluster.request("shop", &[], ping())).await.unwrap().into_inner();
        assert_eq!((told.delivered, told.failure.as_str()), (failure.is_empty(), failure));
    }
    let posts = server.posts.lock();
    assert_eq!(posts.len(), 3);
    assert_eq!(
        (posts[0].url.as_str(), posts[0].body.as_str()),
        (URL, r#"{"webhook":"regions/north/webhooks/w7"}"#)
    );
    let named = |post: &Post, name: &str| {
        let header = post.headers.iter().find(|(known, _)| *known == name);
        header.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    assert!(named(&posts[0], "webhook-signature").starts_with("v1,"));
    assert_ne!(named(&posts[0], "webhook-id"), named(&posts[1], "webhook-id"));
}
