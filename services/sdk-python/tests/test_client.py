"""The client against a gateway that does as each test says."""

import socket
import threading
import unittest
from concurrent import futures

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from tidewall import Client, Decided, NotDecided, Unknown, new_request_id
from tidewall.v1 import common_pb2, event_pb2, operator_pb2, operator_pb2_grpc, outcome_pb2, outcome_pb2_grpc
from tidewall.v1 import ticket_pb2, ticket_pb2_grpc

PARENT = "regions/north/events/gala"


def refuse(context, code, reason="", retry_after=None, receipt=None):
    """Ends a call as the service does; without a reason as a broken connection does."""
    if not reason:
        context.abort(code, "the connection broke")
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="tidewall")]
    if retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if receipt is not None:
        details.append(receipt)
    status = status_pb2.Status(code=code.value[0], message=reason.lower())
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, reason.lower())


class Gateway(
    ticket_pb2_grpc.TicketServiceServicer,
    outcome_pb2_grpc.OutcomeServiceServicer,
    operator_pb2_grpc.OperatorServiceServicer,
):
    """Ends calls by `acts`, one after the other, then well."""

    def __init__(self, *acts):
        self.acts, self.ids, self.tokens, self.lock = list(acts), [], [], threading.Lock()
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        ticket_pb2_grpc.add_TicketServiceServicer_to_server(self, self.server)
        outcome_pb2_grpc.add_OutcomeServiceServicer_to_server(self, self.server)
        operator_pb2_grpc.add_OperatorServiceServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def act(self, request, context):
        with self.lock:
            self.ids.append(getattr(request, "request_id", ""))
            self.tokens.append(dict(context.invocation_metadata()).get("authorization"))
            act = self.acts.pop(0) if self.acts else None
        if act:
            act(context)

    def BuyTickets(self, request, context):
        self.act(request, context)
        return ticket_pb2.BuyTicketsResponse(purchase=ticket_pb2.Purchase(tickets=["ga-1"]))

    def ListTickets(self, request, context):
        self.act(request, context)
        return ticket_pb2.ListTicketsResponse()

    def DrainNode(self, request, context):
        self.act(request, context)
        return operator_pb2.DrainNodeResponse()

    def SealRequestId(self, request, context):
        sealed = outcome_pb2.GetOutcomeResponse(state=outcome_pb2.OUTCOME_STATE_SEALED)
        return outcome_pb2.SealRequestIdResponse(outcome=sealed)


def ending(code, reason="", **details):
    return lambda context: refuse(context, code, reason, **details)


OVERLOADED = ending(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after=0.2)
BROKEN = ending(grpc.StatusCode.UNAVAILABLE)
SOLD_OUT = ending(grpc.StatusCode.FAILED_PRECONDITION, "SOLD_OUT")


