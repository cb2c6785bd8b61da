//! `tidewall webhook`: has somebody's server told what happens.

use clap::{Args, Subcommand};
use prost_types::FieldMask;
use serde::Serialize;
use tidewall_proto::v1;
use tidewall_proto::v1::webhook_service_client::WebhookServiceClient;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::exit::{Exit, Failure};
use crate::gateway::{self, Caller, TargetArgs, TokenArgs};
use crate::output::{self, Format};
use crate::token::subject;
use crate::watch::{kind, kind_name};

/// Webhooks of a page.
const PAGE: i32 = 500;

/// Arguments of `tidewall webhook`.
#[derive(Debug, Args)]
pub struct WebhookCommand {
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done with webhooks.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a webhook, and print its secret
    #[command(
        after_help = "Examples:\n  tidewall webhook create --user shop --region north --url https://shop.example/hooks\n  tidewall webhook create --user shop --region north --url https://shop.example/hooks --kind TICKETS_SOLD --event gala\n\nIt is told what its owner may see. The secret is shown once; receivers check deliveries with it as the Standard Webhooks specification says."
    )]
    Create(CreateArgs),
    /// List webhooks
    #[command(after_help = "Example:\n  tidewall webhook list --user shop --region north")]
    List(ListArgs),
    /// Show a webhook, and how its deliveries go
    #[command(after_help = "Example:\n  tidewall webhook show --user shop regions/north/webhooks/w1")]
    Show(OneArgs),
    /// Change where a webhook goes, or what it is told
    #[command(
        after_help = "Example:\n  tidewall webhook update --user shop regions/north/webhooks/w1 --url https://shop.example/hooks/2"
    )]
    Update(UpdateArgs),
    /// Sign with a new secret, and print it; the one before goes on for a day
    #[command(
        after_help = "Example:\n  tidewall webhook rotate-secret --user shop regions/north/webhooks/w1"
    )]
    RotateSecret(OneArgs),
    /// Make a delivery without changes now, and say what became of it
    #[command(after_help = "Example:\n  tidewall webhook ping --user shop regions/north/webhooks/w1")]
    Ping(OneArgs),
    /// End a webhook; what waits to be delivered is dropped
    #[command(after_help = "Example:\n  tidewall webhook delete --user shop regions/north/webhooks/w1")]
    Delete(OneArgs),
}

/// Which cluster, and as whom.
#[derive(Debug, Args)]
pub struct AsArgs {
    /// Whose webhook it is: subject of the token that is minted
    #[arg(long, value_name = "NAME", value_parser = subject, conflicts_with = "token", default_value = "organiser")]
    pub user: String,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who asks
    #[command(flatten)]
    pub token: TokenArgs,
}

/// What a webhook is for.
#[derive(Debug, Args)]
pub struct SettingsArgs {
    /// Only changes of this kind, such as TICKETS_SOLD; may be given several times
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = kind)]
    pub kind: Vec<v1::ChangeKind>,
    /// Only changes of this event
    #[arg(long, value_name = "EVENT")]
    pub event: Option<String>,
}

/// Arguments of `webhook create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Region whose changes it is told
    #[arg(long, value_name = "REGION", value_parser = crate::region::region_name)]
    pub region: String,
    /// Where deliveries go
    #[arg(long, value_name = "URL")]
    pub url: String,
    /// What it is told
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// As whom
    #[command(flatten)]
    pub who: AsArgs,
}

/// Arguments of `webhook update`.
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Name of the webhook
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Where deliveries go from now on
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// What it is told from now on
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Changes of all kinds, from now on
    #[arg(long, conflicts_with = "kind")]
    pub all_kinds: bool,
    /// Changes of all events, from now on
    #[arg(long, conflicts_with = "event")]
    pub all_events: bool,
    /// As whom
    #[command(flatten)]
    pub who: AsArgs,
}

/// Arguments of `webhook list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Region
    #[arg(long, value_name = "REGION", value_parser = crate::region::region_name)]
    pub region: String,
    /// As whom
    #[command(flatten)]
    pub who: AsArgs,
}

/// Arguments that name a webhook.
#[derive(Debug, Args)]
pub struct OneArgs {
    /// Name of the webhook
    #[arg(value_name = "NAME")]
    pub name: String,
    /// As whom
    #[command(flatten)]
    pub who: AsArgs,
}

#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    owner: String,
    url: String,
    kinds: Vec<&'static str>,
    event: String,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    missed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

#[derive(Debug, Serialize)]
struct Status {
    waiting: i64,
    failed_attempts: i32,
    last_failure: String,
    pause_s: i64,
    given_up: i64,
}

#[derive(Debug, Serialize)]
struct All {
    webhooks: Vec<Shown>,
}

#[derive(Debug, Serialize)]
struct Pinged<'a> {
    name: &'a str,
    delivered: bool,
    failure: String,
}

#[derive(Debug, Serialize)]
struct Deleted<'a> {
    deleted: &'a str,
}

