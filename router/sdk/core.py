"""The SDK without I/O: generators that say what to send and how long to wait, and take what came.

A flow yields :class:`Send` and :class:`Sleep` and receives a :class:`Reply`, or a :class:`NoResponse`
where no answer came; its return value is the call's. :class:`~router.Client` performs it with blocking
calls, :class:`~router.AsyncClient` with ``await``, so retries, budgets and polling are written once. The
clock and the random generator are arguments.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from router.sdk import codec
from router.sdk.codec import ModelInfo, Result, Tensor
from router.sdk.deadline import Budget, Limit, limit_of
from router.sdk.effects import ApiCall, Flow, Options, Send, Sleep, Ticket
from router.sdk.errors import (
    DeadlineExceeded,
    HybridRouterError,
    InvalidRequest,
    JobCancelled,
    Rejected,
    ResultPending,
    ServerUnavailable,
)
from router.sdk.responses import (
    NoResponse,
    Reply,
    error_of,
    is_transient,
    job_id_of,
    read_json,
    retry_after_s,
)
from router.units import format_ms

#: The longest that the server is asked to hold one poll, and what the network may add to it.
POLL_S = 20.0
POLL_MARGIN_S = 10.0
#: Retries wait 50 ms, then twice as long each time up to 2 s, less a random part of up to a half.
BACKOFF_S, BACKOFF_MAX_S = 0.05, 2.0

MAX_KEY_CHARS = 200


class ClientCore:
    """What the client knows and decides: how requests look, what is tried again, when it is over."""

    def __init__(
        self,
        server: str,
        *,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        headers: Mapping[str, str],
        timeout_s: float,
        grace_s: float,
        retry_for_s: float,
    ) -> None:
        self.server = server
        self.clock = clock
        self._jitter = jitter
        self._timeout_s, self._grace_s, self._retry_for_s = timeout_s, grace_s, retry_for_s
        plain = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._json_headers = [*plain, (b"accept", b"application/json")]
        self._result_headers = [*plain, (b"accept", b"application/octet-stream")]
        self._infer_headers = [*self._result_headers, (b"content-type", b"application/octet-stream")]
        self._models: dict[str, ModelInfo] = {}

    def limit(self, budget: Budget | None) -> Limit:
        return limit_of(
            budget, owner=self, now_s=self.clock(), grace_s=self._grace_s, timeout_s=self._timeout_s
        )

    def infer(self, model: str, inputs: object, limit: Limit, options: Options) -> Flow[Result]:
        """The answer, followed to its end where the server says that it comes later."""
        ticket = Ticket(limit, outputs=options.outputs)
        tensors = codec.arrange(inputs, (yield from self.known_model(model, limit)))
        yield from self.post(ticket, model, tensors, options)
        return ticket.result or (yield from self.follow(ticket, limit))

    def submit(self, model: str, inputs: object, limit: Limit, options: Options) -> Flow[Ticket]:
        """A ticket for a request that the server now holds, or has already answered."""
        ticket = Ticket(limit, outputs=options.outputs)
        tensors = codec.arrange(inputs, (yield from self.known_model(model, limit)))
        yield from self.post(ticket, model, tensors, options, RESPOND_ASYNC)
        if limit.deadline_s is None:  # the server's default budget ends it, not this client's timeout
            ticket.limit = Limit(limit.started_s, None, math.inf)
        return ticket

    def ticket(self, job_id: str, outputs: Sequence[str] | None = None) -> Ticket:
        """For a request that was submitted elsewhere; only the server knows its deadline."""
        return Ticket(Limit(self.clock(), None, math.inf), job_id, outputs)

    def post(
        self,
        ticket: Ticket,
        model: str,
        tensors: Sequence[Tensor],
        options: Options,
        extra_headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> Flow[None]:
        """Send a request with its deadline; ``ticket`` gets the result, or the id to ask for it by."""
        key = options.idempotency_key or str(uuid.uuid4())
        if not (key.isascii() and key.isprintable() and len(key) <= MAX_KEY_CHARS):
            raise InvalidRequest(
                f"idempotency_key must be at most {MAX_KEY_CHARS} printable ASCII characters"
            )
        content, json_bytes = codec.encode(tensors, options.outputs, options.parameters)
        headers = [
            *self._infer_headers,
            (b"inference-header-content-length", b"%d" % json_bytes),
            # One key for the logical call: a try that the server has already taken is not taken twice.
            (b"idempotency-key", key.encode()),
            *extra_headers,
        ]
        path = f"{_model_path(model, options.variant)}/infer"
        reply = yield from self.exchange(ApiCall("POST", path, headers, content, True), ticket.limit)
        if reply.status == 200:
            ticket.id = self._settle(ticket, reply).id
        elif reply.status == 202:
            ticket.id = job_id_of(reply)
        else:
            error = error_of(reply)
            if isinstance(error, InvalidRequest):
                self._models.pop(model, None)  # the model may have changed: look again next time
            raise error

    def result(self, ticket: Ticket, timeout_s: float | None) -> Flow[Result]:
        """What :meth:`follow` gives, for a caller who waits ``timeout_s``, or to the end of the budget.

        It asks at least once: a result may be there long after its deadline.
        """
        limit, now_s = ticket.limit, self.clock()
        if timeout_s is not None and now_s + timeout_s < limit.give_up_s:
            limit = Limit(limit.started_s, None, now_s + timeout_s)
        elif limit.give_up_s < now_s + self._grace_s:
            limit = Limit(limit.started_s, limit.deadline_s, now_s + self._grace_s)
        return (yield from self.follow(ticket, limit))

    def follow(self, ticket: Ticket, limit: Limit) -> Flow[Result]:
        """Poll until the request has ended or the limit is reached, and give its result.

        Raises what it ended with; past the limit DeadlineExceeded, or ResultPending where that limit is
        not the budget's.
        """
        idle_s = 0.0
        while ticket.result is None:
            if ticket.abandoned:
                yield from self.cancel(_known(ticket.id))
                raise JobCancelled(f"request {ticket.id} was given up by its caller", id=ticket.id)
            asked_s = self.clock()
            wait_s = min(POLL_S, max(0.0, limit.give_up_s - asked_s))
            reply = yield from self._get_result(ticket, limit, wait_s)
            if reply.status == 200:
                return self._settle(ticket, reply)
            now_s = self.clock()
            if now_s >= limit.give_up_s:
                raise _unanswered(ticket.id, limit)
            # A server that does not hold polls must not be asked in a tight loop.
            idle_s = min(1.0, idle_s * 2 or 0.02) if now_s - asked_s < min(1.0, wait_s) else 0.0
            if idle_s:
                yield Sleep(min(idle_s, limit.give_up_s - now_s))
        return ticket.result

    def state(self, ticket: Ticket) -> Flow[str]:
        """pending, leased, done, failed, expired, cancelled or dead. Raises JobUnknown."""
        if ticket.result is not None:
            return "done"
        call = ApiCall("GET", _result_path(ticket), self._result_headers, job_id=ticket.id)
        reply = yield from self.exchange(call, self._own_limit())
        if reply.status == 200:
            self._settle(ticket, reply)
            return "done"
        body = read_json(reply)
        state = body.get("state")
        if isinstance(state, str) and reply.status != 404:
            return state
        raise error_of(reply, job_id=ticket.id)

    def cancel(self, job_id: str, limit: Limit | None = None) -> Flow[bool]:
        """Whether the request is now cancelled; False where it had ended before. Raises JobUnknown."""
        call = ApiCall("DELETE", _job_path(job_id), self._json_headers, job_id=job_id)
        reply = yield from self.exchange(call, limit or self._own_limit())
        if reply.status in (200, 202, 204, 409, 410):
            state = read_json(reply).get("state") if reply.content else None
            return bool(state == "cancelled") if state else reply.status != 409
        raise error_of(reply, job_id=job_id)

    def cancel_ticket(self, ticket: Ticket) -> Flow[bool]:
        """The same for a ticket; one that has its result has ended."""
        if ticket.result is not None:
            return False
        return (yield from self.cancel(_known(ticket.id)))

    def models(self) -> Flow[list[ModelInfo]]:
        reply = yield from self._get_json("/v2/models", self.limit(None))
        listed = read_json(reply).get("models")
        models = [ModelInfo.from_json(value) for value in listed or ()]
        self._models.update({info.name: info for info in models if info.inputs})
        return models

    def model(self, name: str, limit: Limit | None = None) -> Flow[ModelInfo]:
        """The model's metadata, asked for anew. Raises ModelNotFound."""
        reply = yield from self._get_json(_model_path(name), limit or self.limit(None))
        info = ModelInfo.from_json(read_json(reply))
        self._models[name] = info
        return info

    def stats(self, name: str) -> Flow[dict[str, Any]]:
        """What waits and runs for the model now. Raises ModelNotFound."""
        reply = yield from self._get_json(f"{_model_path(name)}/stats", self.limit(None))
        return read_json(reply)

    def ready(self) -> Flow[bool]:
        """Whether the server takes requests now: one try, no error."""
        timeout_s = min(self._timeout_s, 5.0)
        reply = yield Send("GET", "/v2/health/ready", self._json_headers, b"", timeout_s)
        return isinstance(reply, Reply) and reply.status == 200

    def known_model(self, name: str, limit: Limit) -> Flow[ModelInfo]:
        """The model's metadata, asked for once."""
        return self._models.get(name) or (yield from self.model(name, limit))

    def _own_limit(self) -> Limit:
        """For what is asked about a request: the request's budget does not bound it, the timeout does."""
        now_s = self.clock()
        return Limit(now_s, None, now_s + self._timeout_s)

    def _get_json(self, path: str, limit: Limit) -> Flow[Reply]:
        reply = yield from self.exchange(ApiCall("GET", path, self._json_headers), limit)
        if reply.status != 200:
            raise error_of(reply)
        return reply

    def _get_result(self, ticket: Ticket, limit: Limit, wait_s: float) -> Flow[Reply]:
        path = _result_path(ticket, f"wait={wait_s:.3f}")
        call = ApiCall("GET", path, self._result_headers, job_id=ticket.id, polls=True)
        # The server ends the poll in time; the margin is for its answer to come through.
        padded = Limit(limit.started_s, limit.deadline_s, max(limit.give_up_s, self.clock()) + 1.0)
        reply = yield from self.exchange(call, padded, wait_s + POLL_MARGIN_S)
        if reply.status not in (200, 202):
            raise error_of(reply, job_id=ticket.id)
        return reply

    def _settle(self, ticket: Ticket, reply: Reply) -> Result:
        latency_ms = (self.clock() - ticket.limit.started_s) * 1e3
        result = codec.decode(reply.headers, reply.content, latency_ms, ticket.id)
        # A queued request may be answered with all outputs by a server that does not know the choice.
        ticket.result = codec.pick(result, ticket.outputs) if ticket.outputs else result
        return ticket.result

    def exchange(self, call: ApiCall, limit: Limit, try_s: float = math.inf) -> Flow[Reply]:
        """One final reply, after as many tries as the limit allows.

        Tried again: a server that cannot be reached or hangs up, a proxy's bare error page, 503, and 429
        where it says when; to a poll, 429 says only that the caller asks too often. Never past the
        budget, and never for longer than ``retry_for_s`` without sign of life.
        """
        failing_s: float | None = None
        reply: Reply | NoResponse | None = None
        tries = 0
        # Only who waits for the end of a request that is taken goes on past the budget, into the grace.
        until_s = limit.give_up_s if call.polls or limit.deadline_s is None else limit.deadline_s
        while True:
            now_s = self.clock()
            if now_s >= until_s:
                if reply is not None:
                    raise self._gave_up(reply, limit, tries, call)
                raise DeadlineExceeded(f"{_ended(limit)} before the request was sent", id=call.job_id)
            headers = call.headers
            if call.carries_budget and (left := limit.budget_header(now_s)):
                headers = [*headers, (b"latency-budget-ms", left)]
            reply = yield Send(
                call.method, call.path, headers, call.content, min(limit.give_up_s - now_s, try_s)
            )
            throttled = call.polls and isinstance(reply, Reply) and reply.status == 429
            if isinstance(reply, Reply) and not (throttled or is_transient(reply)):
                return reply
            assert reply is not None
            tries += 1
            now_s = self.clock()
            asked_to_wait_s = retry_after_s(reply)
            if throttled and asked_to_wait_s is None:
                asked_to_wait_s = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (tries - 1))
            if asked_to_wait_s is None:
                failing_s = now_s if failing_s is None else failing_s
                pause_s = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (tries - 1)) * (1 - self._jitter() / 2)
                over = now_s + pause_s >= min(until_s, failing_s + self._retry_for_s)
            else:
                failing_s = None
                pause_s = asked_to_wait_s * (1 + self._jitter() / 10)
                over = now_s + pause_s >= until_s
            if over:
                raise self._gave_up(reply, limit, tries, call)
            yield Sleep(pause_s)

    def _gave_up(
        self, reply: Reply | NoResponse, limit: Limit, tries: int, call: ApiCall
    ) -> HybridRouterError:
        now_s, id_ = self.clock(), call.job_id
        spent = f"tried {tries} times in {format_ms((now_s - limit.started_s) * 1e3)}"
        if isinstance(reply, Reply):
            error = error_of(reply, job_id=id_)
            if isinstance(error, Rejected):
                return _pending(error, id_, limit) if call.polls and now_s < limit.give_up_s else error
            return ServerUnavailable(
                f"{self.server}: {error} ({spent})", status=reply.status, problem=error.problem, id=id_
            )
        if reply.late and now_s >= limit.give_up_s:
            if call.polls:
                return _unanswered(id_, limit)
            if limit.deadline_s is not None:
                return DeadlineExceeded(f"{_ended(limit)} without an answer from {self.server}", id=id_)
            return ServerUnavailable(f"no answer from {self.server}: {reply.reason} ({spent})", id=id_)
        return ServerUnavailable(f"cannot reach {self.server}: {reply.reason} ({spent})", id=id_)


