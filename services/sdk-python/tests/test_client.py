"""The client against a gateway that does as each test says."""

import socket
import threading
import unittest
from concurrent import futures

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from tidewall import Client, Decided, NotDecided, Unknown, new_request_id
from tidewall.v1 import account_pb2, account_pb2_grpc, common_pb2, event_pb2, operator_pb2, operator_pb2_grpc, outcome_pb2, outcome_pb2_grpc
from tidewall.v1 import change_pb2, change_pb2_grpc, ticket_pb2, ticket_pb2_grpc

PARENT = "regions/north/events/gala"


def refuse(context, code, reason="", retry_after=None, receipt=None, seen=None):
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
    metadata = [("grpc-status-details-bin", status.SerializeToString())]
    context.set_trailing_metadata(tuple(metadata + ([("tidewall-seen", seen)] if seen else [])))
    context.abort(code, reason.lower())


class Gateway(
    ticket_pb2_grpc.TicketServiceServicer,
    outcome_pb2_grpc.OutcomeServiceServicer,
    operator_pb2_grpc.OperatorServiceServicer,
    account_pb2_grpc.AccountServiceServicer,
    change_pb2_grpc.ChangeServiceServicer,
):
    """Ends calls by `acts`, one after the other, then well."""

    def __init__(self, *acts):
        self.acts, self.ids, self.tokens, self.lock = list(acts), [], [], threading.Lock()
        self.sealed, self.batches = [], set()
        # Places that each stream tells before it ends by an act; and what was asked of it.
        self.told, self.watched = [], []
        # What each caller had seen.
        self.seen = []
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        ticket_pb2_grpc.add_TicketServiceServicer_to_server(self, self.server)
        outcome_pb2_grpc.add_OutcomeServiceServicer_to_server(self, self.server)
        operator_pb2_grpc.add_OperatorServiceServicer_to_server(self, self.server)
        account_pb2_grpc.add_AccountServiceServicer_to_server(self, self.server)
        change_pb2_grpc.add_ChangeServiceServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def act(self, request, context):
        with self.lock:
            self.ids.append(getattr(request, "request_id", ""))
            self.tokens.append(dict(context.invocation_metadata()).get("authorization"))
            self.seen.append(dict(context.invocation_metadata()).get("tidewall-seen"))
            act = self.acts.pop(0) if self.acts else None
        if act:
            act(context)

    def BuyTickets(self, request, context):
        self.act(request, context)
        return ticket_pb2.BuyTicketsResponse(purchase=ticket_pb2.Purchase(tickets=["ga-1"]))

    def Watch(self, request, context):
        self.watched.append(request)
        for index in self.told.pop(0) if self.told else []:
            place = change_pb2.Place(incarnation=1, index=index)
            yield change_pb2.WatchResponse(changes=[change_pb2.Change(place=place)], place=place)
        self.act(request, context)

    def ListTickets(self, request, context):
        self.act(request, context)
        return ticket_pb2.ListTicketsResponse()

    def DrainNode(self, request, context):
        self.act(request, context)
        return operator_pb2.DrainNodeResponse()

    def BatchBuyTickets(self, request, context):
        self.batches.add(frozenset(purchase.request_id for purchase in request.purchases))
        self.act(request, context)
        return ticket_pb2.BatchBuyTicketsResponse()

    def Refresh(self, request, context):
        self.act(request, context)
        return account_pb2.RefreshResponse(tokens=account_pb2.Tokens(access_token="fresh"))

    def SealRequestId(self, request, context):
        self.sealed.append(request.request_id)
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

    def test_a_request_that_is_sent_again_begins_in_doubt(self):
        for act in (OVERLOADED, SOLD_OUT):
            with self.assertRaises(Unknown) as caught:
                self.buy(self.client(self.gateway(act)), request_id=new_request_id(), timeout=0.15)
            self.assertNotEqual(caught.exception.request_id, "")

    def test_an_id_that_has_expired_says_nothing_of_a_lost_attempt(self):
        expired = ending(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_EXPIRED")
        with self.assertRaises(Unknown):
            self.buy(self.client(self.gateway(BROKEN, expired)))

    def test_what_has_a_receipt_is_decided_whatever_its_code(self):
        receipt = common_pb2.Receipt(region="regions/north")
        with self.assertRaises(Decided):
            self.buy(self.client(self.gateway(ending(grpc.StatusCode.INTERNAL, "INTERNAL_INVARIANT", receipt=receipt))))

    def test_no_id_is_made_for_a_seal_and_one_for_each_purchase_of_a_batch(self):
        gateway = self.gateway(*[BROKEN] * 100)
        client = self.client(gateway)
        client.outcomes.seal_request_id(parent="regions/north")
        self.assertEqual(gateway.sealed, [""])
        purchases = [ticket_pb2.BatchPurchase(buyer="ann", tier_id="ga", quantity=1) for _ in range(3)]
        with self.assertRaises(Unknown) as caught:
            client.tickets.batch_buy_tickets(parent=PARENT, purchases=purchases, timeout=0.3)
        ids = {purchase.request_id for purchase in caught.exception.request.purchases}
        self.assertEqual(len(ids), 3)
        self.assertEqual(gateway.batches, {frozenset(ids)}, "each attempt has the same ids")

    def test_a_token_that_cannot_be_had_loses_no_id(self):
        def token():
            if gateway.ids:
                raise OSError("the token source is down")
            return "secret"

        gateway = self.gateway(BROKEN)
        client = Client([gateway.address], token=token)
        self.addCleanup(client.close)
        with self.assertRaises(Unknown) as caught:
            self.buy(client)
        self.assertEqual([caught.exception.request_id], gateway.ids)

    def test_who_logs_in_needs_no_token(self):
        def token():
            return client.accounts.refresh(refresh_token="r").tokens.access_token

        gateway = self.gateway()
        client = Client([gateway.address], token=token)
        self.addCleanup(client.close)
        self.buy(client)
        self.assertEqual(gateway.tokens, [None, "Bearer fresh"])

    def test_a_pause_of_nothing_is_none(self):
        for delay in (0, -5):
            never = ending(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after=delay)
            with self.assertRaises(NotDecided) as caught:
                self.buy(self.client(self.gateway(*[never] * 1000)), timeout=0.5)
            self.assertLess(caught.exception.attempts, 40)

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

    def test_a_no_to_a_read_is_a_no_whatever_was_lost_before(self):
        client = self.client(self.gateway(BROKEN, ending(grpc.StatusCode.NOT_FOUND, "EVENT_NOT_FOUND")))
        with self.assertRaises(Decided):
            client.tickets.list_tickets(parent=PARENT)

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

    def test_reads_bring_along_what_any_answer_has_shown(self):
        def shows(text):
            return lambda context: context.send_initial_metadata((("tidewall-seen", text),))

        no = ending(grpc.StatusCode.FAILED_PRECONDITION, "SOLD_OUT", seen="north=1.6.65")
        gateway = self.gateway(shows("north=1.5.70"), shows("south=2.1.9,north=1.4.80,junk"), no)
        client = self.client(gateway)
        self.buy(client)
        client.tickets.list_tickets(parent=PARENT)
        with self.assertRaises(Decided):
            self.buy(client)
        client.tickets.list_tickets(parent=PARENT)
        self.assertEqual(gateway.seen, [None, "north=1.5.70", None, "north=1.6.80,south=2.1.9"])

    def test_a_watch_goes_on_behind_the_last_place_at_any_gateway(self):
        invalid = ending(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
        gateway = self.gateway(None, invalid, BROKEN, OVERLOADED)
        gateway.told = [[1, 2], [3], [], [4]]
        answers = self.client(gateway, nobody()).watch(PARENT)
        self.assertEqual([next(answers).place.index for _ in range(4)], [1, 2, 3, 4])
        self.assertEqual([request.after.index for request in gateway.watched], [0, 2, 3, 3])
        answers.close()

    def test_what_is_gone_ends_a_watch(self):
        gateway = self.gateway(ending(grpc.StatusCode.OUT_OF_RANGE, "PLACE_GONE"))
        gateway.told = [[1]]
        answers = self.client(gateway).watch(PARENT, kinds=[change_pb2.CHANGE_KIND_TICKETS_SOLD])
        next(answers)
        with self.assertRaises(NotDecided) as raised:
            next(answers)
        self.assertEqual(raised.exception.reason, "PLACE_GONE")

    def test_a_watch_that_nobody_answers_ends(self):
        with self.assertRaises(NotDecided):
            next(self.client(nobody(), timeout=0.3).watch(PARENT))

    def test_a_state_is_asked_for_as_it_is(self):
        gateway = self.gateway(None)
        gateway.told = [[1], [2]]
        answers = self.client(gateway).watch(PARENT, mode=change_pb2.WATCH_MODE_STATE)
        self.assertEqual([next(answers).place.index for _ in range(2)], [1, 2])
        self.assertFalse(any(request.HasField("after") for request in gateway.watched))
        answers.close()


if __name__ == "__main__":
    unittest.main()
