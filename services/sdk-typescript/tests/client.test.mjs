/** The client against a gateway that does as each test says. */
import assert from "node:assert/strict";
import http2 from "node:http2";
import net from "node:net";
import { after, test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { connectNodeAdapter, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { Client, Decided, NotDecided, Unknown, newRequestId } from "../dist/index.js";
import { ErrorInfoSchema, RetryInfoSchema } from "../dist/gen/google/rpc/error_details_pb.js";
import { AccountService } from "../dist/gen/tidewall/v1/account_pb.js";
import { ReceiptSchema } from "../dist/gen/tidewall/v1/common_pb.js";
import { ChangeService, WatchMode } from "../dist/gen/tidewall/v1/change_pb.js";
import { OperatorService } from "../dist/gen/tidewall/v1/operator_pb.js";
import { OutcomeService, OutcomeState } from "../dist/gen/tidewall/v1/outcome_pb.js";
import { BuyTicketsRequestSchema, TicketService } from "../dist/gen/tidewall/v1/ticket_pb.js";

const parent = "regions/north/events/gala";
const cleanups = [];
after(() => cleanups.forEach((clean) => clean()));

/** Ends a call as the service does. */
function ending(code, reason, { retryAfter, receipt, seen } = {}) {
  return () => {
    const details = [{ desc: ErrorInfoSchema, value: { reason, domain: "tidewall" } }];
    if (retryAfter !== undefined) {
      details.push({ desc: RetryInfoSchema, value: { retryDelay: { seconds: 0n, nanos: retryAfter * 1e6 } } });
    }
    if (receipt) {
      details.push({ desc: ReceiptSchema, value: receipt });
    }
    throw new ConnectError(reason.toLowerCase(), code, seen && { "tidewall-seen": seen }, details);
  };
}

const overloaded = ending(Code.ResourceExhausted, "OVERLOADED", { retryAfter: 200 });
const soldOut = ending(Code.FailedPrecondition, "SOLD_OUT");
const broken = () => {
  throw new ConnectError("the connection broke", Code.Unavailable);
};

/** Ends calls by `acts`, one after the other, then well. */
async function gateway(...acts) {
  const seen = { ids: [], tokens: [], sealed: [], batches: new Set(), told: [], watched: [], had: [] };
  const act = (request, context) => {
    seen.ids.push(request.requestId);
    seen.tokens.push(context.requestHeader.get("authorization"));
    seen.had.push(context.requestHeader.get("tidewall-seen"));
    acts.shift()?.(context);
  };
  const routes = (router) => {
    router.service(TicketService, {
      buyTickets(request, context) {
        act(request, context);
        return { purchase: { tickets: ["ga-1"] } };
      },
      batchBuyTickets(request, context) {
        seen.batches.add(request.purchases.map((purchase) => purchase.requestId).join());
        act(request, context);
        return {};
      },
      listTickets(request, context) {
        act(request, context);
        return {};
      },
    });
    router.service(OperatorService, {
      drainNode(request, context) {
        act(request, context);
        return {};
      },
    });
    router.service(ChangeService, {
      async *watch(request, context) {
        seen.watched.push(request);
        for (const index of seen.told.shift() ?? []) {
          const place = { incarnation: 1n, index: BigInt(index), changes: 1 };
          yield { changes: [{ place }], place };
        }
        act(request, context);
      },
    });
    router.service(OutcomeService, {
      sealRequestId(request) {
        seen.sealed.push(request.requestId);
        return { outcome: { state: OutcomeState.SEALED } };
      },
    });
    router.service(AccountService, {
      refresh(request, context) {
        act(request, context);
        return { tokens: { accessToken: "fresh" } };
      },
    });
  };
  const server = http2.createServer(connectNodeAdapter({ routes }));
  const sessions = new Set();
  server.on("session", (session) => sessions.add(session));
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  cleanups.push(() => {
    sessions.forEach((session) => session.destroy());
    server.close();
  });
  return { ...seen, url: `http://127.0.0.1:${server.address().port}` };
}

/** The address of a port that nobody listens to. */
async function nobody() {
  const server = net.createServer();
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const { port } = server.address();
  await new Promise((closed) => server.close(closed));
  return { url: `http://127.0.0.1:${port}` };
}

function client(gateways, options = {}) {
  const transports = gateways.map(({ url }) => createGrpcTransport({ baseUrl: url, idleConnectionTimeoutMs: 1_000 }));
  return new Client(transports, { token: "secret", ...options });
}

const buy = (client, options) => client.tickets.buyTickets({ parent, tierId: "ga", quantity: 1 }, options);

/** What a call that must not succeed throws. */
async function thrown(call, kind) {
  const error = await call.then(
    (done) => assert.fail(`it succeeded: ${JSON.stringify(done)}`),
    (error) => error,
  );
  assert.ok(error instanceof kind, `${error?.name}: ${error?.message}`);
  return error;
}

test("an id is made once and kept", async () => {
  const one = await gateway(overloaded, broken);
  const done = await buy(client([one]));
  assert.deepEqual([done.answer.purchase.tickets, done.attempts], [["ga-1"], 3]);
  assert.deepEqual(one.ids, Array(3).fill(done.requestId));
  assert.deepEqual(one.tokens, Array(3).fill("Bearer secret"));
  const requestId = newRequestId();
  const message = create(BuyTicketsRequestSchema, { parent, requestId });
  assert.equal((await client([one]).tickets.buyTickets(message)).requestId, requestId);
});

test("a message of the caller stays as it is", async () => {
  const message = create(BuyTicketsRequestSchema, { parent });
  const caller = client([await gateway()]);
  const [one, two] = [await caller.tickets.buyTickets(message), await caller.tickets.buyTickets(message)];
  assert.notEqual(one.requestId, two.requestId);
  assert.equal(message.requestId, "");
});

test("what the service asks for is waited for", async () => {
  const began = performance.now();
  await buy(client([await gateway(overloaded, overloaded)]));
  assert.ok(performance.now() - began >= 400);
  const error = await thrown(buy(client([await gateway(overloaded)]), { timeoutMs: 150 }), NotDecided);
  assert.equal(error.reason, "OVERLOADED");
});

test("a no is a no", async () => {
  const error = await thrown(buy(client([await gateway(soldOut)])), Decided);
  assert.deepEqual([error.reason, error.attempts], ["SOLD_OUT", 1]);
});

test("a no after a lost answer is none unless the region remembers it", async () => {
  const caller = client([await gateway(broken, soldOut)]);
  const error = await thrown(buy(caller), Unknown);
  assert.equal((await caller.seal("regions/north", error.requestId)).state, OutcomeState.SEALED);
  const remembered = ending(Code.FailedPrecondition, "SOLD_OUT", { receipt: { region: "regions/north" } });
  const decided = await thrown(buy(client([await gateway(broken, remembered)])), Decided);
  assert.equal(decided.receipt.region, "regions/north");
});

test("a request that is sent again begins in doubt", async () => {
  for (const act of [overloaded, soldOut]) {
    const caller = client([await gateway(act)], { timeoutMs: 150 });
    const call = caller.tickets.buyTickets({ parent, tierId: "ga", quantity: 1, requestId: newRequestId() });
    assert.notEqual((await thrown(call, Unknown)).requestId, "");
  }
});

test("an id that has expired says nothing of a lost attempt", async () => {
  await thrown(buy(client([await gateway(broken, ending(Code.InvalidArgument, "REQUEST_ID_EXPIRED"))])), Unknown);
});

test("what has a receipt is decided whatever its code", async () => {
  const broke = ending(Code.Internal, "INTERNAL_INVARIANT", { receipt: { region: "regions/north" } });
  await thrown(buy(client([await gateway(broke)])), Decided);
});

test("no id is made for a seal and one for each purchase of a batch", async () => {
  const one = await gateway(...Array(100).fill(broken));
  const caller = client([one]);
  await caller.outcomes.sealRequestId({ parent: "regions/north" });
  assert.deepEqual(one.sealed, [""]);
  const purchases = Array.from({ length: 3 }, () => ({ buyer: "ann", tierId: "ga", quantity: 1 }));
  const error = await thrown(caller.tickets.batchBuyTickets({ parent, purchases }, { timeoutMs: 300 }), Unknown);
  const ids = error.request.purchases.map((purchase) => purchase.requestId);
  assert.equal(new Set(ids).size, 3);
  assert.deepEqual([...one.batches], [ids.join()]);
});

test("a token that cannot be had loses no id", async () => {
  const one = await gateway(broken);
  const token = () => {
    if (one.ids.length > 0) {
      throw new Error("the token source is down");
    }
    return "secret";
  };
  const error = await thrown(buy(client([one], { token })), Unknown);
  assert.deepEqual([error.requestId], one.ids);
});

test("who logs in needs no token", async () => {
  const one = await gateway();
  const caller = client([one], {
    token: async () => (await caller.accounts.refresh({ refreshToken: "r" })).answer.tokens.accessToken,
  });
  await buy(caller);
  assert.deepEqual(one.tokens, [null, "Bearer fresh"]);
});

test("a pause of nothing is none", async () => {
  const never = ending(Code.ResourceExhausted, "OVERLOADED", { retryAfter: 0 });
  const error = await thrown(buy(client([await gateway(...Array(1000).fill(never))]), { timeoutMs: 500 }), NotDecided);
  assert.ok(error.attempts < 40, String(error.attempts));
});

test("a gateway that is not there is passed over", async () => {
  const caller = client([await nobody(), await gateway(...Array(8).fill(soldOut)), await nobody()]);
  for (let call = 0; call < 8; call++) {
    // Nothing ever left for where nobody is: the no counts.
    await thrown(buy(caller), Decided);
  }
});

test("nobody at all decides nothing", async () => {
  const error = await thrown(buy(client([await nobody()]), { timeoutMs: 1_000 }), NotDecided);
  assert.ok(error.attempts > 1);
});

test("a lost answer at the end is unknown and a lost read is nothing", async () => {
  const one = await gateway(...Array(200).fill(broken));
  await thrown(buy(client([one]), { timeoutMs: 500 }), Unknown);
  await thrown(client([one]).tickets.listTickets({ parent }, { timeoutMs: 500 }), NotDecided);
});

test("a no to a read is a no whatever was lost before", async () => {
  const caller = client([await gateway(broken, ending(Code.NotFound, "EVENT_NOT_FOUND"))]);
  await thrown(caller.tickets.listTickets({ parent }), Decided);
});

test("an order is given once", async () => {
  const error = await thrown(client([await gateway(broken)]).operator.drainNode({ node: 1n }), Unknown);
  assert.equal(error.attempts, 1);
});

test("a function gives the token of each attempt", async () => {
  const tokens = ["one", "two"];
  const one = await gateway(broken);
  await buy(client([one], { token: async () => tokens.shift() }));
  assert.deepEqual(one.tokens, ["Bearer one", "Bearer two"]);
});

test("a call that its caller ends is unknown", async () => {
  const one = await gateway(...Array(200).fill(broken));
  await thrown(buy(client([one]), { signal: AbortSignal.timeout(100) }), Unknown);
});

test("it runs over gRPC-Web as well", async () => {
  const { url } = await gateway(broken);
  const transport = createGrpcWebTransport({ baseUrl: url, httpVersion: "2", idleConnectionTimeoutMs: 1_000 });
  assert.equal((await buy(new Client([transport]))).attempts, 2);
});

test("ids are of version seven and of now", () => {
  const id = newRequestId();
  assert.match(id, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  assert.ok(Math.abs(parseInt(id.replaceAll("-", "").slice(0, 12), 16) - Date.now()) < 5_000);
});

const invalid = ending(Code.Unauthenticated, "TOKEN_INVALID");
const gone = ending(Code.OutOfRange, "PLACE_GONE");

test("reads bring along what any answer has shown", async () => {
  const shows = (text) => (context) => context.responseHeader.set("tidewall-seen", text);
  const no = ending(Code.FailedPrecondition, "SOLD_OUT", { seen: "north=1.6.65" });
  const there = await gateway(shows("north=1.5.70"), shows("south=2.1.9,north=1.4.80,junk"), no);
  const reader = client([there]);
  await buy(reader);
  await reader.tickets.listTickets({ parent });
  await thrown(buy(reader), Decided);
  await reader.tickets.listTickets({ parent });
  assert.deepEqual(there.had, [null, "north=1.5.70", null, "north=1.6.80,south=2.1.9"]);
});

test("a watch goes on behind the last place at any gateway", async () => {
  const seen = await gateway(undefined, invalid, broken, overloaded);
  seen.told.push([1, 2], [3], [], [4]);
  const heard = [];
  for await (const answer of client([seen, await nobody()]).watch({ parent })) {
    heard.push(Number(answer.place.index));
    if (heard.length === 4) {
      break;
    }
  }
  assert.deepEqual(heard, [1, 2, 3, 4]);
  assert.deepEqual(seen.watched.map((request) => Number(request.after?.index ?? 0)), [0, 2, 3, 3]);
});

test("what is gone ends a watch, and a state is asked for as it is", async () => {
  const seen = await gateway(gone);
  seen.told.push([1]);
  const answers = client([seen]).watch({ parent });
  await answers.next();
  await assert.rejects(answers.next(), (error) => error instanceof NotDecided && error.reason === "PLACE_GONE");
  const other = await gateway();
  other.told.push([1], [2]);
  const states = client([other]).watch({ parent, mode: WatchMode.STATE });
  await states.next();
  await states.next();
  await states.return();
  assert.deepEqual(other.watched.map((request) => request.after), [undefined, undefined]);
});
