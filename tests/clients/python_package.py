"""The Python package as a client of the matrix: see matrix.py."""

import os
import sys
import time

import grpc

from tidewall import Client, Decided, NotDecided, Unknown, new_request_id
from tidewall.v1 import operator_pb2, operator_pb2_grpc

GATEWAYS = os.environ["GATEWAYS"].split(",")
EVENT, REGION = os.environ["EVENT"], os.environ["REGION"]


def client(**options):
    return Client(GATEWAYS, token=os.environ["TOKEN"], **options)


def buy(client, **fields):
    return client.tickets.buy_tickets(parent=EVENT, tier_id="ga", quantity=1, **fields)


def unary():
    with client() as caller:
        request_id = new_request_id()
        assert buy(caller, request_id=request_id).answer == buy(caller, request_id=request_id).answer


def stream():
    with grpc.insecure_channel(GATEWAYS[0]) as channel:
        metadata = (("authorization", f"Bearer {os.environ['OPERATOR_TOKEN']}"),)
        export = operator_pb2_grpc.OperatorServiceStub(channel).ExportRegion
        request = operator_pb2.ExportRegionRequest(name=REGION)
        assert sum(len(part.chunk) for part in export(request, timeout=20, metadata=metadata)) > 1000


def compression():
    with client(compression=grpc.Compression.Gzip) as caller:
        assert buy(caller).purchase.tickets


def deadline():
    with client() as caller:
        # A region may be faster than that.
        for _ in range(100):
            try:
                buy(caller, timeout=0.0005)
            except (Unknown, NotDecided) as error:
                assert error.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN), error
                return
        raise AssertionError("a hundred calls of half a millisecond had an answer")


def errors():
    with client() as caller:
        try:
            caller.tickets.buy_tickets(parent=EVENT, tier_id="nope", quantity=1)
        except Decided as no:
            assert no.reason == "TIER_NOT_FOUND", no


def sale():
    end = time.monotonic() + float(os.environ["SECONDS_LONG"])
    with client() as caller:
        while time.monotonic() < end:
            print(buy(caller).purchase.tickets[0], flush=True)
            time.sleep(0.05)


globals()[sys.argv[1]]()
