//! The program behind `./chaos`.

fn main() -> std::process::ExitCode {
    tidewall_chaos::cli::main()
}
