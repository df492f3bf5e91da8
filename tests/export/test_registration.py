"""transformers learns of our classes whichever is imported first, and is not imported for that."""

from __future__ import annotations

import importlib
import os

import pytest
from forks import Forks

from crate_graph import deferred
from crate_graph.export.hf import registration

FRESH = """
import sys
assert not {"crate_graph", "transformers"} & sys.modules.keys()
"""
CHECK = """
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
assert AutoConfig.for_model("crate_graph").architecture
assert type(AutoImageProcessor.from_pretrained(".")).__name__ == "CrateImageProcessor"
assert "CrateConfig" in {config.__name__ for config in AutoModelForImageClassification._model_mapping}
"""


@pytest.fixture(scope="module")
def torch_loaded():
    """Starts programs that have loaded PyTorch and timm, which the two packages share, and neither of these."""
    with Forks("torch", "timm", environment=lambda: {**os.environ, "HF_HUB_OFFLINE": "1"}) as forks:
        yield forks


@pytest.mark.parametrize(
    "imports",
    [
        "import crate_graph\nassert 'transformers' not in sys.modules\n",
        "from transformers import AutoConfig\nimport crate_graph\n",
        "from transformers import AutoImageProcessor, AutoModelForImageClassification\nimport crate_graph\n",
    ],
    ids=["ours first", "configuration first", "ours last"],
)
def test_order_of_imports(imports, torch_loaded, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "CrateImageProcessor"}')
    program, printed = tmp_path / "program.py", tmp_path / "printed.txt"
    program.write_text(FRESH + imports + CHECK)
    code = torch_loaded.start([program], folder=tmp_path, out=printed).wait(200)
    assert code == 0, printed.read_text()


def test_a_transformers_that_we_do_not_fit_is_still_importable(tmp_path, monkeypatch):
    def register(auto):
        from transformers import NoSuchName  # noqa: F401

    (tmp_path / "toy_auto.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(deferred, "_ACTS", {})
    monkeypatch.setattr(registration, "_AFTER", {"toy_auto": register})
    registration.register_with_transformers()
    with pytest.warns(UserWarning, match=r"will not load CRATE .*NoSuchName.*pip install 'crate-graph\[hf\]'"):
        assert importlib.import_module("toy_auto").value == 1
