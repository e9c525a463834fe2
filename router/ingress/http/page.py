"""The page to try the service on, and the document of its paths, as answers that a browser may keep.

Files lie in ``router/assets``; they are read once. The page is the same for everybody and holds nothing of
what is served: its script asks the other paths, with the key that is typed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import orjson

from router.ingress import semantics
from router.ingress.http.answers import prefix
from router.ingress.openapi.document import document
from router.ingress.semantics import Headers, HttpError, Response
from router.policy import Policy
from router.service.requests import ServedModel

_TYPES = {"html": b"text/html; charset=utf-8", "css": b"text/css; charset=utf-8"}
_TYPES |= {"js": b"text/javascript; charset=utf-8", "svg": b"image/svg+xml"}
_PAGE = "page.html"
_ASSETS = ("page.css", "page.js", "snippets.js", "icon.svg")
#: Nothing comes from another host, nothing in the page's text is run, nobody frames it.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_GUARDS: Headers = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
#: Documents kept: one for each set of models that a tenant may use, and prefix.
_MAX_DOCUMENTS = 100


class Page:
    """The page and its files, from memory."""

    def __init__(self) -> None:
        folder = files("router") / "assets"
        self._files = {name: (folder / name).read_bytes() for name in (_PAGE, *_ASSETS)}
        self._tags = {name: _tag(content) for name, content in self._files.items()}

    def answer(self, asset: str | None, scope: Mapping[str, Any]) -> Response:
        """The page, or the file of it that ``asset`` names. Raises `HttpError` 404 for any other."""
        if asset is None and scope["path"].endswith("/"):
            # The page's links count from its folder; with a slash at the end that is one too deep.
            return 308, [(b"location", b"../docs"), (b"content-type", _TYPES["html"])], b""
        name = _PAGE if asset is None else asset
        if name not in self._files or (asset == _PAGE):
            raise HttpError(404, f"the page has no file {name!r}")
        kind = _TYPES[name.rpartition(".")[2]]
        return _tagged(scope, self._tags[name], [(b"content-type", kind), *_GUARDS], self._files[name])


class Document:
    """The OpenAPI document, built once for each policy and set of models."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._policy: Policy | None = None
        self._rendered: dict[tuple[str, ...], tuple[bytes, bytes]] = {}

    def answer(self, models: Sequence[ServedModel], policy: Policy, scope: Mapping[str, Any]) -> Response:
        """The document of the models that the caller may use."""
        if policy is not self._policy or len(self._rendered) >= _MAX_DOCUMENTS:
            self._policy, self._rendered = policy, {}
        server = prefix(scope) or "/"
        key = (server, *(model.name for model in models))
        if key not in self._rendered:
            body = orjson.dumps(
                document(models, policy, self._version, server=server, secured=policy.secured)
            )
            self._rendered[key] = (_tag(body), body)
        tag, body = self._rendered[key]
        return _tagged(
            scope, tag, [(b"content-type", semantics.JSON), (b"x-content-type-options", b"nosniff")], body
        )


def _tag(content: bytes) -> bytes:
    return b'"' + hashlib.sha256(content).hexdigest()[:32].encode() + b'"'


def _tagged(scope: Mapping[str, Any], tag: bytes, headers: Headers, body: bytes) -> Response:
    """``body``, or 304 for a browser that has it. It asks each time, so that a new release shows at once."""
    headers = [
        *headers,
        (b"etag", tag),
        (b"cache-control", b"no-cache"),
        (b"vary", b"authorization, x-api-key"),
    ]
    known_tags = semantics.headers_of(scope).get(b"if-none-match", b"")
    if tag in [known.strip().removeprefix(b"W/") for known in known_tags.split(b",")]:
        return 304, headers, b""
    return 200, headers, body
