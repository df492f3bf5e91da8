"""What is written into the run folder is JSON, also of a run that went wrong, and a full disk is named."""

import json

import pytest

from crate_graph.train.metrics_log import MetricsLog
from crate_graph.train.run_folder import write_json


def test_numbers_that_are_not_finite_become_null(tmp_path):
    value = {"loss": float("inf"), "metrics": {"psnr": float("nan"), "ssim": 0.5}, "steps": [1, float("-inf")]}
    write_json(tmp_path / "summary.json", value)
    text = (tmp_path / "summary.json").read_text()
    assert "Infinity" not in text and "NaN" not in text
    assert json.loads(text) == {"loss": None, "metrics": {"psnr": None, "ssim": 0.5}, "steps": [1, None]}


@pytest.mark.parametrize("damage", ['{"step": 2', "[" * 100_000])
def test_a_run_goes_on_from_its_sound_records(damage, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + damage)
    MetricsLog(tmp_path / "metrics.jsonl", None, 1).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_a_full_disk_is_told_with_the_file_and_once(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", None, 0)
    log._file.close()
    log._file = open("/dev/full", "a")  # noqa: SIM115 - closed by the log
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
        log.write(1, {"loss": 2.0})
    log.close()  # what could not be written then does not hide the first message now
