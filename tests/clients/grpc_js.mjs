/** grpc-js with messages loaded from the .proto files and the published retry policy as a client of the matrix: see matrix.py. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const { GATEWAYS, EVENT, REGION, TOKEN, OPERATOR_TOKEN, SECONDS_LONG, ROOT } = process.env;
const files = ["ticket", "operator"].map((name) => `tidewall/v1/${name}.proto`);
const definition = loader.loadSync(files, { includeDirs: [`${ROOT}/proto/proto`], longs: String });
const { v1 } = grpc.loadPackageDefinition(definition).tidewall;
const options = {
  "grpc.service_config": readFileSync(`${ROOT}/proto/service-config.json`, "utf8"),
  "grpc.default_authority": "tidewall",
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 1000,
};
const connect = (Service, more = {}) =>
  new Service(`ipv4:${GATEWAYS}`, grpc.credentials.createInsecure(), { ...options, ...more });

/** A UUID of version 7: see docs/API.md. */
function requestId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const view = new DataView(bytes.buffer);
  view.setUint16(0, Math.floor(Date.now() / 2 ** 32));
  view.setUint32(2, Date.now() % 2 ** 32);
  view.setUint8(6, (view.getUint8(6) & 0x0f) | 0x70);
  view.setUint8(8, (view.getUint8(8) & 0x3f) | 0x80);
  const hex = Buffer.from(bytes).toString("hex");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

function metadata(token) {
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${token}`);
  return metadata;
}

const request = (fields = {}) => ({ parent: EVENT, tierId: "ga", quantity: 1, requestId: requestId(), ...fields });
const buy = (tickets, message, call = { deadline: Date.now() + 10_000 }) =>
  new Promise((done, failed) =>
    tickets.buyTickets(message, metadata(TOKEN), call, (error, answer) => (error ? failed(error) : done(answer))),
  );
const refused = (call) => call.then(() => assert.fail("it was not refused"), (error) => error);

const features = {
  async unary() {
    const [tickets, same] = [connect(v1.TicketService), request()];
    assert.deepEqual(await buy(tickets, same), await buy(tickets, same));
  },
  async stream() {
    const call = connect(v1.OperatorService).exportRegion({ name: REGION }, metadata(OPERATOR_TOKEN), {
      deadline: Date.now() + 20_000,
    });
    let bytes = 0;
    for await (const part of call) {
      bytes += part.chunk.length;
    }
    assert.ok(bytes > 1000);
  },
  async compression() {
    for (const algorithm of [grpc.compressionAlgorithms.gzip, grpc.compressionAlgorithms.deflate]) {
      const tickets = connect(v1.TicketService, { "grpc.default_compression_algorithm": algorithm });
      assert.equal((await buy(tickets, request())).purchase.tickets.length, 1);
    }
  },
  async deadline() {
    const tickets = connect(v1.TicketService);
    const late = await refused(buy(tickets, request(), { deadline: Date.now() + 1 }));
    assert.equal(late.code, grpc.status.DEADLINE_EXCEEDED);
    // With the retry policy it would send the largest timeout that the policy has.
    const plain = connect(v1.TicketService, { "grpc.service_config": "{}" });
    assert.equal((await refused(buy(plain, request(), {}))).code, grpc.status.INVALID_ARGUMENT);
  },
  async errors() {
    const error = await refused(buy(connect(v1.TicketService), request({ tierId: "nope" })));
    const [details] = error.metadata.get("grpc-status-details-bin");
    assert.match(details.toString("latin1"), /TIER_NOT_FOUND/);
  },
  async sale() {
    const [tickets, end] = [connect(v1.TicketService), performance.now() + SECONDS_LONG * 1000];
    while (performance.now() < end) {
      console.log((await buy(tickets, request())).purchase.tickets[0]);
      await new Promise((awake) => setTimeout(awake, 50));
    }
  },
};
await features[process.argv[2]]();
process.exit(0);
