"""Watching: what happens, as it happens. A watch goes on behind the last place that it was told, through failovers and over gateways, so
that nothing is missed and nothing is told twice; what cannot be told any more is an error, never a gap."""

from __future__ import annotations

import random
import threading
import time
from typing import Any, Callable, Iterator, List, Tuple

import grpc

from tidewall._errors import Failure, NotDecided
from tidewall.v1 import change_pb2, change_pb2_grpc

# A stream is asked for so long; the gateway ends it before, and the watch goes on with the next one.
_LASTS = 3600.0
# Gateways say something every ten seconds: one that says nothing for so long is left.
_SILENCE_MAX = 25.0
_PAUSE_FIRST, _PAUSE_MAX = 0.05, 1.0
# Ends after which it goes on behind the last place, beside those of a connection.
_PASSING = {"NOT_READ", "TOKEN_INVALID", "OVERLOADED", "REGION_UNAVAILABLE"}

# Says which channel is next after one that failed, and gives it with a token.
Connect = Callable[[bool], Tuple[grpc.Channel, str]]


def watch(connect: Connect, request: change_pb2.WatchRequest, timeout: float) -> Iterator[change_pb2.WatchResponse]:
    """Yields answers for ever. Raises `NotDecided` when the watch is refused, when what comes next is gone (`PLACE_GONE`), and when no
    gateway has told anything for `timeout` seconds."""
    pause, failed, failures = _PAUSE_FIRST, False, 0
    heard = time.monotonic()
    while True:
        failure = None
        try:
            for answer in _stream(connect(failed), request):
                pause, failed, failures, heard = _PAUSE_FIRST, False, 0, time.monotonic()
                if request.mode != change_pb2.WATCH_MODE_STATE:
                    request.after.CopyFrom(answer.place)
                yield answer
                heard = time.monotonic()
        except grpc.RpcError as error:
            failure = Failure(error)
            failed = failure.blames_the_connection
            if failure.reason and failure.reason not in _PASSING:
                raise NotDecided(str(failure), failure, request, failures + 1) from error
        failures += 1
        if failures > 1 and time.monotonic() - heard > timeout:
            raise NotDecided(str(failure or "no gateway tells anything"), failure, request, failures)
        time.sleep(failure.retry_after if failure and failure.retry_after else random.uniform(0, pause))
        pause = min(2 * pause, _PAUSE_MAX)


def _stream(connected: Tuple[grpc.Channel, str], request: change_pb2.WatchRequest) -> Iterator[Any]:
    channel, token = connected
    metadata: List[Tuple[str, str]] = [("authorization", f"Bearer {token}")] if token else []
    call = change_pb2_grpc.ChangeServiceStub(channel).Watch(request, timeout=_LASTS, metadata=metadata)
    try:
        while True:
            silent = threading.Timer(_SILENCE_MAX, call.cancel)
            silent.daemon = True
            silent.start()
            try:
                answer = next(call, None)
            finally:
                silent.cancel()
            if answer is None:
                return
            yield answer
    finally:
        call.cancel()
