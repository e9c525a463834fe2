"""What runs models: online replicas, batch workers, and the deadline queue between the router and them.

Read :mod:`workers.queue.contract` first, then :mod:`workers.batch.loop` and :mod:`workers.online`. Imports go
from ``online`` and ``batch`` to ``execution``, and from ``batch`` to ``queue``.
"""
