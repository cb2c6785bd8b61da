"""Clients of other languages against a real cluster of three nodes and two gateways: what works, as a table.

Each client is a program that does one feature and ends with 0. `sale` buys every 50 ms for a while and prints what it bought:
meanwhile a leader, a gateway, or gateways in turns are stopped; no error may reach the client, and every ticket that was printed
must be in the region, once.

    ./clients                 # the clients that can be built here
    ./clients --only grpc-js,cpp --long
    ./clients -o json
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Callable, Dict, List, Optional

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
FEATURES = ["unary", "stream", "errors", "compression", "deadline"]
SALES = ["leader killed", "gateway killed", "gateways replaced"]
# A feature that has not ended by then has failed; seconds.
FEATURE_MAX = 60
STARTED_MAX = 120


@dataclasses.dataclass
class Client:
    """A client: how it is built, and how it is run. `build` gives why it cannot be, or nothing."""

    name: str
    command: List[str]
    build: Callable[[], Optional[str]]
    env: Dict[str, str] = dataclasses.field(default_factory=dict)


def run(*command: str, cwd: pathlib.Path = ROOT, **options) -> Optional[str]:
    """Runs a step of a build; gives the end of what it said when it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, **options)
    return None if done.returncode == 0 else (done.stderr or done.stdout)[-300:].strip()


def needs(*programs: str) -> Optional[str]:
    missing = [program for program in programs if not shutil.which(program)]
    return f"not here: {', '.join(missing)}" if missing else None


def python() -> Optional[str]:
    package = ROOT / "target/python-package"
    if not package.exists():
        return "not built: ./test does it"
    return None


def node() -> Optional[str]:
    return needs("node", "npm") or run("./package", "typescript")


def grpc_js() -> Optional[str]:
    if why := needs("node", "npm"):
        return why
    stage = ROOT / "target/clients/node"
    stage.mkdir(parents=True, exist_ok=True)
    packages = ["@grpc/grpc-js@1.14.0", "@grpc/proto-loader@0.8.0"]
    install = ["npm", "--prefix", str(stage), "install", "--silent", "--no-audit", "--no-fund"]
    return run(*install, *packages)


def cpp() -> Optional[str]:
    if why := needs("g++", "protoc", "grpc_cpp_plugin", "pkg-config"):
        return f"{why} (Debian: libgrpc++-dev, protobuf-compiler-grpc)"
    stage = ROOT / "target/clients/cpp"
    stage.mkdir(parents=True, exist_ok=True)
    protos = [f"google/api/{name}.proto" for name in ("annotations", "client", "field_behavior", "http", "resource")]
    protos += [f"google/rpc/{name}.proto" for name in ("error_details", "status")]
    protos += [f"tidewall/v1/{name}.proto" for name in ("common", "operator", "policy", "ticket")]
    plugin = shutil.which("grpc_cpp_plugin")
    include = [f"-I{ROOT / 'proto/proto'}", f"-I{ROOT / 'target/python'}"]
    generate = ["protoc", *include, f"--cpp_out={stage}", f"--grpc_out={stage}", f"--plugin=protoc-gen-grpc={plugin}"]
    if why := run(*generate, *protos):
        return why
    sources = [str(path) for path in sorted(stage.rglob("*.cc"))]
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "grpc++", "protobuf"], capture_output=True, text=True)
    compile = ["g++", "-std=c++17", "-O1", f"-I{stage}", str(HERE / "client.cc"), *sources, "-o", str(stage / "client")]
    return run(*compile, *flags.stdout.split())


def clients() -> List[Client]:
    path = {"PYTHONPATH": f"{ROOT / 'target/python-package'}:{ROOT / 'target/python'}"}
    # A module finds its packages beside itself.
    module = lambda stage, name: ["node", str(ROOT / stage / name)]
    return [
        Client("python-package", ["python3", str(HERE / "python_package.py")], python, path),
        Client("python-stubs", ["python3", str(HERE / "python_stubs.py")], python, path),
        Client("typescript-grpc", module("target/package/typescript", "node_package.mjs"), node),
        Client("typescript-grpc-web", module("target/package/typescript", "node_package.mjs"), node, {"WEB": "1"}),
        Client("grpc-js", module("target/clients/node", "grpc_js.mjs"), grpc_js),
        Client("cpp", [str(ROOT / "target/clients/cpp/client")], cpp),
    ]


