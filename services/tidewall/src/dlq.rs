//! `tidewall dlq`: what regions could not carry out, looked at, replayed and dropped through a gateway.

use clap::{Args, Subcommand};
use serde::Serialize;
use tidewall_proto::v1::operator_service_client::OperatorServiceClient;
use tidewall_proto::v1::{
    DeadLetter, DropDeadLetterRequest, GetDeadLetterRequest, ListDeadLettersRequest,
    ListRegionStatusesRequest, ReplayDeadLetterRequest,
};

use crate::exit::{Exit, Failure};
use crate::gateway::{self, AskArgs, Caller, TargetArgs, TokenArgs};
use crate::output::{self, Format};
use crate::region::region_name;

/// Dead letters that are asked for at a time.
const PAGE: i32 = 200;

/// Arguments of `tidewall dlq`.
#[derive(Debug, Args)]
pub struct DlqCommand {
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done with dead letters.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the dead letters of a region, or of all
    #[command(
        after_help = "Example:\n  tidewall dlq list\n  tidewall dlq list north -o json | jq '.dead_letters[].reason'\n\nA dead letter is a message of another region, or a timer, that would have broken an invariant. It was set aside; those of its saga behind it wait, all others go on. What somebody should know stands here as well."
    )]
    List(ListArgs),
    /// Show one dead letter
    #[command(after_help = "Example:\n  tidewall dlq show regions/north/deadLetters/1-4711-0")]
    Show(OneArgs),
    /// Carry a dead letter out once more, and then what waits behind it
    #[command(
        after_help = "Example:\n  tidewall dlq replay regions/north/deadLetters/1-4711-0\n\nOnce: a repetition finds none. It is refused, and stays, when it still cannot be carried out."
    )]
    Replay(OneArgs),
    /// Drop a dead letter: nothing of it is carried out, and what waits behind it goes on
    #[command(after_help = "Example:\n  tidewall dlq drop regions/north/deadLetters/1-4711-0 --yes")]
    Drop(DropArgs),
}

/// Arguments of `dlq list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Region, such as north or regions/north; all when left out
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: Option<String>,
    /// Whom to ask, and who asks
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Arguments of `dlq show` and `dlq replay`.
#[derive(Debug, Args)]
pub struct OneArgs {
    /// Name of the dead letter, as `dlq list` shows it
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who asks
    #[command(flatten)]
    pub token: TokenArgs,
}

/// Arguments of `dlq drop`.
#[derive(Debug, Args)]
pub struct DropArgs {
    /// Which one
    #[command(flatten)]
    pub one: OneArgs,
    /// Really drop it: nothing brings it back
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Serialize)]
struct Letters {
    dead_letters: Vec<Letter>,
}

#[derive(Debug, Serialize)]
struct Letter {
    name: String,
    from_region: String,
    domain: String,
    saga: String,
    reason: String,
    waits: bool,
    set_aside_time: Option<String>,
    delivery: bool,
    message_base64: String,
}

impl From<DeadLetter> for Letter {
    fn from(letter: DeadLetter) -> Self {
        use base64::Engine as _;
        Self {
            name: letter.name,
            from_region: letter.from_region,
            domain: letter.domain,
            saga: letter.saga,
            reason: letter.reason,
            waits: letter.waits,
            set_aside_time: letter.set_aside_time.map(|time| time.to_string()),
            delivery: letter.delivery,
            message_base64: base64::engine::general_purpose::STANDARD.encode(letter.message),
        }
    }
}

#[derive(Debug, Serialize)]
struct Resolved<'a> {
    name: &'a str,
    remaining: u64,
}

/// Runs the command.
pub async fn run(command: &DlqCommand, format: Format) -> Result<(), Failure> {
    match &command.verb {
        Verb::List(arguments) => list(arguments, format).await,
        Verb::Show(arguments) => show(arguments, format).await,
        Verb::Replay(arguments) => {
            let OneArgs { name, target, token } = arguments;
            let caller = gateway::operator(target, token).await?;
            let request =
                caller.request(ReplayDeadLetterRequest { name: name.clone() }, token.for_question());
            let answer = OperatorServiceClient::new(caller.channel()).replay_dead_letter(request).await;
            let answer = answer.map_err(|e| Failure::from_status(format_args!("replay {name}"), &e))?;
            resolved(name, "was carried out", answer.into_inner().remaining, format)
        }
        Verb::Drop(arguments) => {
            let OneArgs { name, target, token } = &arguments.one;
            if !arguments.yes {
                let why = format!("nothing brings {name} back once it is dropped: say --yes");
                return Err(Failure::new(Exit::Usage, why));
            }
            let caller = gateway::operator(target, token).await?;
            let request = caller.request(DropDeadLetterRequest { name: name.clone() }, token.for_question());
            let answer = OperatorServiceClient::new(caller.channel()).drop_dead_letter(request).await;
            let answer = answer.map_err(|e| Failure::from_status(format_args!("drop {name}"), &e))?;
            resolved(name, "was dropped", answer.into_inner().remaining, format)
        }
    }
}

