"""The SDK's requests and answers as httpx's, and back: the only module of the SDK that knows httpx.

It is imported when a client is made, so that importing the SDK does not pay for httpx.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx

from router.sdk.connections import AsyncConnectionPool, ConnectionPool
from router.sdk.effects import Send
from router.sdk.errors import HybridRouterError, ProtocolError
from router.sdk.fork import generation
from router.sdk.responses import NoResponse, Reply

_MAX_CACHED_URLS = 256


class HttpCodec:
    """Requests to one server."""

    #: What sending may raise, for the clients to hand to :meth:`no_response`.
    errors = httpx.HTTPError

    def __init__(self, url: str) -> None:
        self.server = _checked(url)
        self._urls: dict[str, httpx.URL] = {}
        self._generation, self._given = generation(), False

    def transport(self, given: httpx.BaseTransport | None) -> httpx.BaseTransport:
        self._given = given is not None
        return given or ConnectionPool(self.server.startswith("https:"))

    def async_transport(self, given: httpx.AsyncBaseTransport | None) -> httpx.AsyncBaseTransport:
        self._given = given is not None
        return given or AsyncConnectionPool(self.server.startswith("https:"))

    def request(self, send: Send) -> httpx.Request:
        if self._given and self._generation != generation():
            # Each process makes connections of its own; one of httpx's own transports is not.
            raise HybridRouterError(
                "the transport that this client was given was made before a fork, and both processes "
                "would use its connections: make a new client in the child"
            )
        limit_s = send.timeout_s
        timeout = {"connect": min(limit_s, 5.0), "read": limit_s, "write": limit_s, "pool": limit_s}
        return httpx.Request(
            send.method,
            self._url(send.path),
            headers=send.headers,
            content=send.content,
            extensions={"timeout": timeout},
        )

    def reply(self, response: httpx.Response) -> Reply:
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw
        }
        return Reply(response.status_code, headers, response.content)

    def no_response(self, error: httpx.HTTPError, send: Send) -> NoResponse:
        """Raises ProtocolError for a body that cannot be decompressed: another try would not mend it."""
        if isinstance(error, httpx.DecodingError):
            raise ProtocolError(f"the answer of {self.server} cannot be decompressed: {error}") from error
        name = type(error).__name__
        if isinstance(error, httpx.ConnectTimeout):
            return NoResponse("no connection in time")
        if isinstance(error, httpx.PoolTimeout):
            return NoResponse("all connections of this client stayed in use", late=True)
        if isinstance(error, httpx.TimeoutException):
            return NoResponse(f"nothing came within {send.timeout_s:.3g} s", late=True)
        return NoResponse(str(error) or name)

    def _url(self, path: str) -> httpx.URL:
        url = self._urls.get(path)
        if url is None:
            url = httpx.URL(self.server + path)
            # Parsing costs more than all else here. Paths with a request's id are used once or twice.
            if len(self._urls) < _MAX_CACHED_URLS and not path.startswith("/v2/requests/"):
                self._urls[path] = url
        return url


def _checked(url: str) -> str:
    """The URL to put paths after."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is not a server's URL: {error}") from None
    if parts.username or parts.password:
        raise ValueError("a server's URL holds no user or password: pass key=, or a header of your own")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is not a server's URL; give one like http://127.0.0.1:8000")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
