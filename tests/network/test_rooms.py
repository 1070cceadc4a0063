"""Imports point one way."""
import ast
from pathlib import Path

import pytest

from tests.launch import ROOT

ROOMS = {"accelerate", "checkpoint", "training", "evaluation", "report", "serving"}
NETWORK = sorted(path for path in (ROOT / "lib").glob("*.py") if path.stem not in ("segmentation", "predictor"))


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


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


def test_functions_of_the_network_fit_on_a_screen():
    for path in NETWORK:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 40, f"{path.name}: {node.name}"
