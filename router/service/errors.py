"""What the service raises: one tree, each error with a sentence for the caller, none with a status code."""

from __future__ import annotations

from typing import Any

from workers.queue.job import JobState, JobStatus


class ServiceError(Exception):
    """Root of what the service raises; each carries a sentence for the caller.

    ::

        ServiceError
        |- NotAuthenticated   no key, or one that is not known
        |- NotPermitted         the key is good, and not for this
        |- UnknownModel, UnknownModelVariant, UnknownRequest
        |- TooManyRows
        |- Refused           not admitted; ``retry_after_s`` says when it may be, None that it never will
        |- Conflict          the idempotency key was used for other content
        |- RowsFailed        the model fails on this request's rows, whoever runs them
        |- DeadlinePassed    accepted, and dropped because its deadline could not be met any more
        |- JobEnded          a queued request ended without a result; ``status`` tells how
        |- Unavailable       the path's replicas or the queue's server cannot be reached
    """


class NotAuthenticated(ServiceError):
    pass


class NotPermitted(ServiceError):
    pass


class UnknownModel(ServiceError):
    pass


class UnknownModelVariant(ServiceError):
    pass


class UnknownRequest(ServiceError):
    pass


class TooManyRows(ServiceError):
    pass


class Refused(ServiceError):
    def __init__(self, reason: str, kind: str, retry_after_s: float | None) -> None:
        super().__init__(reason)
        self.kind, self.retry_after_s = kind, retry_after_s


class Conflict(ServiceError):
    pass


class RowsFailed(ServiceError):
    pass


class DeadlinePassed(ServiceError):
    pass


class Unavailable(ServiceError):
    pass


class JobEnded(ServiceError):
    """A queued request ended without a result: failed, expired, cancelled or given up on."""

    def __init__(self, status: JobStatus) -> None:
        reasons: dict[Any, str] = {
            JobState.EXPIRED: "its deadline passed before it could run",
            JobState.CANCELLED: "it was cancelled",
        }
        # One line, whatever a runtime wrote.
        reason = " ".join((status.error or reasons.get(status.state, "it failed")).split())
        super().__init__(f"request {status.id} {status.state.value}: {reason}")
        self.status = status
