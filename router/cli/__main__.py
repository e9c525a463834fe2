"""``python -m router.cli``: the same as ``hybrid-router``."""

from router.cli.main import main

main(prog_name="hybrid-router")
