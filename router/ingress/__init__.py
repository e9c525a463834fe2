"""The doors: HTTP and gRPC to the service and back. Nothing outside this package knows a status code.

Start with ``http/application.py`` or ``grpc/methods.py``; both read and write tensors with ``codec``.
"""
