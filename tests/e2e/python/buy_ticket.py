"""Buys a ticket with a client that is generated from the .proto files at run time.

It knows nothing of Tidewall but what the .proto files and their comments say. Prints the ticket it
bought; ends with a traceback when anything is not as documented.
"""

import argparse
import pathlib
import secrets
import subprocess
import sys
import tempfile
import time
import uuid

import grpc
from grpc_tools import protoc

PROTOS = pathlib.Path(__file__).resolve().parents[3] / "proto" / "proto"
CALL_SECONDS = 20


def generate(out: str) -> None:
    """Generates the stubs of the public API."""
    import grpc_tools

    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("tidewall/v1/*.proto"))
    assert files, f"no .proto files below {PROTOS}"
    arguments = ["protoc", f"-I{PROTOS}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(arguments + files) != 0:
        sys.exit("protoc failed: see its messages above")
    sys.path.insert(0, out)


def request_id() -> str:
    """A UUID of version 7: 48 bits of Unix time in ms, the rest random (RFC 9562)."""
    value = int(time.time() * 1000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tidewall", required=True, help="path of the binary, to mint tokens")
    parser.add_argument("--data", required=True, help="data directory of the running cluster")
    parser.add_argument("--target", required=True, help="host:port of a gateway")
    parser.add_argument("--buyer", required=True, help="who buys")
    arguments = parser.parse_args()

    def credentials(user: str, *roles: str) -> tuple:
        command = [arguments.tidewall, "token", "--data", arguments.data, "--user", user]
        for role in roles:
            command += ["--role", role]
        token = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        return (("authorization", f"Bearer {token}"),)

    with tempfile.TemporaryDirectory() as out:
        generate(out)
        from tidewall.v1 import event_pb2, event_pb2_grpc, outcome_pb2, outcome_pb2_grpc
        from tidewall.v1 import region_pb2, region_pb2_grpc, ticket_pb2, ticket_pb2_grpc

        organiser = {"metadata": credentials("organiser-of-" + arguments.buyer, "organiser"), "timeout": CALL_SECONDS}
        buyer = {"metadata": credentials(arguments.buyer), "timeout": CALL_SECONDS}
        with grpc.insecure_channel(arguments.target) as channel:
            regions = region_pb2_grpc.RegionServiceStub(channel)
            events = event_pb2_grpc.EventServiceStub(channel)
            tickets = ticket_pb2_grpc.TicketServiceStub(channel)
            outcomes = outcome_pb2_grpc.OutcomeServiceStub(channel)

            region = regions.ListRegions(region_pb2.ListRegionsRequest(), **buyer).regions[0].name
            event = events.CreateEvent(
                event_pb2.CreateEventRequest(
                    parent=region,
                    event=event_pb2.Event(
                        display_name="A concert",
                        tiers=[event_pb2.Tier(tier_id="ga", display_name="General", capacity=3)],
                    ),
                    request_id=request_id(),
                ),
                **organiser,
            ).event

            purchase = ticket_pb2.BuyTicketsRequest(
                parent=event.name, tier_id="ga", quantity=1, request_id=request_id()
            )
            bought = tickets.BuyTickets(purchase, **buyer)
            assert tickets.BuyTickets(purchase, **buyer) == bought, "the same request got another answer"
            name = bought.purchase.tickets[0]
            ticket = tickets.GetTicket(ticket_pb2.GetTicketRequest(name=name), **buyer).ticket
            assert (ticket.name, ticket.owner) == (name, arguments.buyer), ticket
            tier = events.GetEvent(event_pb2.GetEventRequest(name=event.name), **buyer).event.tiers[0]
            assert (tier.free, tier.held, tier.sold) == (2, 0, 1), tier

            decided = outcomes.GetOutcome(
                outcome_pb2.GetOutcomeRequest(parent=region, request_id=purchase.request_id), **buyer
            )
            assert list(decided.purchase.tickets) == [name], decided

            # A wrong call is refused as common.proto says.
            try:
                tickets.BuyTickets(purchase, metadata=buyer["metadata"])
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
                assert error.details(), error
            else:
                sys.exit("a call without deadline was accepted")
            print(f"bought {name} for {ticket.owner}")


if __name__ == "__main__":
    main()
