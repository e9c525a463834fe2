"""The online side at work: it carries out with asyncio and Ray what `router.scheduling` decides.

Start with `dispatcher`, which holds the requests that wait; `replicas` is the way to a replica.
"""
