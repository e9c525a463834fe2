"""Ray Serve's controller gets the scaling policy's class pickled by value, once per deployment."""

from __future__ import annotations

import subprocess
import sys

from ray import cloudpickle

from workers.batch import queue_poll

DEPLOY = """
import sys
from ray.serve.config import AutoscalingPolicy
policy = AutoscalingPolicy(policy_function="workers.batch.autoscale:QueuePolicy", policy_kwargs={})
sys.stdout.buffer.write(policy.get_serialized_policy_def())
"""


def deployed() -> type:
    """The policy's class as the controller finds it after a deployment by another process."""
    dumped = subprocess.run([sys.executable, "-c", DEPLOY], check=True, capture_output=True, timeout=120)
    loaded: type = cloudpickle.loads(dumped.stdout)
    return loaded


def test_the_policies_of_two_deployments_share_what_looks_at_the_queue() -> None:
    first, second = deployed(), deployed()
    assert first is not second  # each has a copy of its module's names ...
    for loaded in (first, second):
        assert (
            loaded.__init__.__globals__["poll_for"] is queue_poll.poll_for
        )  # ... but not of what is imported
