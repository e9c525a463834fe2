"""``hybrid-router serve``: the models of a policy, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from pathlib import Path

import click

from router.cli.lazy import needs_server, require_linux
from router.cli.server.foreground import ending, fail, interruptible, next_interrupt_ends_at_once, quiet


@click.command()
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
