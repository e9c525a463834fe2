"""The Python client: ``Client`` blocks, ``AsyncClient`` is awaited, and both drive one core without I/O.

Read :mod:`router.sdk.core` first: it says how requests look, what is tried again and when a call ends.
"""
