// Buys a ticket: TOKEN=$(tidewall token --user ann) node buy.mjs http://127.0.0.1:7400 regions/north/events/gala ga
import { createGrpcTransport } from "@connectrpc/connect-node";
import { Client, Decided, Unknown } from "tidewall";

const [gateways, event, tier] = process.argv.slice(2);
const transports = gateways.split(",").map((baseUrl) => createGrpcTransport({ baseUrl }));
const client = new Client(transports, { token: process.env.TOKEN });
try {
  const done = await client.tickets.buyTickets({ parent: event, tierId: tier, quantity: 1 });
  console.log(done.answer.purchase.tickets[0]);
} catch (error) {
  if (error instanceof Unknown) console.log(await client.seal(event.split("/events/")[0], error.requestId));
  else if (error instanceof Decided) throw `refused: ${error.reason}`;
  else throw error;
}
