"""API keys from the command line: shown once, hashed for the policy, never an argument that others see."""

from __future__ import annotations

import subprocess
import sys

import orjson
import pytest
import yaml
from click.testing import CliRunner, Result

from router.cli.main import main
from router.policy import parse
from router.service.auth import Keyring

MODEL = "models: {m: {artifacts: a, online: {variants: [v]}}}\n"


def key(*args: str, given: str | None = None) -> Result:
    return CliRunner().invoke(main, ["key", *args], input=given)


def test_a_new_key_opens_the_door_of_the_policy_that_its_line_goes_into() -> None:
    done = key("new", "--tenant", "acme")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    made = lines[1].strip()
    line = "\n".join(lines[lines.index("tenants:") :])
    policy = parse(MODEL + line)
    assert policy.secured
    assert Keyring(policy.tenants).tenant({b"authorization": b"Bearer " + made.encode()}) == "acme"
    assert made.startswith("hr_") and len(made) == 46
    assert made not in line and done.stdout.count(made) == 1


@pytest.mark.parametrize("file", ["hr_abc\n", "\ufeffhr_abc\r\n", " hr_abc"])
def test_a_key_is_the_same_however_an_editor_saved_it(file: str) -> None:
    assert key("hash", given=file).stdout == key("hash", given="hr_abc").stdout


def test_two_keys_are_never_alike_and_the_hash_read_from_standard_input_is_the_same() -> None:
    first, second = (orjson.loads(key("new", "--json").stdout) for _ in range(2))
    assert first["key"] != second["key"]
    assert set(first) == {"key", "hash", "tenant"} and first["tenant"] is None
    for ending in ("", "\n", "\r\n"):
        assert key("hash", given=first["key"] + ending).stdout == first["hash"] + "\n"


@pytest.mark.parametrize("given", ["", "\n", "two words", "k\u00e9y", "x" * 513, "a\nb"])
def test_what_no_caller_could_send_as_a_key_is_not_hashed(given: str) -> None:
    done = key("hash", given=given)
    assert done.exit_code == 2
    assert "a key is one word of at most 512 printable ASCII characters" in done.stderr
    assert not done.stdout


def test_a_name_that_the_policy_would_not_take_is_refused() -> None:
    done = key("new", "--tenant", "a b")
    assert (done.exit_code, "'a b' is no tenant's name" in done.stderr) == (2, True)
    assert "hr_" not in done.output


def test_without_a_tenant_the_line_says_where_its_name_goes() -> None:
    written = yaml.safe_load(key("new").stdout[key("new").stdout.index("tenants:") :])
    assert list(written["tenants"]) == ["TENANT"]


def test_keys_are_made_where_no_server_package_is() -> None:
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['ray', 'redis', 'yaml', 'pydantic', 'torch', 'onnxruntime']))\n"
        "from router.cli.main import main\n"
        "main(['key', 'new', '--json'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert orjson.loads(done.stdout)["hash"].startswith("sha256:")