impl From<v1::Webhook> for Shown {
    fn from(webhook: v1::Webhook) -> Self {
        let kinds = webhook.kinds().map(kind_name).collect();
        Self {
            kinds,
            name: webhook.name,
            owner: webhook.owner,
            url: webhook.url,
            event: webhook.event,
            revision: webhook.revision,
            missed: webhook.missed.map(|missed| missed.count),
            status: None,
            secret: None,
        }
    }
}

impl From<v1::WebhookStatus> for Status {
    fn from(status: v1::WebhookStatus) -> Self {
        Self {
            waiting: status.waiting,
            failed_attempts: status.failed_attempts,
            last_failure: status.last_failure,
            pause_s: status.pause.map_or(0, |pause| pause.seconds + i64::from(pause.nanos > 0)),
            given_up: status.given_up,
        }
    }
}

impl Shown {
    fn text(&self) -> String {
        let kinds = if self.kinds.is_empty() { "all".to_owned() } else { self.kinds.join(", ") };
        let event = if self.event.is_empty() { "all" } else { &self.event };
        let mut text = format!(
            "{}\n  owner    {}\n  url      {}\n  kinds    {kinds}\n  event    {event}\n",
            self.name, self.owner, self.url
        );
        if let Some(status) = &self.status {
            text += &format!("  waiting  {}\n", status.waiting);
            if status.failed_attempts > 0 {
                text += &format!(
                    "  failing  {} attempts, the last one: {}; next in {} s\n",
                    status.failed_attempts, status.last_failure, status.pause_s
                );
            }
            if status.given_up > 0 {
                text += &format!(
                    "  given up {} deliveries: an operator can replay them (tidewall dlq)\n",
                    status.given_up
                );
            }
        }
        if let Some(missed) = self.missed {
            text += &format!("  missed   {missed} changes, because too much waits\n");
        }
        if let Some(secret) = &self.secret {
            text += &format!("  secret   {secret}\n           keep it: it is not shown again\n");
        }
        text
    }

    fn print(self, format: Format) -> Result<(), Failure> {
        match format {
            Format::Json => output::json(&self),
            Format::Table => output::text(&self.text()),
        }
    }
}

/// A gateway, and who asks.
struct Asking<'a> {
    caller: Caller,
    who: &'a AsArgs,
}

impl<'a> Asking<'a> {
    async fn new(who: &'a AsArgs) -> Result<Self, Failure> {
        let caller = gateway::with_roles(&who.target, &who.token, &who.user, &[]).await?;
        Ok(Self { caller, who })
    }

    fn client(&self) -> WebhookServiceClient<Channel> {
        WebhookServiceClient::new(self.caller.channel())
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        self.caller.request(message, self.who.token.for_question())
    }
}

fn request_id() -> String {
    Uuid::now_v7().to_string()
}

fn event_name(region: &str, event: &str) -> String {
    if event.starts_with("regions/") { event.to_owned() } else { format!("{region}/events/{event}") }
}

fn nothing(of: &str) -> Failure {
    Failure::new(Exit::Refused, format!("the gateway sent nothing of {of}"))
}

/// Runs the command.
pub async fn run(command: &WebhookCommand, format: Format) -> Result<(), Failure> {
    match &command.verb {
        Verb::Create(arguments) => create(arguments, format).await,
        Verb::List(arguments) => list(arguments, format).await,
        Verb::Show(arguments) => {
            let OneArgs { name, who } = arguments;
            let asking = Asking::new(who).await?;
            let request = asking.request(v1::GetWebhookRequest { name: name.clone(), ..Default::default() });
            let answer = asking.client().get_webhook(request).await;
            let answer =
                answer.map_err(|e| Failure::from_status(format_args!("get {name}"), &e))?.into_inner();
            let shown = Shown::from(answer.webhook.ok_or_else(|| nothing(name))?);
            Shown { status: answer.status.map(Status::from), ..shown }.print(format)
        }
        Verb::Update(arguments) => update(arguments, format).await,
        Verb::RotateSecret(arguments) => {
            let OneArgs { name, who } = arguments;
            let asking = Asking::new(who).await?;
            let rotate = v1::RotateWebhookSecretRequest { name: name.clone(), request_id: request_id() };
            let answer = asking.client().rotate_webhook_secret(asking.request(rotate)).await;
            let answer = answer
                .map_err(|e| Failure::from_status(format_args!("rotate the secret of {name}"), &e))?
                .into_inner();
            let shown = Shown::from(answer.webhook.ok_or_else(|| nothing(name))?);
            let secret = (!answer.secret.is_empty()).then_some(answer.secret);
            Shown { secret, ..shown }.print(format)
        }
        Verb::Ping(arguments) => {
            let OneArgs { name, who } = arguments;
            let asking = Asking::new(who).await?;
            let request = asking.request(v1::PingWebhookRequest { name: name.clone() });
            let answer = asking.client().ping_webhook(request).await;
            let v1::PingWebhookResponse { delivered, failure } =
                answer.map_err(|e| Failure::from_status(format_args!("ping {name}"), &e))?.into_inner();
            if format == Format::Json {
                output::json(&Pinged { name, delivered, failure: failure.clone() })?;
            }
            match delivered {
                true if format == Format::Table => output::text(&format!("{name} was told\n")),
                true => Ok(()),
                false => Err(Failure::new(Exit::Refused, format!("{name} was not told: {failure}"))),
            }
        }
        Verb::Delete(arguments) => {
            let OneArgs { name, who } = arguments;
            let asking = Asking::new(who).await?;
            let delete = v1::DeleteWebhookRequest { name: name.clone(), request_id: request_id() };
            let answer = asking.client().delete_webhook(asking.request(delete)).await;
            answer.map_err(|e| Failure::from_status(format_args!("delete {name}"), &e))?;
            match format {
                Format::Json => output::json(&Deleted { deleted: name }),
                Format::Table => output::text(&format!("{name} has ended\n")),
            }
        }
    }
}

