"""HTTP and gRPC in front of the service. Nothing outside this package knows a status code.

Read ``calls.py`` first: what both doors do with a request. ``http`` and ``grpc`` hold what differs, ``codec``
the tensors, and ``openapi`` the description of it all.
"""