fn resolved(name: &str, what: &str, remaining: u64, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(&Resolved { name, remaining }),
        Format::Table => {
            output::text(&format!("{name} {what}; the region has {remaining} dead letters now\n"))
        }
    }
}

async fn list(arguments: &ListArgs, format: Format) -> Result<(), Failure> {
    let AskArgs { target, token } = &arguments.ask;
    let caller = gateway::operator(target, token).await?;
    let regions = match &arguments.region {
        Some(region) => vec![region.clone()],
        None => regions(&caller, token).await?,
    };
    let mut dead_letters = Vec::new();
    for parent in regions {
        let mut page_token = String::new();
        loop {
            let request = ListDeadLettersRequest { parent: parent.clone(), page_size: PAGE, page_token };
            let request = caller.request(request, token.for_question());
            let answer = OperatorServiceClient::new(caller.channel()).list_dead_letters(request).await;
            let answer = answer
                .map_err(|e| Failure::from_status(format_args!("list the dead letters of {parent}"), &e))?
                .into_inner();
            dead_letters.extend(answer.dead_letters.into_iter().map(Letter::from));
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
    }
    match format {
        Format::Json => output::json(&Letters { dead_letters }),
        Format::Table if dead_letters.is_empty() => output::text("no dead letters\n"),
        Format::Table => {
            let row = |letter: &Letter| {
                let from = letter.from_region.trim_start_matches("regions/");
                vec![
                    letter.name.clone(),
                    if from.is_empty() { "itself".into() } else { from.to_owned() },
                    letter.domain.clone(),
                    letter.set_aside_time.clone().unwrap_or_default(),
                    match (letter.waits, letter.delivery) {
                        (true, _) => "waits",
                        (_, true) => "given up",
                        _ => "failed",
                    }
                    .to_owned(),
                    letter.reason.clone(),
                ]
            };
            let rows = dead_letters.iter().map(row).collect();
            output::text(&output::table(&["NAME", "FROM", "DOMAIN", "SINCE", "STATE", "REASON"], rows))
        }
    }
}

async fn regions(caller: &Caller, token: &TokenArgs) -> Result<Vec<String>, Failure> {
    let request = caller.request(ListRegionStatusesRequest::default(), token.for_question());
    let answer = OperatorServiceClient::new(caller.channel()).list_region_statuses(request).await;
    let answer = answer.map_err(|e| Failure::from_status("list the regions", &e))?;
    Ok(answer.into_inner().regions.into_iter().map(|region| region.name).collect())
}

async fn show(arguments: &OneArgs, format: Format) -> Result<(), Failure> {
    let OneArgs { name, target, token } = arguments;
    let caller = gateway::operator(target, token).await?;
    let request = caller.request(GetDeadLetterRequest { name: name.clone() }, token.for_question());
    let answer = OperatorServiceClient::new(caller.channel()).get_dead_letter(request).await;
    let answer = answer.map_err(|e| Failure::from_status(format_args!("get {name}"), &e))?;
    let letter = answer.into_inner().dead_letter.map(Letter::from).ok_or_else(|| {
        Failure::new(Exit::Refused, format!("the gateway at {} sent nothing of {name}", caller.url()))
    })?;
    match format {
        Format::Json => output::json(&letter),
        Format::Table => {
            let from = if letter.from_region.is_empty() { "itself" } else { &letter.from_region };
            output::text(&format!(
                "{}\n  from     {from}\n  domain   {}\n  saga     {}\n  since    {}\n  state    {}\n  reason   {}\n  message  {}\n",
                letter.name,
                letter.domain,
                letter.saga,
                letter.set_aside_time.as_deref().unwrap_or("-"),
                if letter.waits { "waits behind another one" } else { "could not be carried out" },
                letter.reason,
                letter.message_base64,
            ))
        }
    }
}
