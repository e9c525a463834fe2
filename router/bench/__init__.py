"""The command ``bench``: arrivals sent open loop to a live server, the measured twin of ``router.simulate``.

Read :mod:`router.bench.run` first: it sends each request at its time and records what became of it.
"""
