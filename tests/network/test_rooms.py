"""Imports point one way."""
import ast
from pathlib import Path

import pytest

from tests.launch import ROOT

ROOMS = {"accelerate", "checkpoint", "training", "evaluation", "report", "serving"}
NETWORK = sorted(path for path in (ROOT / "lib").glob("*.py") if path.stem not in ("segmentation", "predictor"))


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


@pytest.mark.parametrize("path", NETWORK, ids=lambda path: path.stem)
def test_the_network_knows_none_of_the_rooms_beside_it(path):
    assert not {name for name in imported(path) if name.startswith("lib.") and name.split(".")[1] in ROOMS}


@pytest.mark.parametrize("path", sorted((ROOT / "lib").rglob("*.py")), ids=lambda path: path.stem)
def test_lib_knows_neither_the_data_nor_the_flags(path):
    assert not {name for name in imported(path) if name.split(".")[0] in ("args", "data", "refer", "tools", "tests")}


@pytest.mark.parametrize("name", ["utils", "distributed"])
def test_what_all_use_uses_nothing_of_the_project(name):
    own = {path.stem for path in ROOT.glob("*.py")} | {"lib", "data", "refer", "bert", "tools", "tests"}
    assert {module.split(".")[0] for module in imported(ROOT / f"{name}.py")} & own <= {"utils", "distributed"}


@pytest.mark.parametrize("path", [*sorted((ROOT / "lib").rglob("*.py")), *sorted((ROOT / "bert").glob("*.py")),
                                  ROOT / "train.py", ROOT / "test.py"], ids=lambda path: path.stem)
def test_packages_that_few_runs_need_are_imported_by_those_only(path):
    rare = {"timm", "huggingface_hub", "onnx", "onnxruntime", "onnxscript"}
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
