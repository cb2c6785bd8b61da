/** Calls with request ids and retries, over several gateways. One attempt is one RPC; what its end means is in `errors`. */
import { create, getOption, type DescMethodUnary, type DescService, type MessageInitShape, type MessageShape } from "@bufbuild/protobuf";
import { ConnectError, type Transport } from "@connectrpc/connect";
import { Decided, Failure, NotDecided, Unknown } from "./errors.js";
import { AccountService } from "./gen/tidewall/v1/account_pb.js";
import { WatchRequestSchema, type WatchResponse } from "./gen/tidewall/v1/change_pb.js";
import { EventService } from "./gen/tidewall/v1/event_pb.js";
import { OperatorService } from "./gen/tidewall/v1/operator_pb.js";
import { OutcomeService, type GetOutcomeResponse } from "./gen/tidewall/v1/outcome_pb.js";
import { Effect, policy } from "./gen/tidewall/v1/policy_pb.js";
import { RegionService } from "./gen/tidewall/v1/region_pb.js";
import { TicketService } from "./gen/tidewall/v1/ticket_pb.js";
import { newRequestId } from "./ids.js";
import { Seen, SEEN } from "./seen.js";
import { watch } from "./watch.js";

/** An attempt has so long, so that a gateway which is silent does not use up the call; milliseconds. */
const ATTEMPT_MAX = 4_000;
const PAUSE_FIRST = 50;
const PAUSE_MAX = 1_000;
/** As in gRFC A6: retries stop when half of the tokens are spent. */
const BUDGET_TOKENS = 1_000;
const BUDGET_REFILL = 0.1;

/** What a call yields. */
export interface Done<Answer> {
  readonly answer: Answer;
  /** Empty for what changes nothing. */
  readonly requestId: string;
  readonly attempts: number;
}

export interface CallOptions {
  /** Milliseconds that the call has, its repetitions included. */
  timeoutMs?: number;
  /** Ends the call: what it may have done is unknown. */
  signal?: AbortSignal;
}

/** What may have ids: a request, or each purchase of a batch. */
interface Identified {
  requestId?: string;
  purchases?: { requestId: string }[];
}

/** The methods of a service that are no streams. */
export type Service<S extends DescService> = {
  [M in keyof S["method"] as S["method"][M] extends DescMethodUnary ? M : never]: S["method"][M] extends DescMethodUnary<
    infer I,
    infer O
  >
    ? (request: MessageInitShape<I>, options?: CallOptions) => Promise<Done<MessageShape<O>>>
    : never;
};

export interface ClientOptions {
  /** An access token, or what gives one that is good now. */
  token?: string | (() => string | Promise<string>);
  /** Milliseconds that a call has unless it says otherwise: 10,000. */
  timeoutMs?: number;
}

/**
 * A client of one cluster, for one principal. `gateways` are transports of connect-es, one a gateway: `createGrpcTransport` of
 * `@connectrpc/connect-node` in Node, `createGrpcWebTransport` of `@connectrpc/connect-web` in a browser.
 */
export class Client {
  readonly accounts: Service<typeof AccountService>;
  readonly events: Service<typeof EventService>;
  readonly operator: Service<typeof OperatorService>;
  readonly outcomes: Service<typeof OutcomeService>;
  readonly regions: Service<typeof RegionService>;
  readonly tickets: Service<typeof TicketService>;
  private next: number;
  private tokens = BUDGET_TOKENS;
  private readonly seen = new Seen();

  constructor(
    private readonly gateways: readonly Transport[],
    private readonly options: ClientOptions = {},
  ) {
    if (gateways.length === 0) {
      throw new RangeError("give one gateway at least");
    }
    this.next = Math.floor(Math.random() * gateways.length);
    this.accounts = this.service(AccountService);
    this.events = this.service(EventService);
    this.operator = this.service(OperatorService);
    this.outcomes = this.service(OutcomeService);
    this.regions = this.service(RegionService);
    this.tickets = this.service(TicketService);
  }

  /** Makes final what became of a request: what was decided, or that nothing ever will be under its id. */
  async seal(region: string, requestId: string, options?: CallOptions): Promise<GetOutcomeResponse | undefined> {
    const done = await this.outcomes.sealRequestId({ parent: region, requestId }, options);
    return done.answer.outcome;
  }

  /** What is known of a request now; a copy that is on its way may still be decided. */
  async outcome(region: string, requestId: string, options?: CallOptions): Promise<GetOutcomeResponse> {
    return (await this.outcomes.getOutcome({ parent: region, requestId }, options)).answer;
  }

