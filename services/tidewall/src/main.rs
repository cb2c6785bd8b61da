//! Tidewall's one program: a cluster in the foreground (`up`), its single processes (`serve`), and everything
//! with which people and scripts use one.
//!
//! This file only says which commands there are. It never does any of their work.

mod account;
mod borrowed;
mod certificates;
mod cluster;
mod completions;
mod confirm;
mod datadir;
mod demo;
mod dlq;
mod duration;
mod endpoints;
mod exit;
mod failover;
mod gateway;
mod identity;
mod keys;
mod layout;
mod load;
mod man;
mod members;
mod node;
mod output;
mod ports;
mod readiness;
mod region;
mod regions_file;
mod serve;
mod service_manager;
mod signals;
mod snapshot_file;
mod stderr;
mod supervisor;
mod token;
mod up;
mod watch;
mod webhook;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Instant;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use rustix::fs::Mode;
use tracing_subscriber::EnvFilter;

use exit::{Exit, Failure};
use output::Format;

/// Keeps a transactional service standing through a surge: replicated regions behind stateless gateways.
///
/// Without a command it starts a whole cluster here, as `tidewall up` does.
#[derive(Debug, Parser)]
#[command(
    name = "tidewall",
    version = env!("TIDEWALL_VERSION"),
    after_help = "Examples:\n  tidewall                      start a cluster in ./tidewall-data\n  \
                  tidewall demo flash-sale      watch a sale\n  tidewall help exit-codes      what exit codes mean",
    max_term_width = 110
)]
struct Cli {
    /// What to do; `up` when left out
    #[command(subcommand)]
    command: Option<Command>,
    /// Arguments of `up`
    #[command(flatten)]
    up: up::UpArgs,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// What is logged to standard error, as a tracing filter such as `info` or `warn,tidewall_node=debug`
    #[arg(long, global = true, value_name = "FILTER", env = "RUST_LOG")]
    log: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a whole cluster here, and keep it running until Ctrl-C
    #[command(
        after_help = "Examples:\n  tidewall up\n  tidewall up --gateways 2 --data /var/lib/tidewall\n  \
                            tidewall up --ephemeral --listen 127.0.0.1:0 -o json"
    )]
    Up(up::UpArgs),
    /// Run one process of a cluster: a shard node or a gateway
    #[command(after_help = "Example:\n  tidewall serve gateway --listen 127.0.0.1:7500 \
                            --topology ./tidewall-data/topology.json --keys ./tidewall-data/keys/dev.pub")]
    Serve(serve::ServeCommand),
    /// Mint a bearer token with the development key
    #[command(after_help = "Examples:\n  tidewall token --user alice\n  \
                            TOKEN=$(tidewall token --user shop --role organiser --ttl 1h)")]
    Token(token::TokenCommand),
    /// Make an account and log in, as everybody can
    #[command(
        after_help = "Example:\n  TOKEN=$(tidewall account log-in --region north --email ann@example.org --password-file ./password)"
    )]
    Account(account::AccountCommand),
    /// Make the first admin of a region
    #[command(after_help = "Example:\n  tidewall admin bootstrap --region north --email root@example.org")]
    Admin(account::AdminCommand),
    /// Show what the platform does
    #[command(after_help = "Example:\n  tidewall demo flash-sale")]
    Demo(demo::DemoCommand),
    /// Send load, measure, and audit the result
    #[command(
        after_help = "Example:\n  tidewall load flash-sale --buyers 50000 --stock 10000 --mode at-once"
    )]
    Load(load::LoadCommand),
    /// Look at regions, export and import them
    #[command(
        after_help = "Examples:\n  tidewall region list\n  tidewall region export north north.tidewall"
    )]
    Region(region::RegionCommand),
    /// Look at what regions could not carry out, replay or drop it
    #[command(
        after_help = "Examples:\n  tidewall dlq list\n  tidewall dlq replay regions/north/deadLetters/1-4711-0"
    )]
    Dlq(dlq::DlqCommand),
    /// Watch what happens in a region or to an event
    #[command(
        after_help = "Examples:\n  tidewall watch regions/north/events/gala\n  tidewall watch regions/north --kind TICKETS_SOLD -o json | jq .owner\n  tidewall watch regions/north/events/gala --state\n\nWith -o json each change is a JSON document on a line of its own. What was printed last names the place behind which --after goes on."
    )]
    Watch(watch::WatchCommand),
    /// Have a server told what happens
    #[command(
        after_help = "Examples:\n  tidewall webhook create --user shop --region north --url https://shop.example/hooks\n  tidewall webhook show --user shop regions/north/webhooks/w1"
    )]
    Webhook(webhook::WebhookCommand),
    /// Look at shard nodes
    #[command(after_help = "Example:\n  tidewall node list")]
    Node(node::NodeCommand),
    /// Lay a cluster out, give it certificates, or make a copy of it another cluster
    #[command(
        after_help = "Examples:\n  tidewall cluster init --data ./cluster --host 10.0.0.1 --host 10.0.0.2 --host 10.0.0.3\n  \
                            tidewall cluster fork --data ./copy\n  \
                            tidewall cluster certify --topology topology.json"
    )]
    Cluster(identity::ClusterCommand),
    /// Print a script that completes commands in a shell
    #[command(after_help = "Examples:\n  source <(tidewall completions bash)\n  \
                            tidewall completions fish > ~/.config/fish/completions/tidewall.fish")]
    Completions(completions::CompletionsCommand),
    /// Print the manual page, or write those of all commands
    #[command(
        after_help = "Examples:\n  tidewall man | man -l -\n  tidewall man --dir /usr/local/share/man/man1"
    )]
    Man(man::ManCommand),
    /// Say what exit codes mean
    #[command(name = "exit-codes", after_help = format!("{}\nExample:\n  tidewall demo flash-sale; echo $?", exit::table()))]
    ExitCodes,
}

