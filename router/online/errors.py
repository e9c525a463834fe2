"""Why the online side did not answer a request."""

from __future__ import annotations


class DispatchError(Exception):
    """Root of what `OnlineDispatcher.run` raises.

    ::

        DispatchError
        |- DeadlineHopeless    dropped: the deadline can no longer be met, or the replica is silent
        |- ReplicaFailed       the replica died or failed, and a second try failed or came too late
        |- BadRows             the model fails on this request's rows; the rest of its batch was answered
        |- HeapFull            no room; nothing was queued
    """


class DeadlineHopeless(DispatchError):
    """The deadline passed, or came too close for even the smallest batch, while the request waited; or it
    passed while the batch was at a replica that has stopped answering."""


class ReplicaFailed(DispatchError):
    """The batch could not be run. The message carries the reason; nothing of it was answered."""


class BadRows(DispatchError):
    """The model fails on rows of this request, alone too. The message is the model's own reason."""


class HeapFull(DispatchError):
    """The heap holds as many requests as the policy allows."""
