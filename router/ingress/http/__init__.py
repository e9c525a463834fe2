"""The HTTP door: an ASGI application that serves the Open Inference Protocol and its documentation page.

Read ``application.py`` first; what it does with an inference request is in `router.ingress.calls`.
"""
