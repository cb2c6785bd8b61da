"""Calls with request ids and retries, over several gateways. One attempt is one RPC; what an attempt's end means is in `_errors`."""

from __future__ import annotations

import random
import re
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Generic, Iterator, List, Optional, Sequence, Tuple, TypeVar, Union

import grpc

from tidewall import _seen
from tidewall._errors import Decided, Error, Failure, NotDecided, Unknown
from tidewall._ids import new_request_id
from tidewall._seen import Seen
from tidewall._watch import watch
from tidewall.v1 import account_pb2, change_pb2, event_pb2, operator_pb2, outcome_pb2, region_pb2, ticket_pb2

_SERVICES = {
    "accounts": (account_pb2, "AccountService"),
    "events": (event_pb2, "EventService"),
    "operator": (operator_pb2, "OperatorService"),
    "outcomes": (outcome_pb2, "OutcomeService"),
    "regions": (region_pb2, "RegionService"),
    "tickets": (ticket_pb2, "TicketService"),
}
# Seconds that an attempt has, so that a gateway which is silent does not use up the call.
_ATTEMPT_MAX = 4.0
_PAUSE_FIRST, _PAUSE_MAX = 0.05, 1.0
# As in gRFC A6: retries stop when half of the tokens are spent.
_BUDGET_TOKENS, _BUDGET_REFILL = 1000.0, 0.1
_OPTIONS = [
    ("grpc.max_receive_message_length", 32 << 20),
    # A gateway that was replaced is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Retries are this client's business: it keeps the pauses that the service asks for.
    ("grpc.enable_retries", 0),
]

R = TypeVar("R")


@dataclass
class Done(Generic[R]):
    """What a call yields."""

    answer: R
    # Empty for what changes nothing.
    request_id: str
    attempts: int

    def __getattr__(self, name: str) -> Any:
        # Fields of the answer, for short.
        return getattr(self.answer, name)


class _Budget:
    def __init__(self) -> None:
        self._tokens = _BUDGET_TOKENS
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        with self._lock:
            self._tokens = min(_BUDGET_TOKENS, self._tokens + _BUDGET_REFILL)

    def may_retry(self) -> bool:
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1)
            return self._tokens > _BUDGET_TOKENS / 2