def nobody():
    """The address of a port that nobody listens to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


class ClientTest(unittest.TestCase):
    def gateway(self, *acts):
        gateway = Gateway(*acts)
        self.addCleanup(lambda: gateway.server.stop(0).wait())
        return gateway

    def client(self, *gateways, **options):
        client = Client([getattr(gateway, "address", gateway) for gateway in gateways], token="secret", **options)
        self.addCleanup(client.close)
        return client

    def buy(self, client, **fields):
        return client.tickets.buy_tickets(parent=PARENT, tier_id="ga", quantity=1, **fields)

    def test_an_id_is_made_once_and_kept(self):
        gateway = self.gateway(OVERLOADED, BROKEN)
        done = self.buy(self.client(gateway))
        self.assertEqual((list(done.purchase.tickets), done.attempts), (["ga-1"], 3))
        self.assertEqual(gateway.ids, [done.request_id] * 3)
        self.assertEqual(gateway.tokens, ["Bearer secret"] * 3)
        own = new_request_id()
        message = ticket_pb2.BuyTicketsRequest(parent=PARENT, request_id=own)
        self.assertEqual(self.client(gateway).tickets.buy_tickets(message).request_id, own)

    def test_a_message_of_the_caller_stays_as_it_is(self):
        message = ticket_pb2.BuyTicketsRequest(parent=PARENT)
        client = self.client(self.gateway())
        one, two = client.tickets.buy_tickets(message), client.tickets.buy_tickets(message)
        self.assertNotEqual(one.request_id, two.request_id)
        self.assertEqual(message.request_id, "")

    def test_what_the_service_asks_for_is_waited_for(self):
        import time

        began = time.monotonic()
        self.buy(self.client(self.gateway(OVERLOADED, OVERLOADED)))
        self.assertGreaterEqual(time.monotonic() - began, 0.4)
        with self.assertRaises(NotDecided) as caught:
            self.buy(self.client(self.gateway(OVERLOADED)), timeout=0.1)
        self.assertEqual(caught.exception.reason, "OVERLOADED")

    def test_a_no_is_a_no(self):
        gateway = self.gateway(SOLD_OUT)
        with self.assertRaises(Decided) as caught:
            self.buy(self.client(gateway))
        self.assertEqual((caught.exception.reason, caught.exception.attempts), ("SOLD_OUT", 1))

    def test_a_no_after_a_lost_answer_is_none_unless_the_region_remembers_it(self):
        client = self.client(self.gateway(BROKEN, SOLD_OUT))
        with self.assertRaises(Unknown) as caught:
            self.buy(client)
        sealed = client.seal("regions/north", caught.exception.request_id)
        self.assertEqual(sealed.state, outcome_pb2.OUTCOME_STATE_SEALED)
        remembered = ending(
            grpc.StatusCode.FAILED_PRECONDITION, "SOLD_OUT", receipt=common_pb2.Receipt(region="regions/north")
        )
        with self.assertRaises(Decided) as caught:
            self.buy(self.client(self.gateway(BROKEN, remembered)))
        self.assertEqual(caught.exception.receipt.region, "regions/north")

    def test_a_gateway_that_is_not_there_is_passed_over(self):
        gateway = self.gateway(*[SOLD_OUT] * 8)
        client = self.client(nobody(), gateway, nobody())
        for _ in range(8):
            # Nothing ever left for where nobody is: the no counts.
            with self.assertRaises(Decided):
                self.buy(client)

    def test_nobody_at_all_decides_nothing(self):
        with self.assertRaises(NotDecided) as caught:
            self.buy(self.client(nobody()), timeout=1.0)
        self.assertGreater(caught.exception.attempts, 1)

    def test_a_lost_answer_at_the_end_is_unknown_and_a_lost_read_is_nothing(self):
        gateway = self.gateway(*[BROKEN] * 100)
        with self.assertRaises(Unknown):
            self.buy(self.client(gateway), timeout=0.5)
        with self.assertRaises(NotDecided):
            self.client(gateway).tickets.list_tickets(parent=PARENT, timeout=0.5)

    def test_an_order_is_given_once(self):
        gateway = self.gateway(BROKEN)
        with self.assertRaises(Unknown) as caught:
            self.client(gateway).operator.drain_node(node=1)
        self.assertEqual(caught.exception.attempts, 1)

    def test_retries_stop_when_half_of_the_budget_is_spent(self):
        client = self.client(self.gateway(*[BROKEN] * 50))
        client._budget._tokens = 503
        with self.assertRaises(Unknown) as caught:
            self.buy(client)
        self.assertEqual(caught.exception.attempts, 3)

    def test_a_function_gives_the_token_of_each_attempt(self):
        tokens = iter(["one", "two"])
        gateway = self.gateway(BROKEN)
        client = Client([gateway.address], token=lambda: next(tokens))
        self.addCleanup(client.close)
        self.buy(client)
        self.assertEqual(gateway.tokens, ["Bearer one", "Bearer two"])

    def test_ids_are_of_version_seven_and_of_now(self):
        import time
        import uuid

        made = uuid.UUID(new_request_id())
        self.assertEqual((made.version, made.variant), (7, uuid.RFC_4122))
        self.assertAlmostEqual((made.int >> 80) / 1000, time.time(), delta=5)

    def test_compressed_calls_and_many_threads(self):
        gateway = self.gateway()
        client = self.client(gateway, compression=grpc.Compression.Gzip)
        with futures.ThreadPoolExecutor(8) as pool:
            done = list(pool.map(lambda _: self.buy(client).request_id, range(50)))
        self.assertEqual(len(set(done)), 50)
        self.assertEqual(event_pb2.DESCRIPTOR.package, "tidewall.v1")


if __name__ == "__main__":
    unittest.main()