RESPOND_ASYNC: Sequence[tuple[bytes, bytes]] = ((b"prefer", b"respond-async"),)


def _ended(limit: Limit) -> str:
    if limit.deadline_s is not None and limit.deadline_s <= limit.started_s:
        return "the latency budget that calls share here was over"
    if limit.deadline_s is None:
        return f"the timeout of {format_ms((limit.give_up_s - limit.started_s) * 1e3)} is over"
    return f"the latency budget of {format_ms((limit.deadline_s - limit.started_s) * 1e3)} is over"


def _unanswered(job_id: str | None, poll: Limit) -> HybridRouterError:
    if poll.deadline_s is not None:
        return DeadlineExceeded(f"{_ended(poll)} and request {job_id} is not answered", id=job_id)
    waited = format_ms((poll.give_up_s - poll.started_s) * 1e3)
    return ResultPending(
        f"request {job_id} has not ended {waited} after it was sent; it goes on: ask again by its id",
        id=job_id,
    )


def _pending(refusal: Rejected, job_id: str | None, poll: Limit) -> HybridRouterError:
    """The server has the request, and answers no question about it before the limit."""
    return ResultPending(
        f"request {job_id} goes on, but the server tells nothing of it now ({refusal}); "
        f"ask again by its id{'' if refusal.retry_after_s is None else f' in {refusal.retry_after_s:.3g} s'}",
        status=refusal.status,
        problem=refusal.problem,
        id=job_id,
    )


def _model_path(model: str, variant: str | None = None) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return path if variant is None else f"{path}/versions/{quote(variant, safe='')}"


def _job_path(job_id: str) -> str:
    return f"/v2/requests/{quote(job_id, safe='')}"


def _result_path(ticket: Ticket, *query: str) -> str:
    """Where the state and the result of a request are, with no more outputs than it was sent for."""
    wanted = [*query, *(f"output={quote(name, safe='')}" for name in ticket.outputs or ())]
    return _job_path(_known(ticket.id)) + ("?" + "&".join(wanted) if wanted else "")


def _known(job_id: str | None) -> str:
    if job_id is None:
        raise InvalidRequest("the server gave this request no id, so nothing can be asked about it")
    return job_id
