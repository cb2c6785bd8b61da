//! `tidewall account` and `tidewall admin`: registering, logging in, and the first admin of a region.
//!
//! Passwords come from files, standard input or the environment, never from the command line, where every process can read them.

use std::io::Read as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use tidewall_gateway::auth::Role;
use tidewall_proto::v1::account_service_client::AccountServiceClient;
use tidewall_proto::v1::{BootstrapAdminRequest, LogInRequest, LogInResponse, RegisterRequest};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::exit::{Exit, Failure};
use crate::gateway::{self, Caller, TargetArgs, TokenArgs};
use crate::output::{self, Format};

/// Longest file with a password, bytes.
const PASSWORD_BYTES_MAX: u64 = 4_096;

/// Arguments of `tidewall account`.
#[derive(Debug, Args)]
pub struct AccountCommand {
    /// What to do
    #[command(subcommand)]
    pub verb: AccountVerb,
}

/// What everybody can do about an own account.
#[derive(Debug, Subcommand)]
pub enum AccountVerb {
    /// Make an account
    #[command(
        after_help = "Example:\n  TIDEWALL_PASSWORD='correct horse' tidewall account register --region north --email ann@example.org\n\nThe answer is the same when the e-mail has an account already, which then stays as it is: log in to see."
    )]
    Register(RegisterArgs),
    /// Log in, and print an access token
    #[command(
        after_help = "Example:\n  TOKEN=$(TIDEWALL_PASSWORD='correct horse' tidewall account log-in --region north --email ann@example.org)\n\nThe token lives for ten minutes. With -o json there is also the refresh token, which gives the next one."
    )]
    LogIn(LogInArgs),
}

/// Arguments of `tidewall admin`.
#[derive(Debug, Args)]
pub struct AdminCommand {
    /// What to do
    #[command(subcommand)]
    pub verb: AdminVerb,
}

/// What those can do who have the cluster's key.
#[derive(Debug, Subcommand)]
pub enum AdminVerb {
    /// Make the first admin of a region, who can grant roles to others
    #[command(
        after_help = "Examples:\n  tidewall admin bootstrap --region north --email root@example.org\n  tidewall admin bootstrap --region north --email root@example.org --password-file ./password\n\nRegisters the account and logs in: one that exists needs its password. Without a password one is made and printed, once. Refused when the region has an admin."
    )]
    Bootstrap(BootstrapArgs),
}

/// Whose account it is.
#[derive(Debug, Args)]
pub struct WhoArgs {
    /// Region of the account
    #[arg(long, value_name = "REGION", value_parser = crate::region::region_name)]
    pub region: String,
    /// E-mail of the account
    #[arg(long, value_name = "ADDRESS")]
    pub email: String,
    /// File whose first line is the password, - for standard input [default: the variable TIDEWALL_PASSWORD]
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

/// Arguments of `tidewall account register`.
#[derive(Debug, Args)]
pub struct RegisterArgs {
    /// Who
    #[command(flatten)]
    pub who: WhoArgs,
    /// Name for people
    #[arg(long, value_name = "NAME", default_value = "")]
    pub display_name: String,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Give up after this time
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse, default_value = "10s")]
    pub timeout: std::time::Duration,
}

/// Arguments of `tidewall account log-in`.
#[derive(Debug, Args)]
pub struct LogInArgs {
    /// Who
    #[command(flatten)]
    pub who: WhoArgs,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Give up after this time
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse, default_value = "10s")]
    pub timeout: std::time::Duration,
}

/// Arguments of `tidewall admin bootstrap`.
#[derive(Debug, Args)]
pub struct BootstrapArgs {
    /// Who
    #[command(flatten)]
    pub who: WhoArgs,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who asks
    #[command(flatten)]
    pub token: TokenArgs,
}

#[derive(Serialize)]
struct Registered<'a> {
    region: &'a str,
    email: &'a str,
}

#[derive(Serialize)]
struct LoggedIn {
    account: String,
    session: String,
    access_token: String,
    refresh_token: String,
}

#[derive(Serialize)]
struct Bootstrapped {
    account: String,
    /// Only when it was made here.
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
}

/// Runs `tidewall account`.
pub async fn run(command: &AccountCommand, format: Format) -> Result<(), Failure> {
    match &command.verb {
        AccountVerb::Register(arguments) => register(arguments, format).await,
        AccountVerb::LogIn(arguments) => log_in(arguments, format).await,
    }
}

/// Runs `tidewall admin`.
pub async fn admin(command: &AdminCommand, format: Format) -> Result<(), Failure> {
    let AdminVerb::Bootstrap(arguments) = &command.verb;
    bootstrap(arguments, format).await
}

/// The password, if there is one.
fn password(who: &WhoArgs) -> Result<Option<String>, Failure> {
    let text = match &who.password_file {
        None => std::env::var("TIDEWALL_PASSWORD").ok().filter(|password| !password.is_empty()),
        Some(path) => {
            let failed = |e| {
                Failure::new(
                    Exit::Environment,
                    format!("cannot read the password from {}: {e}", path.display()),
                )
            };
            let mut text = String::new();
            let read = match path.as_os_str() == "-" {
                true => std::io::stdin().take(PASSWORD_BYTES_MAX).read_to_string(&mut text),
                false => std::fs::File::open(path)
                    .and_then(|file| file.take(PASSWORD_BYTES_MAX).read_to_string(&mut text)),
            };
            read.map_err(failed)?;
            Some(text.lines().next().unwrap_or_default().to_owned())
        }
    };
    Ok(text)
}

