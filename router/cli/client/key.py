"""``hybrid-router key``: API keys for the tenants of a policy, of which only the hashes go into its file."""

from __future__ import annotations

import re
import sys

import click
import orjson

from router.service.api_keys import MAX_KEY_CHARS, hash_key, new_key

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _tenant(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _TENANT.fullmatch(value):
        text = f"{value!r} is no tenant's name; write up to 64 letters, digits, '-' and '_'"
        raise click.BadParameter(text, ctx, parameter)
    return value


@click.group()
def key() -> None:
    """API keys for the tenants of a policy."""


@key.command()
@click.option("--tenant", callback=_tenant, help="Whose it will be.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def new(tenant: str | None, as_json: bool) -> None:
    """Make a key: shown once for its user, and as the line for the policy file.

    \b
    Example:
      hybrid-router key new --tenant acme
    """
    secret = new_key()
    hashed = hash_key(secret)
    if as_json:
        fields = {"key": secret, "hash": hashed, "tenant": tenant}
        click.echo(orjson.dumps(fields, option=orjson.OPT_INDENT_2).decode())
        return
    click.echo(f"The key. It is shown this once, and the policy file does not hold it:\n  {secret}\n")
    click.echo("For the policy file, beside the tenant's other keys, if it has any:")
    click.echo(f'tenants:\n  {tenant or "TENANT"}:\n    keys: ["{hashed}"]')


@key.command(name="hash")
def hash_given() -> None:
    """Read a key from standard input, and print what the policy file keeps of it.

    \b
    Example:
      hybrid-router key hash < key.txt
    """
    typed = sys.stdin.isatty()
    given = str(click.prompt("Key", hide_input=True, err=True) if typed else sys.stdin.read(1 << 16)).strip()
    given = given.lstrip("\ufeff").lstrip()  # some editors put a byte order mark first
    if not re.fullmatch(r"[!-~]+", given) or len(given) > MAX_KEY_CHARS:
        raise click.UsageError(f"a key is one word of at most {MAX_KEY_CHARS} printable ASCII characters")
    click.echo(hash_key(given))
