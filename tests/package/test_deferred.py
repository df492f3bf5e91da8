"""What is not needed is not loaded; what is asked for, or awaited, is there."""

import importlib
import subprocess
import sys

import pytest

import crate_graph
from crate_graph import checkpoint, data, deferred


def test_a_command_that_needs_no_network_does_without_pytorch():
    code = (
        "import sys, crate_graph; from crate_graph.cli import main; "
        "codes = [main(['checkpoint', 'list', 'nowhere']), main(['train', 'quikstart'])]; "
        "print(codes, sorted({'torch', 'timm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[2, 2] []\n", done.stderr


@pytest.mark.parametrize("package", [crate_graph, checkpoint, data], ids=lambda package: package.__name__)
def test_every_name_is_there_when_asked_for(package):
    assert all(getattr(package, name).__name__ == name for name in package.__all__)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_the_models_are_an_attribute_of_the_package():
    assert crate_graph.models.load_published and crate_graph.ops.ista and crate_graph.export.export


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A module that nobody has imported yet."""
    (tmp_path / "toy_awaited.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(deferred, "_ACTS", {})
    yield
    del sys.modules["toy_awaited"]


@pytest.mark.parametrize("before", [True, False], ids=["loaded already", "loaded later"])
def test_a_module_is_acted_on_once_it_has_run(toy, before):
    seen = []
    if before:
        importlib.import_module("toy_awaited")
    deferred.after_import("toy_awaited", lambda module: seen.append(module.value))
    assert seen == ([1] if before else [])
    importlib.import_module("toy_awaited")
    deferred.after_import("toy_awaited", lambda module: seen.append(2))  # a second act is not taken
    assert seen == [1]
