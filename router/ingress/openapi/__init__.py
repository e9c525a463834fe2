"""The OpenAPI document of a running router, made from its routes, its models and its policy. Pure.

Read ``document.py`` first; a contract test holds answers of the router against the document.
"""
