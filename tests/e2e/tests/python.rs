//! A client in another language, generated from the .proto files alone, buys a ticket.

use std::path::Path;
use std::process::Command;

use crate::{shared, someone};

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_generated_from_the_proto_files_buys_a_ticket() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let script = root.join("tests/e2e/python/buy_ticket.py");
    // Where .ci/run and ./test put the packages; a machine-wide installation does as well.
    let packages = root.join("target/python");
    let available =
        Command::new("python3").env("PYTHONPATH", &packages).args(["-c", "import grpc, grpc_tools"]).output();
    assert!(
        available.as_ref().is_ok_and(|output| output.status.success()),
        "python3 with grpcio-tools is missing: run `python3 -m pip install --target target/python -r \
         tests/e2e/python/requirements.txt` in the repository (./test does); {available:?}"
    );
    let cluster = shared().await;
    let output = Command::new("python3")
        .env("PYTHONPATH", &packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(script)
        .arg("--tidewall")
        .arg(tidewall_e2e::cluster::binary().unwrap())
        .arg("--data")
        .arg(cluster.data())
        .args(["--target", cluster.endpoints().gateways[0].url.trim_start_matches("http://")])
        .args(["--buyer", &someone("guido")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).to_string();
    assert!(
        output.status.success() && said.contains("bought regions/"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
