"""The house rules as a test: sizes that can be read, no pickle, no sleeping tests, no test without a check,
no module that nobody needs, no circle of imports, one meaning for each name."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("router", "workers", "optimizers")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 70
#: Longer than allowed, and by how much at most: an entry may shrink, and goes when it is not needed.
LONG_FILES: dict[str, int] = {}
#: For users and for tests; the server itself has no use for them.
PUBLIC = frozenset({"workers.queue.memory.queue", "optimizers.formats.sklearn"})
#: They run code from what they read.
UNSAFE = frozenset({"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"})
#: Tests of real processes poll what has no event to wait for; in the others time is virtual.
REAL_TIME = (
    "tests/acceptance",
    "tests/benchmarks",
    "tests/chaos",
    "tests/contract/test_batch_worker.py",
    "tests/support",
)

#: Modules at the top of each package, its ``__init__`` included.
MOST_AT_THE_TOP = {"router": 5, "workers": 4, "optimizers": 6}
#: Words that only this project used for what the field has a word for: in how many names, and never in more.
PRIVATE_WORDS = {
    **dict.fromkeys(("become", "fleet", "foreign", "heed", "pressed", "strained", "surrogate"), 0),
    **dict.fromkeys(("weigher", "whoever"), 0),
    "apart": 1,
    "found": 70,
    "made": 8,
    "mend": 1,
    "overrun": 3,
    "seen": 18,
    "shown": 11,
    "slim": 1,
    "told": 3,
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sources(*PACKAGES)}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def place(path: Path, node: ast.AST | None = None) -> str:
    line = getattr(node, "lineno", None)
    return f"{path.relative_to(ROOT)}{f':{line}' if line else ''}"


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, Function))


def test_there_is_something_to_check() -> None:
    assert all(len(sources(package)) > 5 for package in PACKAGES)
    assert len(sources("tests")) > 20


def test_no_file_is_too_long_to_read() -> None:
    lengths = {place(p): len(p.read_text(encoding="utf-8").splitlines()) for p in sources(*PACKAGES)}
    too_long = {n: lines for n, lines in lengths.items() if lines > LONG_FILES.get(n, MAX_FILE_LINES)}
    assert not too_long, f"over {MAX_FILE_LINES} lines, split them: {too_long}"
    mended = [name for name in LONG_FILES if lengths.get(name, 0) <= MAX_FILE_LINES]
    assert not mended, f"no longer too long, take them out of LONG_FILES: {mended}"


def test_no_function_is_too_long_to_read() -> None:
    too_long = [
        f"{place(path, node)} {node.name} ({lines} lines)"
        for path in sources(*PACKAGES)
        for node in functions(path)
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not too_long, f"over {MAX_FUNCTION_LINES} lines, split them: {too_long}"


def test_every_module_opens_with_a_sentence() -> None:
    silent = [place(p) for p in sources(*PACKAGES) if tree(p).body and not ast.get_docstring(tree(p))]
    assert not silent, f"say first what a reader needs to know: {silent}"


def imports(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every module, and every name taken from one, that a file imports: ``a.b`` and ``a.b.name``."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield module, node
            yield from ((f"{module}.{alias.name}", node) for alias in node.names)


def test_nothing_that_runs_code_when_it_reads_is_imported() -> None:
    unsafe = [
        f"{place(path, node)} {name}"
        for path in sources(*PACKAGES)
        for name, node in imports(path)
        if name.split(".")[0] in UNSAFE
    ]
    assert not unsafe, f"use optimizers.tensors or JSON instead: {unsafe}"


def sleeps(path: Path) -> Iterator[ast.Call]:
    """Calls that wait for real time to pass; ``asyncio.sleep(0)`` only lets others run."""
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called = ast.unparse(node.func)
        yields = called == "asyncio.sleep" and [ast.unparse(a) for a in node.args] == ["0"]
        if called in ("time.sleep", "asyncio.sleep", "anyio.sleep") and not yields:
            yield node


def in_virtual_time(path: Path) -> set[int]:
    """The lines of functions whose loop has a virtual clock."""
    return {
        line
        for node in functions(path)
        if any(ast.unparse(decorator).endswith("in_virtual_time") for decorator in node.decorator_list)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def test_no_test_sleeps() -> None:
    paths = [p for p in sources("tests") if not place(p).startswith(REAL_TIME)]
    asleep = [
        place(path, call)
        for path in paths
        for call in sleeps(path)
        if call.lineno not in in_virtual_time(path)
    ]
    assert not asleep, f"wait for an event, or use tests.support.virtual_time: {asleep}"


@cache
def checks(path: Path) -> frozenset[str]:
    """The names of a file's functions that check something, directly or by another of them."""
    found: set[str] = set()
    named = [(node.name, node) for node in functions(path)]
    while True:
        new = {name for name, node in named if name not in found and _checks(node, found)}
        if not new:
            return frozenset(found)
        found |= new


