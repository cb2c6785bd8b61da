/** Client of Tidewall. `Client` makes request ids, repeats what may be repeated, and tells three kinds of end apart. */
export { Client, type ClientOptions, type Done, type Service } from "./client.js";
export { Decided, NotDecided, TidewallError, Unknown } from "./errors.js";
export { newRequestId } from "./ids.js";
