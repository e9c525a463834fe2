"""Tab completion: ``hybrid-router completion SHELL`` prints the script; what it offers is found here.

What the server alone knows (models, variants) is asked of it while the user waits for the next letter: one
short try, and nothing is offered where it does not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import get_completion_class

from router.cli.common import URL, connect
from router.sdk.client import Client
from router.sdk.errors import HybridRouterError

PROGRAM, VARIABLE = "hybrid-router", "_HYBRID_ROUTER_COMPLETE"
_PATIENCE = "1s"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete commands, options, models and variants.

    \b
    Examples (in the shell's start-up file, or for this shell alone):
      eval "$(hybrid-router completion bash)"
      eval "$(hybrid-router completion zsh)"
      hybrid-router completion fish | source
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click brings these three
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())


def models(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The server's models whose names begin so."""
    return _asked(ctx, incomplete, lambda client: (model.name for model in client.models()))


def variants(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Those of the model that is already on the line."""
    model = _model(ctx)
    return _asked(ctx, incomplete, lambda client: client.model(model).versions) if model else []


def outputs(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Those of the model that is already on the line."""
    model = _model(ctx)
    if not model:
        return []
    return _asked(ctx, incomplete, lambda client: (spec.name for spec in client.model(model).outputs))


def _model(ctx: click.Context) -> str:
    """The first argument. An option that waits for its value leaves the arguments unread, in ``args``."""
    return ctx.params.get("model") or next(iter(ctx.args), "")


def _asked(ctx: click.Context, incomplete: str, names: Callable[[Client], Iterable[str]]) -> list[str]:
    try:
        url, key = ctx.params.get("url") or URL, ctx.params.get("key")
        with connect(url, key, timeout=_PATIENCE, retry_for="0s") as client:
            return [name for name in names(client) if name.startswith(incomplete)]
    except (HybridRouterError, click.ClickException):
        return []  # a message would land in the line that is being typed