fn main() -> ExitCode {
    let begun = Instant::now();
    // Data, logs, keys and journals are nobody else's. A stricter mask stays.
    let inherited = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    rustix::process::umask(inherited | Mode::RWXG | Mode::RWXO);
    stderr::tell_panics();
    signals::unblock();
    let cli = match parse(std::env::args_os()) {
        Ok(cli) => cli,
        // Help and the version are what was asked for.
        Err(error) if error.use_stderr() && wants_json(std::env::args_os().skip(1)) => {
            let said = error.render().to_string();
            let message = said.trim_start_matches("error: ").trim_end();
            output::failure(&Failure::new(Exit::Usage, message), Format::Json);
            stderr::flush();
            return ExitCode::from(Exit::Usage.code());
        }
        Err(error) => error.exit(),
    };
    let format = cli.output;
    let code = match set_up_logging(&cli).and_then(|()| run(cli, begun)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::failure(&failure, format);
            ExitCode::from(failure.code())
        }
    };
    stderr::flush();
    code
}

/// Whether somebody who has written a command line that cannot be read wants to be told in JSON.
fn wants_json(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> bool {
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("-o" | "--output") => return arguments.next().is_some_and(|format| format == "json"),
            Some("-ojson" | "-o=json" | "--output=json") => return true,
            Some("--") => return false,
            _ => {}
        }
    }
    false
}

/// Reads the command line. Arguments of `up` may stand alone, but not in front of another command, which would
/// ignore them.
fn parse<A>(arguments: impl IntoIterator<Item = A>) -> Result<Cli, clap::Error>
where
    A: Into<std::ffi::OsString> + Clone,
{
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    if let Some(name) = matches.subcommand_name() {
        let of_up = <up::UpArgs as clap::Args>::augment_args(clap::Command::new("up"));
        for argument in of_up.get_arguments().map(clap::Arg::get_id) {
            if matches.value_source(argument.as_str()) == Some(ValueSource::CommandLine) {
                return Err(command.error(
                    ErrorKind::ArgumentConflict,
                    format!("--{argument} stands in front of `{name}`, which would ignore it: write it after `{name}`"),
                ));
            }
        }
    }
    Cli::from_arg_matches(&matches)
}

fn run(cli: Cli, begun: Instant) -> Result<(), Failure> {
    let (format, log) = (cli.output, cli.log.as_deref());
    match cli.command.unwrap_or(Command::Up(cli.up)) {
        Command::Up(arguments) => block_on(Threads::One, up::run(&arguments, format, log, begun)),
        Command::Serve(command) => serve::run(&command),
        Command::Token(command) => token::run(&command, format),
        Command::Account(command) => block_on(Threads::One, account::run(&command, format)),
        Command::Admin(command) => block_on(Threads::One, account::admin(&command, format)),
        Command::Demo(command) => block_on(Threads::All, demo::run(&command, format, log)),
        Command::Load(command) => block_on(Threads::All, load::run(&command, format, log)),
        Command::Region(command) => block_on(Threads::One, region::run(&command, format)),
        Command::Dlq(command) => block_on(Threads::One, dlq::run(&command, format)),
        Command::Watch(command) => block_on(Threads::One, watch::run(&command, format)),
        Command::Webhook(command) => block_on(Threads::One, webhook::run(&command, format)),
        Command::Node(command) => block_on(Threads::One, node::run(&command, format)),
        Command::Cluster(command) => identity::run(&command, format),
        Command::Completions(command) => completions::run(&command, Cli::command()),
        Command::Man(command) => man::run(&command, Cli::command()),
        Command::ExitCodes => output::text(&exit::table()),
    }
}

/// Requests allocate many small things on one thread and free them on another: the system's allocator took a sixth of
/// a node's time for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many threads a command needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Threads {
    One,
    All,
}