class Cluster:
    """A cluster that lives as long as this process; its data go with it."""

    def __init__(self, binary: str):
        self.binary = binary
        self.directory = tempfile.TemporaryDirectory(prefix="tidewall-clients-")
        data = f"{self.directory.name}/data"
        up = [binary, "up", "--data", data, "--listen", "127.0.0.1:0", "--gateways", "2", "-o", "json"]
        self.process = subprocess.Popen(up, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        ready, _, _ = select.select([self.process.stdout], [], [], STARTED_MAX)
        if not ready:
            self.close()
            raise TimeoutError(f"the cluster did not start within {STARTED_MAX} s")
        self.ready = json.loads(self.process.stdout.readline())
        self.data = data

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.directory.cleanup()

    def tell(self, *arguments: str) -> str:
        command = [self.binary, *arguments, "--data", self.data]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def token(self, user: str, *roles: str) -> str:
        with_roles = [word for role in roles for word in ("--role", role)]
        return self.tell("token", "--user", user, *with_roles).strip()

    def gateways(self) -> List[str]:
        return [gateway["url"].removeprefix("http://") for gateway in self.ready["gateways"]]

    def processes(self, kind: str) -> List[int]:
        """Processes of the supervisor, now."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if parent == self.process.pid and kind.encode() in words:
                    found.append(int(entry.name))
        return sorted(found)

    def leader(self, region: str) -> int:
        """The process that leads a region."""
        status = json.loads(self.tell("region", "status", region, "-o", "json"))
        leader = f"{status['leader_node']}".encode()
        for process in self.processes("shard"):
            words = pathlib.Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
            if words[words.index(b"--node") + 1] == leader:
                return process
        raise RuntimeError(f"{region} has no leader")


def end_of(process: subprocess.Popen, limit: float):
    late = ""
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        late = "\nit did not end in time"
    for file in process.files:
        file.seek(0)
    out, err = (file.read() for file in process.files)
    return out, err + late


class Matrix:
    def __init__(self, cluster: Cluster, seconds: int, long: bool):
        self.cluster, self.seconds, self.long = cluster, seconds, long
        from tidewall import Client as Tidewall

        self.organiser = Tidewall(cluster.gateways(), token=cluster.token("olga", "organiser", "operator"))
        self.region = self.organiser.regions.list_regions().regions[0].name

    def start(self, client: Client, feature: str, seconds: float = 0) -> subprocess.Popen:
        env = {
            **os.environ,
            **client.env,
            "EVENT": self.event,
            "GATEWAYS": ",".join(self.cluster.gateways()),
            "OPERATOR_TOKEN": self.cluster.token("root", "operator"),
            "REGION": self.region,
            "ROOT": str(ROOT),
            "SECONDS_LONG": str(seconds),
            "TOKEN": self.cluster.token("ann"),
        }
        command = [*client.command, feature]
        # Files, because a pipe that nobody reads while something is stopped would hold the client up.
        files = [tempfile.TemporaryFile("w+") for _ in range(2)]
        process = subprocess.Popen(command, env=env, stdout=files[0], stderr=files[1])
        process.files = files
        return process

    def new_event(self) -> None:
        tier = {"tier_id": "ga", "capacity": 1_000_000}
        event = {"display_name": "matrix", "tiers": [tier], "quota_per_buyer": 100_000}
        self.event = self.organiser.events.create_event(parent=self.region, event=event).event.name

    def feature(self, client: Client, feature: str) -> str:
        process = self.start(client, feature)
        _, said = end_of(process, FEATURE_MAX)
        return "yes" if process.returncode == 0 else f"no: {said.strip()[-200:]}"

    def sale(self, client: Client, disturb: Callable[[], None], seconds: float) -> str:
        self.new_event()
        process = self.start(client, "sale", seconds)
        try:
            time.sleep(2)
            disturb()
        except BaseException:
            process.kill()
            raise
        out, said = end_of(process, seconds + FEATURE_MAX)
        bought = out.split()
        if process.returncode != 0 or not bought:
            return f"no: {said.strip()[-200:]}"
        there, token = set(), ""
        while True:
            page = self.organiser.tickets.list_tickets(parent=self.event, owner="*", page_size=5000, page_token=token)
            there |= {ticket.name for ticket in page.tickets}
            token = page.next_page_token
            if not token:
                break
        if len(set(bought)) != len(bought) or set(bought) != there:
            return f"no: {len(bought)} tickets were told, {len(set(bought))} of them different, {len(there)} are there"
        return f"yes, {len(bought)} sold"

    def kill_leader(self) -> None:
        os.kill(self.cluster.leader(self.region), signal.SIGKILL)

    def kill_gateway(self) -> None:
        os.kill(self.cluster.processes("gateway")[0], signal.SIGKILL)

    def replace_gateways(self) -> None:
        """Stops a gateway every ten seconds, in turns; the supervisor starts it again."""
        until = time.monotonic() + self.seconds_of("gateways replaced") - 5
        while time.monotonic() < until:
            os.kill(self.cluster.processes("gateway")[0], signal.SIGTERM)
            time.sleep(10)

    def seconds_of(self, sale: str) -> float:
        return 120 if self.long and sale == "gateways replaced" else 25 if sale == "gateways replaced" else self.seconds

    def row(self, client: Client) -> Dict[str, str]:
        self.new_event()
        # An export of nothing proves nothing.
        self.organiser.tickets.buy_tickets(parent=self.event, tier_id="ga", quantity=100)
        row = {feature: self.feature(client, feature) for feature in FEATURES}
        for sale, disturb in zip(SALES, (self.kill_leader, self.kill_gateway, self.replace_gateways)):
            row[sale] = self.sale(client, disturb, self.seconds_of(sale))
        return row


def table(rows: Dict[str, Dict[str, str]]) -> str:
    columns = [*FEATURES, *SALES]
    lines = [f"| client | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, row in rows.items():
        cells = [row.get(column, row.get("why", "")) for column in columns]
        lines.append(f"| {name} | {' | '.join(cell.splitlines()[0] if cell else '' for cell in cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of clients, with commas between them")
    parser.add_argument("--bin", default=str(ROOT / "target/release/tidewall"), help="the binary of the cluster")
    parser.add_argument("--seconds", type=int, default=12, help="how long a sale under a kill lasts")
    parser.add_argument("--long", action="store_true", help="replace gateways for two minutes, not for 25 s")
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    only = arguments.only.split(",") if arguments.only else None
    chosen = [client for client in clients() if only is None or client.name in only]
    if not chosen:
        parser.error(f"there is no such client: choose from {', '.join(client.name for client in clients())}")
    rows: Dict[str, Dict[str, str]] = {}
    buildable = []
    for client in chosen:
        print(f"building {client.name}", file=sys.stderr, flush=True)
        if why := client.build():
            rows[client.name] = {"why": why}
        else:
            buildable.append(client)
    # Modules of Node look for packages beside themselves.
    for source, stage in (("node_package.mjs", "target/package/typescript"), ("grpc_js.mjs", "target/clients/node")):
        if (ROOT / stage).exists():
            shutil.copy(HERE / source, ROOT / stage / source)
    # Whoever ends this program ends its cluster.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    cluster = Cluster(arguments.bin)
    try:
        matrix = Matrix(cluster, arguments.seconds, arguments.long)
        for client in buildable:
            print(f"trying {client.name}", file=sys.stderr, flush=True)
            rows[client.name] = matrix.row(client)
    finally:
        cluster.close()
    print(json.dumps(rows, indent=2) if arguments.output == "json" else table(rows))
    tried = [rows[client.name] for client in buildable]
    return 0 if tried and all(cell.startswith("yes") for row in tried for cell in row.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
