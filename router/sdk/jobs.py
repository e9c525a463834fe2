"""A request that was submitted: :class:`Job` and its awaited twin :class:`AsyncJob`."""

from __future__ import annotations

from typing import Protocol, TypeVar

from router.sdk.codec import Result
from router.sdk.core import ClientCore
from router.sdk.deadline import Budget
from router.sdk.effects import Flow, Ticket
from router.units import duration_ms

T = TypeVar("T")


class _Blocking(Protocol):
    _core: ClientCore

    def _drive(self, flow: Flow[T]) -> T: ...


class _Awaited(Protocol):
    _core: ClientCore

    async def _drive(self, flow: Flow[T]) -> T: ...


class Job:
    """A submitted request. It lives at the server: any process may ask for it by :attr:`id`.

    >>> client.submit("digits", image, budget="10min", idempotency_key="photo-1")
    Job('...')
    """

    def __init__(self, client: _Blocking, ticket: Ticket) -> None:
        self._client, self._ticket = client, ticket

    @property
    def id(self) -> str:
        """The server's id for the request.

        >>> job = client.submit("digits", image, budget="10min")
        >>> client.job(job.id).result().outputs["label"]
        array([3])
        """
        return self._ticket.id or ""

    def state(self) -> str:
        """pending, leased, done, failed, expired, cancelled or dead, as of now. Raises JobUnknown.

        >>> job = client.submit("digits", image, budget="10min")
        >>> _ = job.result()
        >>> job.state()
        'done'
        """
        return self._client._drive(self._client._core.state(self._ticket))

    def result(self, timeout: Budget | None = None) -> Result:
        """The answer, waited for until the budget is over, or for ``timeout`` if that is sooner.

        Raises ResultPending where only the timeout is over; else what the request ended with:
        DeadlineExceeded, JobFailed, JobCancelled, JobUnknown.

        >>> job = client.submit("digits", image, budget="10min")
        >>> job.result(timeout="1min").outputs["label"]
        array([3])
        """
        timeout_s = None if timeout is None else duration_ms(timeout) / 1e3
        return self._client._drive(self._client._core.result(self._ticket, timeout_s))

    def cancel(self) -> bool:
        """Cancel it. True if it is cancelled, False if it had already ended. Raises JobUnknown.

        >>> job = client.submit("digits", image, budget="10min")
        >>> state = "cancelled" if job.cancel() else "done"
        >>> job.state() == state
        True
        """
        return self._client._drive(self._client._core.cancel_ticket(self._ticket))

    def __repr__(self) -> str:
        return f"Job({self.id!r})"


class AsyncJob:
    """A submitted request. It lives at the server: any process may ask for it by :attr:`id`.

    >>> await client.submit("digits", image, budget="10min", idempotency_key="photo-2")
    AsyncJob('...')
    """

    def __init__(self, client: _Awaited, ticket: Ticket) -> None:
        self._client, self._ticket = client, ticket

    @property
    def id(self) -> str:
        """The server's id for the request.

        >>> job = await client.submit("digits", image, budget="10min")
        >>> (await client.job(job.id).result()).outputs["label"]
        array([3])
        """
        return self._ticket.id or ""

    async def state(self) -> str:
        """pending, leased, done, failed, expired, cancelled or dead, as of now. Raises JobUnknown.

        >>> job = await client.submit("digits", image, budget="10min")
        >>> _ = await job.result()
        >>> await job.state()
        'done'
        """
        return await self._client._drive(self._client._core.state(self._ticket))

    async def result(  # the timeout ends a poll at the server, the job goes on
        self,
        timeout: Budget | None = None,  # noqa: ASYNC109
    ) -> Result:
        """The answer, waited for until the budget is over, or for ``timeout`` if that is sooner.

        Raises ResultPending where only the timeout is over; else what the request ended with:
        DeadlineExceeded, JobFailed, JobCancelled, JobUnknown.

        >>> job = await client.submit("digits", image, budget="10min")
        >>> (await job.result(timeout="1min")).outputs["label"]
        array([3])
        """
        timeout_s = None if timeout is None else duration_ms(timeout) / 1e3
        return await self._client._drive(self._client._core.result(self._ticket, timeout_s))

    async def cancel(self) -> bool:
        """Cancel it. True if it is cancelled, False if it had already ended. Raises JobUnknown.

        >>> job = await client.submit("digits", image, budget="10min")
        >>> state = "cancelled" if await job.cancel() else "done"
        >>> await job.state() == state
        True
        """
        return await self._client._drive(self._client._core.cancel_ticket(self._ticket))

    def __repr__(self) -> str:
        return f"AsyncJob({self.id!r})"