  /**
   * What happens in a region or to an event, as it happens: answers of `ChangeService.Watch`, for ever, through failovers and over
   * gateways. Each change is told once; `after` goes on behind a place. Throws `NotDecided`: with the reason PLACE_GONE what comes next
   * is not kept any more.
   */
  watch(request: MessageInitShape<typeof WatchRequestSchema>, options: CallOptions = {}): AsyncGenerator<WatchResponse> {
    const connect = async (failed: boolean) => {
      this.next += failed ? 1 : 0;
      const [headers, token] = [new Headers(), await this.token()];
      if (token) {
        headers.set("authorization", `Bearer ${token}`);
      }
      return { transport: this.gateways[this.next % this.gateways.length] as Transport, headers };
    };
    const timeoutMs = options.timeoutMs ?? this.options.timeoutMs ?? 10_000;
    return watch(connect, create(WatchRequestSchema, { ...request }), timeoutMs, options.signal);
  }

  private async token(): Promise<string | undefined> {
    return typeof this.options.token === "function" ? await this.options.token() : this.options.token;
  }

  private service<S extends DescService>(description: S): Service<S> {
    const unary = description.methods.filter((method): method is DescMethodUnary => method.methodKind === "unary");
    const methods = unary.map((method) => [
      method.localName,
      (request: MessageInitShape<typeof method.input>, options?: CallOptions) => this.pursue(method, request, options),
    ]);
    return Object.fromEntries(methods) as Service<S>;
  }

  private async pursue(
    method: DescMethodUnary,
    init: MessageInitShape<typeof method.input>,
    options: CallOptions = {},
  ): Promise<Done<MessageShape<typeof method.output>>> {
    const { effect, anonymous } = getOption(method, policy);
    const changes = effect !== Effect.READ;
    // The caller's message stays as it is.
    const request = create(method.input, { ...init }) as MessageShape<typeof method.input> & Identified;
    if (request.purchases) {
      request.purchases = request.purchases.map((purchase) => ({ ...purchase }));
    }
    // A copy of a request whose id its caller gives may be on its way, of a call that ended in doubt.
    let inDoubt = false;
    // To seal an id that nobody has used would say that nothing was done.
    for (const part of changes && method.name !== "SealRequestId" ? (request.purchases ?? [request]) : []) {
      inDoubt ||= Boolean(part.requestId);
      if (part.requestId === "") {
        part.requestId = newRequestId();
      }
    }
    const requestId = request.requestId ?? "";
    const giveUp = performance.now() + (options.timeoutMs ?? this.options.timeoutMs ?? 10_000);
    let [attempts, pause] = [0, PAUSE_FIRST];
    let failure: Failure | undefined;
    for (;;) {
      const left = giveUp - performance.now();
      if (left <= 0) {
        break;
      }
      const position = this.next % this.gateways.length;
      const headers = new Headers();
      try {
        // Who proves by the message who it is needs none; a token may come from such a call.
        const token = anonymous ? "" : await this.token();
        if (token) {
          headers.set("authorization", `Bearer ${token}`);
        }
      } catch (cause) {
        const Kind = inDoubt && changes ? Unknown : NotDecided;
        throw new Kind(`there is no token: ${cause}`, failure, request, attempts, { cause });
      }
      const seen = changes ? "" : this.seen.text();
      if (seen) {
        headers.set(SEEN, seen);
      }
      attempts += 1;
      try {
        const transport = this.gateways[position] as Transport;
        const timeout = Math.ceil(Math.min(left, ATTEMPT_MAX));
        const message = request as unknown as MessageInitShape<typeof method.input>;
        const response = await transport.unary(method, options.signal, timeout, headers, message);
        this.tokens = Math.min(BUDGET_TOKENS, this.tokens + BUDGET_REFILL);
        this.seen.note(response.header);
        return { answer: response.message, requestId, attempts };
      } catch (error) {
        failure = new Failure(error);
        if (error instanceof ConnectError) {
          this.seen.note(error.metadata);
        }
      }
      if (failure.blamesTheConnection) {
        this.next = position + 1;
      }
      inDoubt ||= changes && !failure.executedNothing;
      if (failure.isNo && (failure.isFinal || !inDoubt)) {
        throw new Decided(failure.toString(), failure, request, attempts);
      }
      if (effect === Effect.ORDER || !failure.mayBeRepeated || options.signal?.aborted) {
        break;
      }
      // What the service paces itself costs no token.
      let wait = failure.retryAfter;
      if (wait === undefined) {
        this.tokens = Math.max(0, this.tokens - 1);
        if (this.tokens <= BUDGET_TOKENS / 2) {
          break;
        }
        wait = Math.random() * pause;
        pause = Math.min(2 * pause, PAUSE_MAX);
      }
      if (performance.now() + wait >= giveUp) {
        break;
      }
      await new Promise((awake) => setTimeout(awake, wait));
    }
    const message = failure?.toString() ?? "the call had no time: give it a timeout";
    const Kind = inDoubt && changes ? Unknown : NotDecided;
    throw new Kind(message, failure, request, attempts);
  }
}
