"""A policy becomes a running application on Ray Serve, on this machine or on a cluster of yours.

Start with `application`, which puts the parts together; `local` starts all of it as one context manager.
"""
