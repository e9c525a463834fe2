"""The doors: HTTP and gRPC to the service and back. Nothing outside this package knows a status code."""

from router.ingress.application import Ingress as Ingress