#: Names of helpers that check, wherever they are defined.
_CHECKING = re.compile(r"^(assert|check|expect|verify|run_state_machine_as_test)|(^|\.)(raises|warns|fail)$")


def _checks(function: Function, checking: set[str]) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Assert | ast.Raise):
            return True
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            name = called.rpartition(".")[2]
            if called in checking or name in checking or _CHECKING.search(name) or _CHECKING.search(called):
                return True
    return False


def imported_checks(path: Path) -> set[str]:
    """Functions of other test modules that check something, by the names they have here."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests."):
            other = ROOT.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            if other.exists():
                found |= {a.asname or a.name for a in node.names if a.name in checks(other)}
    return found


def test_every_test_checks_something() -> None:
    idle = [
        f"{place(path, node)} {node.name}"
        for path in sources("tests")
        if path.name.startswith("test_")
        for node in functions(path)
        if node.name.startswith("test_") and not _checks(node, set(checks(path)) | imported_checks(path))
    ]
    assert not idle, f"a test that cannot fail is none: {idle}"


def entry_points() -> set[str]:
    """Modules that something outside of Python's imports names: a script, a command in the Makefile, an
    import path in a file of settings, or a string (deferred imports, deployments) in another module."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {target.partition(":")[0] for target in project.get("scripts", {}).values()}
    texts = [ROOT / "Makefile", *(ROOT / "configs").rglob("*.yaml"), *sources(*PACKAGES)]
    dotted = re.compile(rf"""["'\s]((?:{"|".join(PACKAGES)})(?:\.\w+)+)""")
    for path in texts:
        if path.suffix == ".py":
            strings = (n.value for n in ast.walk(tree(path)) if isinstance(n, ast.Constant))
            named |= {s.partition(":")[0] for s in strings if isinstance(s, str) and dotted.match(f" {s}")}
        elif path.exists():
            named |= set(dotted.findall(path.read_text(encoding="utf-8")))
    return named


def test_every_module_is_imported_or_named_as_an_entry_point() -> None:
    needed = entry_points() | PUBLIC
    for path in sources(*PACKAGES):
        needed |= {name for name, _ in imports(path) if name != module_name(path)}
    dead = [
        place(path)
        for path in sources(*PACKAGES)
        if path.name not in ("__init__.py", "__main__.py")
        and module_name(path) not in needed
        # An example is run by its name: make example NAME=...
        and not place(path).startswith("optimizers/examples/")
    ]
    assert not dead, f"nothing imports these and no entry point names them: {dead}"


