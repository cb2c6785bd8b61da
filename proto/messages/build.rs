//! Compiles the messages of the modules with protox, so that no protoc is needed, and without a transport.

const FILES: &[&str] = &[
    "tidewall/log/v1/rejection.proto",
    "tidewall/log/v1/change.proto",
    "tidewall/log/v1/seen.proto",
    "tidewall/log/tickets/v1/tickets.proto",
    "tidewall/log/accounts/v1/accounts.proto",
    "tidewall/log/webhooks/v1/webhooks.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../proto/tidewall/log");
    prost_build::Config::new().compile_fds(protox::compile(FILES, ["../proto"])?)?;
    Ok(())
}
