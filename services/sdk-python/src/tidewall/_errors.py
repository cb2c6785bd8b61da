"""How a call that did not succeed has ended, and how that is read from a status.

What has no known reason may have been executed: nothing here reads more certainty into an error than the service put there.
"""

from __future__ import annotations

import contextlib
from typing import Any, Optional

import grpc
from google.rpc import error_details_pb2, status_pb2

from tidewall.v1 import common_pb2

_DOMAIN = "tidewall"
# The service says of these that nothing was executed, although their codes alone do not.
_NOT_EXECUTED = {
    "EXPIRED",
    "GATEWAY_CLOCK_AHEAD",
    "METADATA_TOO_LARGE",
    "OVERLOADED",
    "REGION_UNAVAILABLE",
}
# Codes of a "no", which is the same however often it is asked for.
_NO = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
}
# How the library begins when it has no connection to send an attempt by.
_NO_CONNECTION = "failed to connect to all addresses"
# Said without a receipt, and true of every copy of a request.
_OF_ALL_COPIES = {"REQUEST_ID_REUSED"}


class Error(Exception):
    """A call did not succeed. `reason` is stable and for programs (docs/API.md lists them), the message is for people.

    `request` is the message as it was sent, with its ids: also those of the purchases of a batch.
    """

    def __init__(self, message: str, failure: Optional["Failure"], request: Any, attempts: int):
        super().__init__(message)
        self.request = request
        self.request_id: str = getattr(request, "request_id", "")
        self.reason = failure.reason if failure else ""
        self.code = failure.code if failure else grpc.StatusCode.UNKNOWN
        self.receipt = failure.receipt if failure else None
        self.attempts = attempts


class Decided(Error):
    """The service said no: the same request would be told the same."""


class NotDecided(Error):
    """Nothing was executed, and nothing of this call will be: it may be sent again as a new one."""


class Unknown(Error):
    """It may have been executed. `Client.seal` makes that final; or send `request` again as it is, with the same id."""


class Failure:
    """The end of one attempt."""

    def __init__(self, error: grpc.RpcError):
        self.code: grpc.StatusCode = error.code()
        self.message: str = error.details() or ""
        self.reason = ""
        self.receipt: Optional[common_pb2.Receipt] = None
        self.retry_after: Optional[float] = None
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                self._read(value)

    def _read(self, value: bytes) -> None:
        # What no service of ours has written says nothing.
        with contextlib.suppress(Exception):
            self._read_details(status_pb2.Status.FromString(value).details)

    def _read_details(self, details: Any) -> None:
        for detail in details:
            info, retry, receipt = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), common_pb2.Receipt()
            if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == _DOMAIN:
                self.reason = info.reason
            elif detail.Is(retry.DESCRIPTOR) and detail.Unpack(retry):
                # No time at all is no pause: this client makes its own then.
                self.retry_after = retry.retry_delay.ToTimedelta().total_seconds()
                if self.retry_after <= 0:
                    self.retry_after = None
            elif detail.Is(receipt.DESCRIPTOR) and detail.Unpack(receipt):
                self.receipt = receipt

    @property
    def is_no(self) -> bool:
        """The service said no: what has a receipt was decided, whatever its code."""
        if not self.reason or self.reason in _NOT_EXECUTED:
            return False
        return self.code in _NO or self.receipt is not None

    @property
    def is_final(self) -> bool:
        """What the service said holds for copies of the request that are still on their way, too."""
        return self.receipt is not None or self.reason in _OF_ALL_COPIES

    @property
    def executed_nothing(self) -> bool:
        """This attempt was surely not executed."""
        return self.reason in _NOT_EXECUTED or self.is_no or self.never_left

    @property
    def never_left(self) -> bool:
        """There was no connection to send the attempt by."""
        return self.code == grpc.StatusCode.UNAVAILABLE and not self.reason and self.message.startswith(_NO_CONNECTION)

    @property
    def may_be_repeated(self) -> bool:
        """Another attempt may end otherwise."""
        return not self.is_no and self.reason not in {"METADATA_TOO_LARGE"}

    @property
    def blames_the_connection(self) -> bool:
        """No gateway said this."""
        return not self.reason

    def __str__(self) -> str:
        return f"{self.code.name} {self.reason}: {self.message}".replace(" :", ":")
