"""Plain stubs of grpcio with the published retry policy as a client of the matrix: see matrix.py."""

import os
import pathlib
import sys
import time

import grpc
from google.rpc import error_details_pb2, status_pb2

from tidewall import new_request_id
from tidewall.v1 import operator_pb2, operator_pb2_grpc, ticket_pb2, ticket_pb2_grpc

EVENT, REGION = os.environ["EVENT"], os.environ["REGION"]
CONFIG = pathlib.Path(__file__).resolve().parents[2] / "proto" / "service-config.json"
AUTHORIZED = {"metadata": (("authorization", f"Bearer {os.environ['TOKEN']}"),)}


def channel(**options):
    return grpc.insecure_channel(
        f"ipv4:{os.environ['GATEWAYS']}",
        options=[
            ("grpc.default_authority", "tidewall"),
            ("grpc.lb_policy_name", "round_robin"),
            ("grpc.service_config", CONFIG.read_text()),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ],
        **options,
    )


def request(tier="ga"):
    return ticket_pb2.BuyTicketsRequest(parent=EVENT, tier_id=tier, quantity=1, request_id=new_request_id())


def refused(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("it was not refused")


def unary():
    with channel() as connection:
        buy, same = ticket_pb2_grpc.TicketServiceStub(connection).BuyTickets, request()
        assert buy(same, timeout=10, **AUTHORIZED) == buy(same, timeout=10, **AUTHORIZED)


def stream():
    with channel() as connection:
        metadata = (("authorization", f"Bearer {os.environ['OPERATOR_TOKEN']}"),)
        export = operator_pb2_grpc.OperatorServiceStub(connection).ExportRegion
        parts = export(operator_pb2.ExportRegionRequest(name=REGION), timeout=20, metadata=metadata)
        assert sum(len(part.chunk) for part in parts) > 1000


def compression():
    for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        with channel(compression=algorithm) as connection:
            buy = ticket_pb2_grpc.TicketServiceStub(connection).BuyTickets
            assert buy(request(), timeout=10, **AUTHORIZED).purchase.tickets


def deadline():
    with channel() as connection:
        buy = ticket_pb2_grpc.TicketServiceStub(connection).BuyTickets
        # A region may be faster than that: one of them is late.
        hasty = lambda: [buy(request(), timeout=0.0005, **AUTHORIZED) for _ in range(100)]
        assert refused(hasty).code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert refused(lambda: buy(request(), **AUTHORIZED)).code() == grpc.StatusCode.INVALID_ARGUMENT


def errors():
    with channel() as connection:
        buy = ticket_pb2_grpc.TicketServiceStub(connection).BuyTickets
        error = refused(lambda: buy(request("nope"), timeout=10, **AUTHORIZED))
        details = dict(error.trailing_metadata())["grpc-status-details-bin"]
        info = error_details_pb2.ErrorInfo()
        status_pb2.Status.FromString(details).details[0].Unpack(info)
        assert info.reason == "TIER_NOT_FOUND", info


def sale():
    end = time.monotonic() + float(os.environ["SECONDS_LONG"])
    with channel() as connection:
        buy = ticket_pb2_grpc.TicketServiceStub(connection).BuyTickets
        while time.monotonic() < end:
            print(buy(request(), timeout=10, **AUTHORIZED).purchase.tickets[0], flush=True)
            time.sleep(0.05)


globals()[sys.argv[1]]()
