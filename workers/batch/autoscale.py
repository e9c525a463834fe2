"""How many batch workers a queue needs: waiting work over measured throughput, against the deadlines.

:class:`QueuePolicy` runs inside Ray Serve's controller, which calls it about ten times a second and
must not wait: :mod:`workers.batch.queue_poll` reads the queue in its own thread, and the policy answers from
its last reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from workers.batch.queue_poll import poll_for
from workers.queue.contract import QueueStats

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

#: The share of the time until a deadline that workers are planned to need; the rest covers start and jitter.
PLANNED_SHARE = 0.8


class UrlNotToBeShown(ValueError):
    """The queue's URL holds a password, and Serve shows autoscaling settings in its dashboard."""


def workers_needed(stats: QueueStats, rows_per_s: float, present: int, *, horizon_s: float = 30.0) -> int:
    """The fewest workers that finish all unfinished work in time; 0 when there is none.

    ``rows_per_s`` is one worker's throughput. The time is until the earliest deadline, but at most
    ``horizon_s`` (work that is due tomorrow is still done soon) and not below a second.
    Only `PLANNED_SHARE` of it is planned with. A queue with leased work only keeps the present workers.
    """
    if stats.jobs == 0:
        return 0
    if stats.waiting_rows == 0:
        return max(1, present)
    time_s = horizon_s
    if stats.earliest_deadline_ms is not None:
        time_s = min(horizon_s, max(1.0, (stats.earliest_deadline_ms - stats.now_ms) / 1000))
    return max(1, math.ceil(stats.rows / (max(rows_per_s, 1e-9) * time_s * PLANNED_SHARE)))


def workers_wanted(stats: QueueStats, rows_per_s: float, present: int, *, horizon_s: float = 30.0) -> int:
    """`workers_needed`, corrected by the measured rate: ``rows_per_s`` is the profile's."""
    each = rows_per_s
    if stats.rows_per_s is not None and present and stats.waiting_rows:
        # While work waits, the measured rate is what the workers are capable of.
        each = max(stats.rows_per_s / present, 0.1 * rows_per_s)
    return workers_needed(stats, each, present, horizon_s=horizon_s)


class QueuePolicy:
    """An autoscaling policy for Serve; plain values only, because Serve stores and logs them.

    ``rows_per_s`` is one worker's throughput by the variant's profile, used until the queue's own
    measured rate is known. Give ``queue_url`` as ``file:`` where it has a password. The object is
    created again when the controller restarts, so it keeps no state that matters.
    """

    def __init__(
        self,
        queue_url: str,
        model: str,
        rows_per_s: float,
        namespace: str = "hr",
        queue_settings: Mapping[str, Any] | None = None,
        horizon_s: float = 30.0,
        poll_s: float = 0.25,
    ) -> None:
        self._rows_per_s = rows_per_s
        self._horizon_s = horizon_s
        self._poll = poll_for(self, queue_url, model, namespace, queue_settings or {}, poll_s)

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Keeps the present target while the queue cannot be read."""
        stats = self._poll.latest(max_age_s=10.0)
        if stats is None:
            return ctx.target_num_replicas, {}
        return workers_wanted(
            stats, self._rows_per_s, ctx.current_num_replicas, horizon_s=self._horizon_s
        ), {}


def autoscaling(
    queue_url: str,
    model: str,
    rows_per_s: float,
    *,
    min_workers: int,
    max_workers: int,
    namespace: str = "hr",
    queue_settings: Mapping[str, Any] | None = None,
    idle_s: float = 30.0,
) -> AutoscalingConfig:
    """Serve's configuration of the policy; ``min_workers=0`` scales to zero after ``idle_s``.

    Raises :class:`UrlNotToBeShown` for a URL with a password in it.
    """
    if urlsplit(queue_url).password is not None:
        raise UrlNotToBeShown(
            "it holds a password, which Ray Serve would show among its autoscaling settings; "
            "put the URL in a file of its own and write file:/path/to/it"
        )
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    kwargs: dict[str, Any] = {
        "queue_url": queue_url,
        "model": model,
        "rows_per_s": rows_per_s,
        "namespace": namespace,
    }
    if queue_settings:
        kwargs["queue_settings"] = dict(queue_settings)
    return AutoscalingConfig(
        min_replicas=min_workers,
        max_replicas=max_workers,
        initial_replicas=min_workers,
        upscale_delay_s=0.0,
        downscale_delay_s=idle_s,
        downscale_to_zero_delay_s=idle_s,
        policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
            policy_function="workers.batch.autoscale:QueuePolicy", policy_kwargs=kwargs
        ),
    )
