"""An output appears whole or not at all, and never in the place of what another command wrote meanwhile."""

import pytest

from crate_graph.errors import UserError
from crate_graph.export.staging import staged


def test_a_folder_that_appears_meanwhile_stays(tmp_path):
    output = tmp_path / "report"
    with pytest.raises(UserError, match=f"{output}: has appeared since the start"), staged(output) as folder:
        folder.mkdir()
        (folder / "report.html").write_text("ours")
        output.mkdir()
        (output / "report.html").write_text("theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert (output / "report.html").read_text() == "theirs"


def test_an_empty_folder_is_no_obstacle(tmp_path):
    with staged(tmp_path / "report") as folder:
        folder.mkdir()
        (folder / "report.html").write_text("ours")
        (tmp_path / "report").mkdir()
    assert (tmp_path / "report" / "report.html").read_text() == "ours"
