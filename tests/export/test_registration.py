"""transformers learns of our classes whichever is imported first, and is not imported for that."""

from __future__ import annotations

import importlib

import pytest

from crate_graph import deferred
from crate_graph.export.hf import registration

CHECK = """
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
assert AutoConfig.for_model("crate_graph").architecture
assert type(AutoImageProcessor.from_pretrained(".")).__name__ == "CrateImageProcessor"
assert "CrateConfig" in {config.__name__ for config in AutoModelForImageClassification._model_mapping}
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import crate_graph\nassert 'transformers' not in sys.modules\n",
        "from transformers import AutoConfig\nimport crate_graph\n",
        "from transformers import AutoImageProcessor, AutoModelForImageClassification\nimport crate_graph\n",
    ],
    ids=["ours first", "configuration first", "ours last"],
)
def test_order_of_imports(imports, run_fresh, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "CrateImageProcessor"}')
    run_fresh(imports + CHECK)


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
