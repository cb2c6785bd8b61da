/**
 * How a call that did not succeed has ended, and how that is read from a status.
 *
 * What has no known reason may have been executed: nothing here reads more certainty into an error than the service put there.
 */
import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { ReceiptSchema, type Receipt } from "./gen/tidewall/v1/common_pb.js";

const DOMAIN = "tidewall";
/** The service says of these that nothing was executed, although their codes alone do not. */
const NOT_EXECUTED = new Set([
  "EXPIRED",
  "GATEWAY_CLOCK_AHEAD",
  "METADATA_TOO_LARGE",
  "OVERLOADED",
  "REGION_UNAVAILABLE",
]);
/** Codes of a "no", which is the same however often it is asked for. */
const NO = new Set([
  Code.InvalidArgument,
  Code.NotFound,
  Code.AlreadyExists,
  Code.PermissionDenied,
  Code.FailedPrecondition,
  Code.Aborted,
  Code.OutOfRange,
  Code.Unimplemented,
  Code.Unauthenticated,
]);
/** Said without a receipt, and true of every copy of a request. */
const OF_ALL_COPIES = new Set(["REQUEST_ID_REUSED"]);
/** Why Node could not open a connection: nothing was sent. */
const NO_CONNECTION = new Set(["ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "ENOTFOUND", "EAI_AGAIN"]);

/** A call did not succeed. `reason` is stable and for programs (docs/API.md lists them), the message is for people. */
export class TidewallError extends Error {
  readonly reason: string;
  readonly code: Code;
  readonly receipt: Receipt | undefined;
  readonly requestId: string;

  constructor(
    message: string,
    failure: Failure | undefined,
    /** The message as it was sent, with its ids: also those of the purchases of a batch. */
    readonly request: { requestId?: string },
    readonly attempts: number,
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.requestId = request.requestId ?? "";
    this.name = new.target.name;
    this.reason = failure?.reason ?? "";
    this.code = failure?.code ?? Code.Unknown;
    this.receipt = failure?.receipt;
  }
}

/** The service said no: the same request would be told the same. */
export class Decided extends TidewallError {}

/** Nothing was executed, and nothing of this call will be: it may be sent again as a new one. */
export class NotDecided extends TidewallError {}

/** It may have been executed. `Client.seal` makes that final; or send `request` again as it is, with the same id. */
export class Unknown extends TidewallError {}

/** The end of one attempt. */
export class Failure {
  readonly code: Code;
  readonly message: string;
  readonly reason: string;
  readonly receipt: Receipt | undefined;
  /** Milliseconds that the service asks to wait for. */
  readonly retryAfter: number | undefined;
  private readonly neverLeft: boolean;

  constructor(error: unknown) {
    const status = ConnectError.from(error);
    this.code = status.code;
    this.message = status.rawMessage;
    const info = status.findDetails(ErrorInfoSchema).find((info) => info.domain === DOMAIN);
    this.reason = info?.reason ?? "";
    const delay = status.findDetails(RetryInfoSchema)[0]?.retryDelay;
    const pause = delay ? Number(delay.seconds) * 1000 + delay.nanos / 1e6 : 0;
    // No time at all is no pause: this client makes its own then.
    this.retryAfter = pause > 0 ? pause : undefined;
    this.receipt = status.findDetails(ReceiptSchema)[0];
    const cause = (status.cause as { code?: unknown } | undefined)?.code;
    this.neverLeft = !this.reason && typeof cause === "string" && NO_CONNECTION.has(cause);
  }

  /** The service said no: what has a receipt was decided, whatever its code. */
  get isNo(): boolean {
    if (this.reason === "" || NOT_EXECUTED.has(this.reason)) {
      return false;
    }
    return NO.has(this.code) || this.receipt !== undefined;
  }

  /** What the service said holds for copies of the request that are still on their way, too. */
  get isFinal(): boolean {
    return this.receipt !== undefined || OF_ALL_COPIES.has(this.reason);
  }

  /** This attempt was surely not executed. */
  get executedNothing(): boolean {
    return NOT_EXECUTED.has(this.reason) || this.isNo || this.neverLeft;
  }

  /** Another attempt may end otherwise. */
  get mayBeRepeated(): boolean {
    return !this.isNo && this.reason !== "METADATA_TOO_LARGE";
  }

  /** No gateway said this. */
  get blamesTheConnection(): boolean {
    return this.reason === "";
  }

  toString(): string {
    return `${Code[this.code]}${this.reason && ` ${this.reason}`}: ${this.message}`;
  }
}
