"""A headless Chromium driven by the DevTools protocol over one websocket: no driver, nothing downloaded.

Where the browser is missing it is installed as a Debian package, if the tests run as root; elsewhere tests
that need it are skipped with the reason in sight. With ``CI=true`` a skip is a failure.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.sync.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str:
    """The browser; skips the test where there is none and none can be installed."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
            subprocess.run(
                ["apt-get", *command],
                check=False,
                capture_output=True,
                timeout=300,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )
        found = shutil.which("chromium")
    if found is None:
        reason = "no Chromium here, and it could not be installed: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Page:
    """One open page. ``requested`` are the addresses that it asked, ``said`` what went wrong in it."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._ids = socket, itertools.count(1)
        self.requested: list[str] = []
        self.said: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session: str | None = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    _session = None

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(orjson.dumps(message).decode())
        while True:
            told = orjson.loads(self._socket.recv(timeout=20))
            if told.get("id") == number:
                assert "error" not in told, told
                return dict(told["result"])
            self._note(told)

    def _note(self, told: dict[str, Any]) -> None:
        parameters = told.get("params", {})
        match told.get("method"):
            case "Network.requestWillBeSent":
                self.requested.append(parameters["request"]["url"])
            case "Log.entryAdded":
                self.said.append(f"{parameters['entry']['level']}: {parameters['entry']['text']}")
            case "Runtime.exceptionThrown":
                self.said.append(f"exception: {orjson.dumps(parameters).decode()[:500]}")

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def run(self, expression: str) -> Any:
        """The value of an expression in the page."""
        told = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait(self, expression: str, within_s: float = 20.0) -> Any:
        """The expression's value as soon as it is true; while the page is not there yet it is not."""
        attempt = f"(() => {{ try {{ return {expression} }} catch {{ return null }} }})()"
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            value = self.run(attempt)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"not within {within_s} s: {expression}; the page said {self.said}")

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({_js(selector)}).innerText"))

    def fill(self, selector: str, value: str) -> None:
        """Put a value into a field as typing does."""
        self.run(
            f"(() => {{ const field = document.querySelector({_js(selector)}); field.value = {_js(value)};"
            "field.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )

    def focus(self, selector: str) -> None:
        self.run(f"document.querySelector({_js(selector)}).focus()")

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        """A key, as the keyboard sends it; ``modifiers``: 2 is Ctrl, 8 is Shift."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self._call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                modifiers=modifiers,
                **(text if kind == "keyDown" else {}),
            )

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({_js(selector)}).click()")

    def view(self, width: int, height: int, dark: bool) -> None:
        """The size of the window, and which colours its owner likes."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[feature])

    def shoot(self, path: Path) -> None:
        """A picture of it, whole."""
        told = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(told["data"]))


def _js(text: str) -> str:
    return orjson.dumps(text).decode()


@contextmanager
def browsing() -> Iterator[Page]:
    """A page of a browser of its own, which is gone afterwards, its profile too."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        process = subprocess.Popen(
            [
                executable(),
                *options,
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr
            said = ""
            for line in process.stderr:
                said += line
                if found := re.search(r"listening on (ws://\S+)", line):
                    break
            else:
                raise AssertionError(f"the browser does not start: {said}")
            with connect(found[1], max_size=None, compression=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.communicate(timeout=20)