async fn create(arguments: &CreateArgs, format: Format) -> Result<(), Failure> {
    let CreateArgs { region, url, settings, who } = arguments;
    let asking = Asking::new(who).await?;
    let event = settings.event.as_ref().map(|event| event_name(region, event));
    let webhook = v1::Webhook {
        url: url.clone(),
        kinds: settings.kind.iter().map(|kind| *kind as i32).collect(),
        event: event.unwrap_or_default(),
        ..v1::Webhook::default()
    };
    let create =
        v1::CreateWebhookRequest { parent: region.clone(), webhook: Some(webhook), request_id: request_id() };
    let answer = asking.client().create_webhook(asking.request(create)).await;
    let answer = answer
        .map_err(|e| Failure::from_status(format_args!("make a webhook in {region}"), &e))?
        .into_inner();
    let shown = Shown::from(answer.webhook.ok_or_else(|| nothing(region))?);
    Shown { secret: Some(answer.secret), ..shown }.print(format)
}

async fn update(arguments: &UpdateArgs, format: Format) -> Result<(), Failure> {
    let UpdateArgs { name, url, settings, all_kinds, all_events, who } = arguments;
    let region = name.split_once("/webhooks/").map_or("", |(region, _)| region);
    let event = settings.event.as_ref().map(|event| event_name(region, event));
    let mut paths = Vec::new();
    let mut names = |path: &str, named: bool| paths.extend(named.then(|| path.to_owned()));
    names("url", url.is_some());
    names("kinds", !settings.kind.is_empty() || *all_kinds);
    names("event", event.is_some() || *all_events);
    if paths.is_empty() {
        return Err(Failure::new(Exit::Usage, "nothing is to change: name a --url, --kind or --event"));
    }
    let asking = Asking::new(who).await?;
    let webhook = v1::Webhook {
        name: name.clone(),
        url: url.clone().unwrap_or_default(),
        kinds: settings.kind.iter().map(|kind| *kind as i32).collect(),
        event: event.unwrap_or_default(),
        ..v1::Webhook::default()
    };
    let update = v1::UpdateWebhookRequest {
        webhook: Some(webhook),
        update_mask: Some(FieldMask { paths }),
        request_id: request_id(),
    };
    let answer = asking.client().update_webhook(asking.request(update)).await;
    let answer = answer.map_err(|e| Failure::from_status(format_args!("change {name}"), &e))?.into_inner();
    Shown::from(answer.webhook.ok_or_else(|| nothing(name))?).print(format)
}

async fn list(arguments: &ListArgs, format: Format) -> Result<(), Failure> {
    let ListArgs { region, who } = arguments;
    let asking = Asking::new(who).await?;
    let (mut webhooks, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListWebhooksRequest {
            parent: region.clone(),
            page_size: PAGE,
            page_token,
            owner: String::new(),
            ..Default::default()
        };
        let answer = asking.client().list_webhooks(asking.request(request)).await;
        let answer = answer
            .map_err(|e| Failure::from_status(format_args!("list the webhooks of {region}"), &e))?
            .into_inner();
        webhooks.extend(answer.webhooks.into_iter().map(Shown::from));
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    match format {
        Format::Json => output::json(&All { webhooks }),
        Format::Table if webhooks.is_empty() => output::text("no webhooks\n"),
        Format::Table => {
            let row = |webhook: &Shown| {
                let kinds = if webhook.kinds.is_empty() { "all".into() } else { webhook.kinds.join(",") };
                let event = if webhook.event.is_empty() { "all".into() } else { webhook.event.clone() };
                vec![webhook.name.clone(), webhook.owner.clone(), kinds, event, webhook.url.clone()]
            };
            let rows = webhooks.iter().map(row).collect();
            output::text(&output::table(&["NAME", "OWNER", "KINDS", "EVENT", "URL"], rows))
        }
    }
}
