"""Imports run one way, and one package alone reads environment variables."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "crate_graph"

# each layer may import those before it
ORDER = [
    {"errors"},
    {"shipped", "redaction", "deferred", "whole_files", "paths"},
    {"config"},
    {"ops"},
    {"measures"},
    {"models"},
    {"data"},
    {"tasks"},
    {"cluster"},
    {"resilience"},
    {"engine"},
    {"checkpoint"},
    {"export"},
    {"weights"},
    {"evaluation", "analysis"},
    {"restore"},
    {"train", "doctor"},
    {"planning"},
    {"cli"},
    {"__init__", "__main__"},
]
LEVEL = {layer: level for level, layers in enumerate(ORDER) for layer in layers}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def layer_of(file):
    return file.parts[0].removesuffix(".py")


def imported_modules(source, package):
    """Full names of all modules that a source imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def upward_imports(file, source):
    here = layer_of(file)
    package = ("crate_graph", *file.parts[:-1])
    for module in imported_modules(source, package):
        name, *rest = module.split(".")
        if name != "crate_graph":
            continue
        there = rest[0] if rest and rest[0] in LEVEL else "__init__"
        if there != here and LEVEL[there] >= LEVEL[here]:
            yield module


def reads_environment(source):
    names = {"environ", "environb", "getenv", "putenv", "unsetenv"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {alias.name for alias in node.names})
        for node in ast.walk(ast.parse(source))
    )


def test_every_file_belongs_to_a_layer():
    assert {layer_of(file) for file in FILES} <= set(LEVEL)
    assert len(FILES) > 20


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_point_down(file):
    assert not list(upward_imports(file, (PACKAGE / file).read_text()))


@pytest.mark.parametrize("file", [file for file in FILES if layer_of(file) != "cluster"], ids=str)
def test_only_cluster_reads_the_environment(file):
    assert not reads_environment((PACKAGE / file).read_text())


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if layer_of(file) in {"models", "measures", "ops"} or file == Path("data/plan.py")],
    ids=str,
)
def test_models_operators_and_plan_know_no_processes(file):
    foreign = ("torch.distributed", "accelerate", "deepspeed")
    modules = list(imported_modules((PACKAGE / file).read_text(), ("crate_graph", *file.parts[:-1])))
    assert not [module for module in modules if module.startswith(foreign)]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("models/crate.py", "from crate_graph.data.plan import plan_epoch"),
        ("models/crate.py", "import crate_graph.train.step"),
        ("ops/mssa.py", "def f():\n    from crate_graph import models"),
        ("data/plan.py", "from ..engine import base"),
        ("evaluation/run.py", "from crate_graph.analysis import curves"),
        ("engine/base.py", "from crate_graph import create_model"),
    ],
)
def test_the_check_sees_an_upward_import(file, source):
    assert list(upward_imports(Path(file), source))


@pytest.mark.parametrize("source", ["import os\nos.environ['A']", "from os import getenv", "import os\nos.getenv('A')"])
def test_the_check_sees_a_reader_of_the_environment(source):
    assert reads_environment(source)
