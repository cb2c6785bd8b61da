/**
 * Watching: what happens, as it happens. A watch goes on behind the last place that it was told, through failovers and over gateways, so
 * that nothing is missed and nothing is told twice; what cannot be told any more is an error, never a gap.
 */
import type { Transport } from "@connectrpc/connect";
import { Failure, NotDecided } from "./errors.js";
import { ChangeService, WatchMode, type WatchRequest, type WatchResponse } from "./gen/tidewall/v1/change_pb.js";

/** A stream is asked for so long; the gateway ends it before, and the watch goes on with the next one. Milliseconds. */
const LASTS = 3_600_000;
/** Gateways say something every ten seconds: one that says nothing for so long is left. */
const SILENCE_MAX = 25_000;
const PAUSE_FIRST = 50;
const PAUSE_MAX = 1_000;
/** Ends after which it goes on behind the last place, beside those of a connection. */
const PASSING = new Set(["NOT_READ", "TOKEN_INVALID", "OVERLOADED", "REGION_UNAVAILABLE"]);

/** Says which gateway is next after one that failed, and gives it with headers. */
export type Connect = (failed: boolean) => Promise<{ transport: Transport; headers: Headers }>;

/** Answers for ever; see `Client.watch`. */
export async function* watch(
  connect: Connect,
  request: WatchRequest,
  timeoutMs: number,
  signal?: AbortSignal,
): AsyncGenerator<WatchResponse> {
  let [pause, failed, failures, heard] = [PAUSE_FIRST, false, 0, performance.now()];
  while (!signal?.aborted) {
    let failure: Failure | undefined;
    try {
      for await (const answer of stream(await connect(failed), request, signal)) {
        [pause, failed, failures] = [PAUSE_FIRST, false, 0];
        if (request.mode !== WatchMode.STATE) {
          request.after = answer.place;
        }
        yield answer;
        heard = performance.now();
      }
    } catch (error) {
      failure = new Failure(error);
      failed = failure.blamesTheConnection;
      if (failure.reason && !PASSING.has(failure.reason)) {
        throw new NotDecided(failure.toString(), failure, {}, failures + 1, { cause: error });
      }
    }
    failures += 1;
    if (failures > 1 && performance.now() - heard > timeoutMs) {
      throw new NotDecided(failure?.toString() ?? "no gateway tells anything", failure, {}, failures);
    }
    const wait = failure?.retryAfter ?? Math.random() * pause;
    await new Promise((awake) => setTimeout(awake, wait));
    pause = Math.min(2 * pause, PAUSE_MAX);
  }
}

async function* stream(
  { transport, headers }: { transport: Transport; headers: Headers },
  request: WatchRequest,
  signal?: AbortSignal,
): AsyncGenerator<WatchResponse> {
  const silent = new AbortController();
  const signals = signal ? AbortSignal.any([signal, silent.signal]) : silent.signal;
  const leave = () => silent.abort();
  let timer = setTimeout(leave, SILENCE_MAX);
  const input = (async function* () {
    yield request;
  })();
  try {
    const response = await transport.stream(ChangeService.method.watch, signals, LASTS, headers, input);
    for await (const answer of response.message) {
      clearTimeout(timer);
      yield answer;
      timer = setTimeout(leave, SILENCE_MAX);
    }
  } finally {
    clearTimeout(timer);
    // Whoever leaves the loop leaves the stream.
    silent.abort();
  }
}