class Client:
    """A client of one cluster, for one principal. May be used by many threads.

    `gateways` are addresses such as "127.0.0.1:7400"; any of them will do. `token` is an access token, or a function that gives one
    that is good now. Services are attributes, methods are called by their names in lower case:

        client.tickets.buy_tickets(parent=event, tier_id="ga", quantity=1)
    """

    def __init__(
        self,
        gateways: Sequence[str],
        token: Union[str, Callable[[], str]] = "",
        timeout: float = 10.0,
        credentials: Optional[grpc.ChannelCredentials] = None,
        compression: Optional[grpc.Compression] = None,
    ):
        if not gateways:
            raise ValueError("give the address of one gateway at least")
        self._token = token if callable(token) else lambda: token
        self._timeout = timeout
        self._budget = _Budget()
        self._seen = Seen()
        self._next = random.randrange(len(gateways))
        open_channel = (
            (lambda target: grpc.secure_channel(target, credentials, options=_OPTIONS, compression=compression))
            if credentials
            else (lambda target: grpc.insecure_channel(target, options=_OPTIONS, compression=compression))
        )
        self._channels: List[grpc.Channel] = [open_channel(target) for target in gateways]
        for name, (module, service) in _SERVICES.items():
            setattr(self, name, _Service(self, module.DESCRIPTOR.services_by_name[service]))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections."""
        for channel in self._channels:
            channel.close()

    def seal(self, region: str, request_id: str, timeout: Optional[float] = None) -> outcome_pb2.GetOutcomeResponse:
        """Makes final what became of a request: what was decided, or that nothing ever will be under its id."""
        return self.outcomes.seal_request_id(parent=region, request_id=request_id, timeout=timeout).answer.outcome

    def outcome(self, region: str, request_id: str, timeout: Optional[float] = None) -> outcome_pb2.GetOutcomeResponse:
        """What is known of a request now; a copy that is on its way may still be decided."""
        return self.outcomes.get_outcome(parent=region, request_id=request_id, timeout=timeout).answer

    def watch(self, parent: str, timeout: Optional[float] = None, **fields: Any) -> Iterator[change_pb2.WatchResponse]:
        """What happens in a region or to an event, as it happens: answers of `ChangeService.Watch`, for ever, through failovers and over
        gateways. Each change is told once; `after` goes on behind a place. Raises `NotDecided`: with the reason PLACE_GONE what comes
        next is not kept any more.

            for answer in client.watch("regions/north/events/gala"):
                for change in answer.changes: ...
        """

        def connect(failed: bool) -> Tuple[grpc.Channel, str]:
            if failed:
                self._next += 1
            return self._channels[self._next % len(self._channels)], self._token()

        request = change_pb2.WatchRequest(parent=parent, **fields)
        return watch(connect, request, self._timeout if timeout is None else timeout)

    def _pursue(self, method: "_Method", request: Any, timeout: float, in_doubt: bool) -> Done:
        give_up = time.monotonic() + timeout
        pause, attempts = _PAUSE_FIRST, 0
        failure: Optional[Failure] = None
        request_id = getattr(request, "request_id", "")
        while True:
            left = give_up - time.monotonic()
            if left <= 0:
                break
            attempts += 1
            position = self._next % len(self._channels)
            try:
                # Who proves by the message who it is needs none; a token may come from such a call.
                token = "" if method.anonymous else self._token()
            except Exception as error:
                kind = Unknown if in_doubt and method.changes else NotDecided
                raise kind(f"there is no token: {error}", failure, request, attempts) from error
            metadata = [("authorization", f"Bearer {token}")] if token else []
            seen = "" if method.changes else self._seen.text()
            if seen:
                metadata.append((_seen.KEY, seen))
            try:
                answer, call = method.stub(self._channels[position]).with_call(
                    request, timeout=min(left, _ATTEMPT_MAX), metadata=metadata
                )
                self._budget.succeeded()
                self._seen.note(call.initial_metadata())
                return Done(answer, request_id, attempts)
            except grpc.RpcError as error:
                failure = Failure(error)
                # An error without an answer before it has all of its metadata at its end.
                self._seen.note(error.trailing_metadata())
            if failure.blames_the_connection:
                self._next = position + 1
            in_doubt = in_doubt or (method.changes and not failure.executed_nothing)
            if failure.is_no and (failure.is_final or not in_doubt):
                raise Decided(str(failure), failure, request, attempts)
            if not method.repeats or not failure.may_be_repeated:
                break
            # What the service paces itself costs no token.
            if failure.retry_after is not None:
                wait = failure.retry_after
            elif self._budget.may_retry():
                wait, pause = random.uniform(0, pause), min(2 * pause, _PAUSE_MAX)
            else:
                break
            if time.monotonic() + wait >= give_up:
                break
            time.sleep(wait)
        kind = Unknown if in_doubt and method.changes else NotDecided
        if failure is None:
            raise kind("the call had no time: give it a timeout", None, request, attempts)
        raise kind(str(failure), failure, request, attempts)


class _Service:
    def __init__(self, client: Client, descriptor: Any):
        for method in descriptor.methods:
            name = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()
            if not method.client_streaming and not method.server_streaming:
                setattr(self, name, _Method(client, method))


class _Method:
    def __init__(self, client: Client, descriptor: Any):
        from google.protobuf import message_factory

        from tidewall.v1 import policy_pb2

        self._client = client
        self._path = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
        self._input = message_factory.GetMessageClass(descriptor.input_type)
        self._output = message_factory.GetMessageClass(descriptor.output_type)
        self._has_id = "request_id" in descriptor.input_type.fields_by_name
        policy = descriptor.GetOptions().Extensions[policy_pb2.policy]
        effect, self.anonymous = policy.effect, policy.anonymous
        # To seal an id that nobody has used would say that nothing was done.
        self._seals = descriptor.name == "SealRequestId"
        self.changes = effect != policy_pb2.EFFECT_READ
        self.repeats = effect != policy_pb2.EFFECT_ORDER
        self.__doc__ = descriptor.full_name

    def stub(self, channel: grpc.Channel) -> Any:
        return channel.unary_unary(
            self._path, request_serializer=self._input.SerializeToString, response_deserializer=self._output.FromString
        )

    def __call__(self, request: Any = None, timeout: Optional[float] = None, **fields: Any) -> Done:
        if request is None:
            request = self._input(**fields)
        elif fields:
            raise TypeError("give a message, or its fields, not both")
        # The caller's message stays as it is.
        copy = type(request)()
        copy.CopyFrom(request)
        # A copy of a request whose id its caller gives may be on its way, of a call that ended in doubt.
        in_doubt = False
        for message in self._with_ids(copy):
            in_doubt = in_doubt or bool(message.request_id)
            message.request_id = message.request_id or new_request_id()
        timeout = self._client._timeout if timeout is None else timeout
        return self._client._pursue(self, copy, timeout, in_doubt)

    def _with_ids(self, request: Any) -> List[Any]:
        """What of a request gets an id: itself, or each purchase of a batch."""
        if not self.changes or self._seals:
            return []
        return [request] if self._has_id else list(getattr(request, "purchases", ()))


__all__ = ["Client", "Done", "Error"]
