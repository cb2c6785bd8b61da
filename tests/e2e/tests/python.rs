//! Clients in another language: one that is generated from the .proto files alone, and the package.

use std::path::{Path, PathBuf};
use std::process::Command;

use tidewall_e2e::client::{event_of, tier};

use crate::{buyer, first_region, organiser, shared, someone};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Python with the packages of `./test`; a machine-wide installation does as well.
fn python() -> Command {
    let packages = [root().join("target/python-package"), root().join("target/python")];
    let path = std::env::join_paths(packages).unwrap();
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", path).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Runs it, and gives what it said when it ended well.
fn output(command: &mut Command) -> String {
    let output = command.output().expect("python3 is there: ./test needs it");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (status, errors) = (output.status, String::from_utf8_lossy(&output.stderr));
    assert!(status.success(), "{status} (./test installs what it needs): {said}\n{errors}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_generated_from_the_proto_files_buys_a_ticket() {
    let cluster = shared().await;
    let mut command = python();
    command.arg(root().join("tests/e2e/python/buy_ticket.py")).arg("--tidewall");
    command.arg(tidewall_e2e::cluster::binary().unwrap()).arg("--data").arg(cluster.data());
    command.args(["--target", cluster.endpoints().gateways[0].url.trim_start_matches("http://")]);
    command.args(["--buyer", &someone("guido")]);
    let said = output(&mut command);
    assert!(said.contains("bought regions/"), "{said}");
}

#[test]
fn the_python_package_keeps_ids_pauses_and_tells_three_ends_apart() {
    output(python().args(["-m", "unittest", "discover", "-s"]).arg(root().join("services/sdk-python/tests")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_the_python_package_buys_a_ticket_and_is_what_the_docs_show() {
    let example = root().join("services/sdk-python/examples/buy.py");
    let text = std::fs::read_to_string(&example).unwrap();
    let (_, code) = text.split_once("\n\n").unwrap();
    let docs = std::fs::read_to_string(root().join("docs/API.md")).unwrap();
    assert!(docs.contains(code), "docs/API.md does not show {}", example.display());

    let (cluster, organiser) = (shared().await, organiser().await);
    let region = first_region(&organiser).await;
    let event = organiser.create_event(&region, event_of(vec![tier("ga", 1)])).await.unwrap().name;
    let (name, alice) = buyer().await;
    let gateway = cluster.endpoints().gateways[0].url.trim_start_matches("http://").to_owned();
    let buy = || {
        let mut command = python();
        command.env("TOKEN", cluster.token(&name, &[]).unwrap()).arg(&example);
        command.args([gateway.as_str(), &event, "ga"]);
        command
    };
    let bought = output(&mut buy());
    let there = alice.tickets_of(&event, "").await.unwrap();
    assert_eq!(there.iter().map(|ticket| ticket.name.as_str()).collect::<Vec<_>>(), [bought.trim()]);
    let refused = buy().output().unwrap();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("refused: SOLD_OUT"), "{refused:?}");
}
