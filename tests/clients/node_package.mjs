/** The TypeScript package as a client of the matrix, over gRPC or gRPC-Web: see matrix.py. */
import assert from "node:assert/strict";
import { Code, createClient } from "@connectrpc/connect";
import { compressionGzip, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { Client, Decided, NotDecided, Unknown, newRequestId } from "tidewall";
import { OperatorService } from "tidewall/v1/operator";

const { GATEWAYS, EVENT, REGION, TOKEN, OPERATOR_TOKEN, SECONDS_LONG, WEB } = process.env;
const urls = GATEWAYS.split(",").map((address) => `http://${address}`);
const transport = (baseUrl, options = {}) =>
  WEB
    ? createGrpcWebTransport({ baseUrl, httpVersion: "1.1", ...options })
    : createGrpcTransport({ baseUrl, idleConnectionTimeoutMs: 2_000, ...options });
const client = (options) => new Client(urls.map((url) => transport(url, options)), { token: TOKEN });
const buy = (caller, fields = {}, options) =>
  caller.tickets.buyTickets({ parent: EVENT, tierId: "ga", quantity: 1, ...fields }, options);

const features = {
  async unary() {
    const [caller, requestId] = [client(), newRequestId()];
    const [one, two] = [await buy(caller, { requestId }), await buy(caller, { requestId })];
    assert.deepEqual(one.answer.purchase, two.answer.purchase);
  },
  async stream() {
    const headers = { authorization: `Bearer ${OPERATOR_TOKEN}` };
    let bytes = 0;
    const operator = createClient(OperatorService, transport(urls[0]));
    for await (const part of operator.exportRegion({ name: REGION }, { headers, timeoutMs: 20_000 })) {
      bytes += part.chunk.length;
    }
    assert.ok(bytes > 1000);
  },
  async compression() {
    const done = await buy(client({ sendCompression: compressionGzip, compressMinBytes: 0 }));
    assert.equal(done.answer.purchase.tickets.length, 1);
  },
  async deadline() {
    const error = await buy(client(), {}, { timeoutMs: 1 }).catch((error) => error);
    assert.ok(error instanceof Unknown || error instanceof NotDecided, error);
    assert.ok([Code.DeadlineExceeded, Code.Unknown].includes(error.code), error);
  },
  async errors() {
    const error = await buy(client(), { tierId: "nope" }).catch((error) => error);
    assert.ok(error instanceof Decided && error.reason === "TIER_NOT_FOUND", error);
  },
  async sale() {
    const [caller, end] = [client(), performance.now() + SECONDS_LONG * 1000];
    while (performance.now() < end) {
      console.log((await buy(caller)).answer.purchase.tickets[0]);
      await new Promise((awake) => setTimeout(awake, 50));
    }
  },
};
await features[process.argv[2]]();
process.exit(0);