fn needed(who: &WhoArgs) -> Result<String, Failure> {
    password(who)?.ok_or_else(|| {
        Failure::new(Exit::Usage, "no password: name a file with --password-file, or set TIDEWALL_PASSWORD")
    })
}

fn request_id() -> String {
    Uuid::now_v7().to_string()
}

async fn make(
    caller: &Caller,
    who: &WhoArgs,
    password: String,
    display_name: &str,
    timeout: std::time::Duration,
) -> Result<(), Failure> {
    let message = RegisterRequest {
        parent: who.region.clone(),
        email: who.email.clone(),
        password,
        display_name: display_name.to_owned(),
        request_id: request_id(),
        ..Default::default()
    };
    let request = caller.request(message, timeout);
    let answer = AccountServiceClient::new(caller.channel()).register(request).await;
    answer.map(drop).map_err(|e| Failure::from_status(format_args!("register {}", who.email), &e))
}

async fn register(arguments: &RegisterArgs, format: Format) -> Result<(), Failure> {
    let RegisterArgs { who, display_name, target, timeout } = arguments;
    let password = needed(who)?;
    let caller = gateway::nobody(target, *timeout).await?;
    make(&caller, who, password, display_name, *timeout).await?;
    match format {
        // Whether the e-mail was free is told to nobody.
        Format::Table => output::text(&format!(
            "{} can log in to {}, unless the e-mail belonged to somebody already\n",
            who.email, who.region
        )),
        Format::Json => output::json(&Registered { region: &who.region, email: &who.email }),
    }
}

async fn enter(
    caller: &Caller,
    who: &WhoArgs,
    password: String,
    timeout: std::time::Duration,
) -> Result<LogInResponse, Status> {
    let message = LogInRequest {
        parent: who.region.clone(),
        email: who.email.clone(),
        password,
        device: "tidewall".to_owned(),
        request_id: request_id(),
    };
    let answer = AccountServiceClient::new(caller.channel()).log_in(caller.request(message, timeout)).await;
    answer.map(tonic::Response::into_inner)
}

async fn log_in(arguments: &LogInArgs, format: Format) -> Result<(), Failure> {
    let LogInArgs { who, target, timeout } = arguments;
    let password = needed(who)?;
    let caller = gateway::nobody(target, *timeout).await?;
    let answer = enter(&caller, who, password, *timeout).await;
    let answer = answer.map_err(|e| match e.code() {
        Code::Unauthenticated => {
            Failure::new(Exit::Refused, format!("cannot log in as {}: {}", who.email, e.message()))
        }
        _ => Failure::from_status(format_args!("log in as {}", who.email), &e),
    })?;
    let tokens = answer.tokens.unwrap_or_default();
    match format {
        Format::Table => output::text(&(tokens.access_token + "\n")),
        Format::Json => output::json(&LoggedIn {
            account: answer.account,
            session: answer.session,
            access_token: tokens.access_token,
            refresh_token: tokens.refresh_token,
        }),
    }
}

async fn bootstrap(arguments: &BootstrapArgs, format: Format) -> Result<(), Failure> {
    let BootstrapArgs { who, target, token } = arguments;
    let timeout = token.for_question();
    let given = password(who)?;
    // 128 random bits.
    let made = given.is_none().then(|| Uuid::from_bytes(tidewall_env::random::secret()).simple().to_string());
    let password = given.or_else(|| made.clone()).unwrap_or_default();
    let caller = gateway::with_role(target, token, "bootstrap", Role::Admin).await?;
    let account = appoint(&caller, who, &password, timeout).await.inspect_err(|_| {
        if let Some(made) = &made {
            // Nobody else knows it, should the account be there now.
            output::note(&format!("if {} has an account now, its password is {made}", who.email));
        }
    })?;
    match format {
        Format::Table => {
            let mut text = format!("{} is the first admin of {}: {account}\n", who.email, who.region);
            if let Some(password) = made {
                text += &format!("password, shown this once: {password}\n");
            }
            output::text(&text)
        }
        Format::Json => output::json(&Bootstrapped { account, password: made }),
    }
}

/// Registers, logs in, and is appointed; gives the account.
async fn appoint(
    caller: &Caller,
    who: &WhoArgs,
    password: &str,
    timeout: std::time::Duration,
) -> Result<String, Failure> {
    make(caller, who, password.to_owned(), "", timeout).await?;
    // Anybody may have registered this e-mail before: only who has the password is appointed.
    let account = match enter(caller, who, password.to_owned(), timeout).await {
        Err(status) if status.code() == Code::Unauthenticated => {
            return Err(Failure::new(
                Exit::Refused,
                format!(
                    "{} has an account with another password: give its password, or another e-mail",
                    who.email
                ),
            ));
        }
        entered => {
            entered.map_err(|e| Failure::from_status(format_args!("log in as {}", who.email), &e))?.account
        }
    };
    let message = BootstrapAdminRequest { name: account.clone(), request_id: request_id() };
    let appointed =
        AccountServiceClient::new(caller.channel()).bootstrap_admin(caller.request(message, timeout)).await;
    let what = format_args!("make {} the first admin of {}", who.email, who.region);
    appointed.map_err(|e| Failure::from_status(what, &e))?;
    Ok(account)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_password_is_the_first_line_of_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let who =
            |password_file| WhoArgs { region: "regions/north".into(), email: String::new(), password_file };
        let missing = needed(&who(Some(path.clone()))).unwrap_err();
        assert!(missing.code() == 5 && missing.to_string().contains("password"), "{missing}");
        std::fs::write(&path, "correct horse\nand more\n").unwrap();
        assert_eq!(needed(&who(Some(path))).unwrap(), "correct horse");
    }
}
