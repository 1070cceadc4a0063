"""Imports point one way."""
import ast
from functools import cache
from pathlib import Path

import pytest

from tests.launch import ROOT

NETWORK = sorted(path for path in (ROOT / "lib").glob("*.py") if path.stem not in ("segmentation", "predictor"))
PACKAGES = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in ROOT.glob("*/__init__.py")} \
    | {f"lib.{path.parent.name}" for path in (ROOT / "lib").glob("*/__init__.py")}
SCRIPTS = sorted(ROOT.glob("*.py"))
# These files of lib/ use the network and the packages beside it, and are used by them: each is a room of its own.
ALONE = {"lib.segmentation", "lib.predictor", "lib.export"}
ROOMS = {name for name in PACKAGES if name.startswith("lib.")}


@cache
def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    return {name for node in ast.walk(ast.parse(path.read_text())) for name in names_in(node)}


def names_in(node: ast.AST) -> set[str]:
    """The modules that a statement imports, and what it may import from them; none if it imports nothing."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return set()


def room(module: str) -> str | None:
    """The room of a module's name: a package, a single file of the root, or None for other projects' modules."""
    first, _, rest = module.partition(".")
    for name in (f"{first}.{rest.partition('.')[0]}", first):
        if name in PACKAGES | ALONE or name in {"lib", *(path.stem for path in SCRIPTS)}:
            return name
    return None


@cache
def arrows() -> dict[str, set[str]]:
    """{room: the rooms that its files import from}."""
    found: dict[str, set[str]] = {}
    for path in [*SCRIPTS, *(path for name in PACKAGES | {"lib"} if name != "tests"
                             for path in (ROOT / name.replace(".", "/")).rglob("*.py"))]:
        own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        found.setdefault(own, set()).update({room(name) for name in imported(path)} - {None, own})
    return found


def test_no_rooms_import_each_other_in_a_circle():
    ahead = arrows()
    while leaves := {name for name, uses in ahead.items() if not uses & ahead.keys()}:   # they use nothing that is left
        ahead = {name: uses for name, uses in ahead.items() if name not in leaves}
    assert not ahead


@pytest.mark.parametrize("path", NETWORK, ids=lambda path: path.stem)
def test_the_network_knows_none_of_the_rooms_beside_it(path):
    assert not {room(name) for name in imported(path)} & ROOMS


@pytest.mark.parametrize("path", sorted((ROOT / "lib").rglob("*.py")), ids=lambda path: path.stem)
def test_lib_knows_neither_the_data_nor_the_flags(path):
    assert not {name for name in imported(path) if name.split(".")[0] in ("args", "data", "refer", "tools", "tests")}


@pytest.mark.parametrize(("name", "uses"), [
    ("utils", set()), ("distributed", {"utils"}), ("schema", {"utils"}), ("lib.imagery", {"utils"}),
    ("bert", {"schema", "utils"}), ("refer", {"schema", "utils", "lib.imagery"}), ("lib", {"bert", "utils"})])
def test_what_many_use_uses_little(name, uses):
    assert arrows()[name] <= uses


def test_evaluation_knows_nothing_of_reports():
    assert "lib.report" not in arrows()["lib.evaluation"]


@pytest.mark.parametrize("path", [*sorted((ROOT / "lib").rglob("*.py")), *sorted((ROOT / "bert").glob("*.py")),
                                  ROOT / "train.py", ROOT / "test.py"], ids=lambda path: path.stem)
def test_packages_that_few_runs_need_are_imported_by_those_only(path):
    rare = {"timm", "huggingface_hub", "onnx", "onnxruntime", "onnxscript", "rasterio", "pyogrio"}
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    later = {node for function in functions for node in ast.walk(function)}
    at_start = {name for node in ast.walk(tree) if node not in later for name in names_in(node)}
    assert not rare & {name.split(".")[0] for name in at_start}


def test_functions_of_the_network_fit_on_a_screen():
    for path in NETWORK:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 40, f"{path.name}: {node.name}"
