"""Buys tickets with the published retry policy until it is told to stop.

All retries come from the policy (proto/service-config.json); the deadline of each call is the caller's own. First a
server in this process, which fails as a gateway may, shows that the library does what the policy says.
Prints one line for each ticket; ends with a traceback when a call fails.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import threading
from concurrent import futures

import grpc
from buy_ticket import generate, request_id

CALL_SECONDS = 10
CONFIG = pathlib.Path(__file__).resolve().parents[3] / "proto" / "service-config.json"


def channel(target: str) -> grpc.Channel:
    """A channel that follows the policy."""
    return grpc.insecure_channel(target, options=[("grpc.service_config", CONFIG.read_text())])


def purchase(event: str):
    from tidewall.v1 import ticket_pb2

    return ticket_pb2.BuyTicketsRequest(parent=event, tier_id="ga", quantity=1, request_id=request_id())


def check_policy() -> None:
    """Calls a server whose errors are known, and looks at what it was sent."""
    from tidewall.v1 import ticket_pb2, ticket_pb2_grpc

    seen = []
    errors = []

    class Failing(ticket_pb2_grpc.TicketServiceServicer):
        def BuyTickets(self, request, context):
            seen.append((request.request_id, context.time_remaining()))
            if errors:
                context.abort(errors.pop(0), "as told")
            return ticket_pb2.BuyTicketsResponse()

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    ticket_pb2_grpc.add_TicketServiceServicer_to_server(Failing(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with channel(f"127.0.0.1:{port}") as connection:
            tickets = ticket_pb2_grpc.TicketServiceStub(connection)
            errors[:] = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
            request = purchase("regions/north/events/gala")
            tickets.BuyTickets(request, timeout=CALL_SECONDS)
            assert [name for name, _ in seen] == [request.request_id] * 3, seen
            # gRPC rounds what it sends up, by a few per cent; a call without a deadline has years.
            assert all(0 < left < 2 * CALL_SECONDS for _, left in seen), f"the deadline got lost: {seen}"
            # An outcome that is unknown, or decided, is the caller's to handle.
            for code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.FAILED_PRECONDITION):
                seen.clear()
                errors[:] = [code]
                try:
                    tickets.BuyTickets(request, timeout=CALL_SECONDS)
                except grpc.RpcError as error:
                    assert error.code() == code and len(seen) == 1, (error, seen)
                else:
                    sys.exit(f"{code} was retried")
    finally:
        server.stop(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="host:port of a gateway")
    parser.add_argument("--event", required=True, help="event to buy for; it has a tier called ga")
    arguments = parser.parse_args()
    # In the environment, not on the command line, where everybody on the machine could read it.
    metadata = (("authorization", f"Bearer {os.environ['TOKEN']}"),)

    stop = threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    with tempfile.TemporaryDirectory() as out:
        generate(out)
        from tidewall.v1 import ticket_pb2_grpc

        check_policy()
        with channel(arguments.target) as connection:
            tickets = ticket_pb2_grpc.TicketServiceStub(connection)
            while not stop.wait(0.02):
                bought = tickets.BuyTickets(
                    purchase(arguments.event), metadata=metadata, timeout=CALL_SECONDS
                )
                for name in bought.purchase.tickets:
                    print(f"bought {name}", flush=True)


if __name__ == "__main__":
    main()
