"""The command line. Each command is one file under `router/cli/client` or `router/cli/server`.

It is imported when you ask for it, so that a client needs no server installed.
"""

from __future__ import annotations

import os

import click

from router.cli.lazy import LazyGroup

#: Every command, and where it is.
COMMANDS = {
    "optimize": "optimizers.pipeline.cli:optimize",
    "bench": "router.cli.client.bench:bench",
    "completion": "router.cli.client.completion:completion",
    "dead": "router.cli.server.dead:dead",
    "demo": "router.cli.server.demo:demo",
    "examples": "router.cli.server.examples:examples",
    "submit": "router.cli.client.submit:submit",
    "infer": "router.cli.client.infer:infer",
    "key": "router.cli.client.key:key",
    "result": "router.cli.client.result:result",
    "policy": "router.cli.server.policy:policy",
    "serve": "router.cli.server.serve:serve",
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


@click.group(
    cls=LazyGroup,
    commands_at=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_COMPLETION,
)
@click.version_option(package_name="hybrid-router")
@click.pass_context
def main(ctx: click.Context) -> None:
    """One endpoint for inference requests of every urgency."""
    # https://no-color.org; what is no terminal gets no colours anyway.
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        ctx.color = False


if __name__ == "__main__":
    main(prog_name="hybrid-router")