fn block_on(threads: Threads, work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    if threads == Threads::All {
        serve::raise_file_limit();
    }
    let mut builder = match threads {
        Threads::One => tokio::runtime::Builder::new_current_thread(),
        // A load generator on the machine that it loads leaves half of it to the cluster. One thread needs no
        // wake-ups between threads, which cost more than a call.
        Threads::All if serve::half_the_cores() == 1 => tokio::runtime::Builder::new_current_thread(),
        Threads::All => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(serve::half_the_cores());
            builder
        }
    };
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::Environment, format!("cannot start the runtime: {e}")))?;
    let result = runtime.block_on(work);
    // A file that is still being read in the background is no reason to wait.
    runtime.shutdown_background();
    result
}

/// Sends logs to standard error. What is logged by default depends on whether the log is what the command
/// is there for.
fn set_up_logging(cli: &Cli) -> Result<(), Failure> {
    let default = match &cli.command {
        // `tidewall` covers all our crates; the libraries below them say too much at `info`.
        None | Some(Command::Up(_) | Command::Serve(_)) => "warn,openraft=error,tidewall=info",
        Some(_) => "warn",
    };
    let filter = cli.log.as_deref().filter(|filter| !filter.is_empty()).unwrap_or(default);
    let filter = EnvFilter::try_new(filter).map_err(|e| {
        Failure::new(
            Exit::Usage,
            format!("{filter:?} is not a log filter ({e}): use --log or RUST_LOG as in `info` or `warn,tidewall=debug`"),
        )
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| stderr::Stderr)
        .with_ansi(
            std::io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        )
        .try_init()
        .map_err(|e| Failure::new(Exit::Failed, format!("cannot set up logging: {e}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_program_is_told_in_json_what_is_wrong_with_its_command_line() {
        let wants = |line: &str| wants_json(line.split_whitespace().map(Into::into));
        for line in ["-o json region lost", "region list --no --output json", "-ojson up", "up --output=json"]
        {
            assert!(wants(line), "{line}");
        }
        for line in ["region lost", "-o table up", "up -o", "region -- -o json"] {
            assert!(!wants(line), "{line}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_every_command_has_an_example() {
        fn check(command: &mut clap::Command, path: &str) {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example"), "the help of `{path}` has no example:\n{help}");
            let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
            for name in names.iter().filter(|name| *name != "help") {
                let path = format!("{path} {name}");
                check(command.find_subcommand_mut(name).unwrap(), &path);
            }
        }
        check(&mut Cli::command(), "tidewall");
    }

    #[test]
    fn commands_that_call_have_a_timeout() {
        for path in [
            &["region", "list"][..],
            &["region", "export"],
            &["region", "import"],
            &["node", "list"],
            &["load", "flash-sale"],
            &["account", "log-in"],
            &["admin", "bootstrap"],
        ] {
            let mut cli = Cli::command();
            let command =
                path.iter().fold(&mut cli, |command, name| command.find_subcommand_mut(name).unwrap());
            assert!(command.get_arguments().any(|a| a.get_long() == Some("timeout")), "{path:?}");
        }
    }

    #[test]
    fn without_a_command_it_is_up() {
        let cli = parse(["tidewall", "--gateways", "2", "--ephemeral"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!((cli.up.gateways, cli.up.ephemeral), (2, true));
        let cli = parse(["tidewall", "up", "--gateways", "3"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Up(up)) if up.gateways == 3));
    }

    #[test]
    fn results_can_be_asked_for_anywhere() {
        let cli = parse(["tidewall", "-o", "json", "region", "list"]).unwrap();
        assert_eq!(cli.output, Format::Json);
        assert!(matches!(cli.command, Some(Command::Region(_))));
        let cli = parse(["tidewall", "region", "list", "-o", "json"]).unwrap();
        assert_eq!(cli.output, Format::Json);
        let cli = parse(["tidewall", "token", "--user", "alice", "--role", "organiser"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Token(token)) if token.subject == "alice"));
    }

    #[test]
    fn nonsense_is_refused_by_the_parser() {
        for bad in [
            &["tidewall", "--gateways", "0"][..],
            &["tidewall", "--nodes", "0"],
            &["tidewall", "--data", "x", "region", "list"],
            &["tidewall", "--ephemeral", "--data", "x"],
            &["tidewall", "--listen", "nowhere"],
            &["tidewall", "token"],
            &["tidewall", "token", "--user", "a", "--role", "king"],
            &["tidewall", "token", "--user", "a", "--ttl", "12"],
            &["tidewall", "region", "export", "north"],
            &["tidewall", "region", "export", "North!", "x"],
            &["tidewall", "serve", "shard", "--node", "1"],
            &["tidewall", "completions", "tcsh"],
        ] {
            let error = parse(bad.iter()).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(Exit::Usage.code()), "{bad:?}");
        }
    }

    #[test]
    fn exit_codes_are_in_the_help() {
        let mut cli = Cli::command();
        let help = cli.find_subcommand_mut("exit-codes").unwrap().render_long_help().to_string();
        assert!(help.contains("70") && help.contains("71"), "{help}");
    }
}
