"""The command line against a server in memory, as a script sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from router.cli.main import main
from router.sdk import http

URL = "http://router.test"
Server = Callable[[httpx.Request], httpx.Response]
Cli = Callable[..., Result]


def against(monkeypatch: pytest.MonkeyPatch, server: Server) -> Cli:
    """A function that runs the command line with ``server`` behind every client; ``env`` is added."""
    transport = httpx.MockTransport(server)
    monkeypatch.setattr(http, "ConnectionPool", lambda tls: transport)
    monkeypatch.setattr(http, "AsyncConnectionPool", lambda tls: transport)

    def invoke(
        *arguments: str | Path,
        stdin: str | bytes | None = None,
        env: dict[str, str] | None = None,
        color: bool = False,
    ) -> Result:
        command = [str(a) for a in arguments]
        about = {"HYBRID_ROUTER_URL": URL, "HYBRID_ROUTER_KEY": None, "NO_COLOR": None, "TERM": "xterm"}
        return CliRunner().invoke(
            main,
            command,
            input=stdin,
            env={**about, **(env or {})},
            color=color,
            prog_name="hybrid-router",
        )

    return invoke
