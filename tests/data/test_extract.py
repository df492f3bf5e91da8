"""Samples as files: the bytes of the shard, nothing overwritten."""

import resource

import pytest
from PIL import Image

from crate_graph.cli import main
from crate_graph.data import open_dataset
from crate_graph.data.extract import extract_samples
from crate_graph.data.make import make_shards
from crate_graph.data.photographs import FolderPictures, SplitPictures
from crate_graph.errors import UserError


def test_the_files_are_the_pictures_of_the_split(tmp_path):
    dataset = open_dataset("photo_crops")
    paths = extract_samples(dataset, "test", tmp_path / "out", 3)
    assert len(paths) == 3 == len(list((tmp_path / "out").iterdir()))
    split = SplitPictures(dataset, "test")
    for n, path in enumerate(paths):
        assert path.stem == split.key(n)
        assert (FolderPictures(path).read(0) == split.read(n)).all()


def test_all_samples_by_the_command_line(tmp_path, capsys):
    assert main(["shards", "extract", "photo_crops", "--output", str(tmp_path / "all")]) == 0
    assert "8 images" in capsys.readouterr().out
    assert all(Image.open(path).size == (256, 256) for path in (tmp_path / "all").iterdir())


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path):
    dataset = open_dataset("photo_crops")
    second = extract_samples(dataset, "test", tmp_path / "a", 2)[1]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / second.name).write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        extract_samples(dataset, "test", tmp_path / "b", 2)
    assert [path.name for path in (tmp_path / "b").iterdir()] == [second.name]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, capsys):
    """Files may not grow over 20 kB, as if the disk were full in the middle of the first picture."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        code = main(["shards", "extract", "photo_crops", "--output", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2 and "File too large); make room there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_keys_that_would_become_one_file(tmp_path):
    photos = tmp_path / "photos"
    (photos / "a").mkdir(parents=True)
    for name in ("a/b.png", "a_b.png"):
        Image.new("RGB", (20, 20)).save(photos / name)
    made = make_shards(photos, tmp_path / "shards", split="test", unlabelled=True)
    with pytest.raises(UserError, match="a_b.png, since / in a key becomes _"):
        extract_samples(open_dataset(str(made.file.parent)), "test", tmp_path / "out")
    assert not (tmp_path / "out").exists()
