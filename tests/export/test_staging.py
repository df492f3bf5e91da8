"""An output appears whole or not at all, and never in the place of what another command wrote meanwhile."""

import resource

import pytest

from crate_graph.errors import UserError
from crate_graph.export import export
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


def test_a_full_disk_is_named(tmp_path):
    """Files may not grow over 1 kB, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError) as raised, staged(tmp_path / "weights") as file:
            file.write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.filename == str(tmp_path / "weights") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("loop", "loop exists already"),
        ("loop/new", "loop/new: cannot be written"),
        ("/proc/new", "/proc/new: cannot be written"),
        ("n" * 250, "File name too long"),
    ],
)
def test_an_output_is_looked_at_before_the_checkpoint(output, said, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=f"{said}.*choose another --output"):
        export("no checkpoint", "safetensors", tmp_path / output)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]