def package_of(module: str) -> str:
    """The package that a module is in; one at the top of a package stands for itself."""
    path = MODULES[module]
    folder = ".".join(path.relative_to(ROOT).parts[:-1])
    return module if folder in PACKAGES else folder


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that reach each other, each sorted."""

    def reached(start: str) -> set[str]:
        reachable, left = set[str](), [start]
        while left:
            new = graph.get(left.pop(), set()) - reachable
            reachable |= new
            left += new
        return reachable

    reach = {name: reached(name) for name in graph}
    groups = {
        frozenset(other for other in reach[name] if name in reach.get(other, ()))
        for name in graph
        if name in reach[name]
    }
    return sorted(sorted(group) for group in groups)


def import_graph() -> dict[str, set[str]]:
    """Module to the modules that it imports, whether at its top, in a function or for types alone."""
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        named = [name for name, node in imports(path) if isinstance(node, ast.Import) and name in MODULES]
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module in MODULES:
                parts = (f"{node.module}.{alias.name}" for alias in node.names)
                named += [part if part in MODULES else node.module for part in parts]
        graph[module] = set(named) - {module}
    return graph


def test_files_import_each_other_in_no_circle() -> None:
    assert not circles(import_graph())


def test_packages_import_each_other_in_no_circle() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for module, others in import_graph().items():
        graph[package_of(module)] |= {package_of(other) for other in others} - {package_of(module)}
    assert not circles(graph)


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_no_two_classes_have_one_name() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in sources(*PACKAGES):
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(place(path, node))
    shared = {n: at for n, at in homes.items() if len(at) > 1}
    assert not shared, f"one name, one class: {shared}"


@pytest.mark.parametrize(("package", "most"), MOST_AT_THE_TOP.items())
def test_few_modules_stand_at_the_top_of_a_package(package: str, most: int) -> None:
    top = sorted(path.name for path in (ROOT / package).glob("*.py"))
    assert len(top) <= most, f"put them where their concept is: {top}"


def test_every_package_says_what_it_is_for_and_where_to_read_first() -> None:
    texts = {
        place(path): ast.get_docstring(tree(path)) or ""
        for path in sources(*PACKAGES)
        if path.name == "__init__.py"
    }
    short = [p for p, text in texts.items() if len(re.findall(r"[.!?](?=\s|$)", text)) < 2]
    assert not short, f"two sentences: what it is for, what to read first: {short}"


def test_unit_tests_stand_where_their_code_does() -> None:
    """In a folder named as its package; those of a module at the top are named after it."""
    packages = {path.name for p in PACKAGES for path in (ROOT / p).rglob("*") if path.is_dir()}
    packages |= {path.name for path in (ROOT / "tests").iterdir()}
    top = {path.stem for package in PACKAGES for path in (ROOT / package).glob("*.py")}
    unit = ROOT / "tests/unit"
    lost = [place(p) for p in unit.iterdir() if p.is_dir() and p.name not in packages | {"__pycache__"}]
    lost += [
        place(path)
        for path in unit.glob("test_*.py")
        if not any(path.stem.removeprefix("test_").startswith(module) for module in top)
    ]
    assert not lost, f"no package or module has this name: {lost}"


def names_given(path: Path) -> Iterator[str]:
    """Every name that a file gives: to functions, classes, arguments, variables and attributes."""
    for node in ast.walk(tree(path)):
        if isinstance(node, Function | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def private_words(paths: list[Path]) -> Counter[str]:
    names = (name for path in paths for name in names_given(path))
    words = (word.lower() for name in names for word in re.findall("[A-Z]?[a-z]+", name))
    return Counter(word for word in words if word in PRIVATE_WORDS)


def test_names_are_the_words_of_the_field() -> None:
    more = {w: n for w, n in private_words(sources(*PACKAGES)).items() if n > PRIVATE_WORDS[w]}
    assert not more, f"say what is in it, or what the field calls it: {more}, at most {PRIVATE_WORDS}"


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("def test_x():\n    f()\n", "idle"),
        ("import time\ndef test_x():\n    time.sleep(1)\n    assert f()\n", "asleep"),
        ("async def test_x():\n    await asyncio.sleep(0.1)\n    assert f()\n", "asleep"),
        ("async def test_x():\n    await asyncio.sleep(0)\n    assert f()\n", "fine"),
        ("def helper():\n    assert f()\ndef test_x():\n    helper()\n", "fine"),
        ("def test_x():\n    with pytest.raises(E):\n        f()\n", "fine"),
    ],
)
def test_the_rules_find_what_breaks_them(code: str, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "test_it.py"
    path.write_text(code)
    (test,) = (node for node in functions(path) if node.name == "test_x")
    found = [
        *(["idle"] if not _checks(test, set(checks(path))) else []),
        *(["asleep"] if list(sleeps(path)) else []),
    ]
    assert found == ([] if rule == "fine" else [rule])
