//! `./simulate`: runs seeds, replays one, or shows that every mutant is caught.

#[cfg(tokio_unstable)]
mod cli;

#[cfg(tokio_unstable)]
fn main() {
    std::process::exit(cli::main());
}

#[cfg(not(tokio_unstable))]
fn main() {
    eprintln!("this program must be built for the simulation: run ./simulate at the root of the repository");
    std::process::exit(2);
}
