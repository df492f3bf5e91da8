"""What is written into the run folder is JSON, also of a run that went wrong."""

import json

from crate_graph.train.run_folder import write_json


def test_numbers_that_are_not_finite_become_null(tmp_path):
    value = {"loss": float("inf"), "metrics": {"psnr": float("nan"), "ssim": 0.5}, "steps": [1, float("-inf")]}
    write_json(tmp_path / "summary.json", value)
    text = (tmp_path / "summary.json").read_text()
    assert "Infinity" not in text and "NaN" not in text
    assert json.loads(text) == {"loss": None, "metrics": {"psnr": None, "ssim": 0.5}, "steps": [1, None]}
