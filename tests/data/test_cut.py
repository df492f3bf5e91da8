"""`shards make --unlabelled`, `--patch` and `--samples`."""

import argparse
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from crate_graph.data.commands import add_parser
from crate_graph.data.dataset import open_dataset
from crate_graph.data.index import read_index, sha256_of
from crate_graph.data.make import make_shards
from crate_graph.errors import UserError


def run(*words):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args([str(word) for word in words])
    return args.run(args)


@pytest.fixture
def photographs(tmp_path, picture):
    """Nested and flat: 12 x 20, 17 x 13 and 30 x 10 pixels."""
    folder = tmp_path / "photographs"
    for number, (name, size) in enumerate({"a.png": (12, 20), "x/b.png": (17, 13), "x/y/c.1.png": (30, 10)}.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, size))
    (folder / "SOURCE.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    return folder


def stored(folder, split="train"):
    """{key: image bytes} of a split; every label is 0."""
    found = {}
    for shard in open_dataset(folder).split(split).shards:
        index, data = read_index(shard.path), shard.path.read_bytes()
        m = index.compact
        for n, key in enumerate(index.keys):
            assert data[m.label_offset[n] : m.label_offset[n] + m.label_size[n]] == b"0"
            found[key] = data[m.image_offset[n] : m.image_offset[n] + m.image_size[n]]
    return found


def opened(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_all_images_become_samples_with_their_bytes(photographs, tmp_path, capsys):
    assert run("shards", "make", photographs, "--output", tmp_path / "out", "--split", "train", "--unlabelled") == 0
    assert "train: 3 samples in 1 shard," in capsys.readouterr().out
    assert open_dataset(tmp_path / "out").classes == ("photograph",)
    keys = {"a": "a.png", "x/b": "x/b.png", "x/y/c_1": "x/y/c.1.png"}
    assert stored(tmp_path / "out") == {key: (photographs / name).read_bytes() for key, name in keys.items()}


def test_a_tar_of_the_folder_gives_the_same_samples(photographs, tmp_path):
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(photographs, arcname=".")
    for name, source in (("a", tmp_path / "all.tar"), ("b", photographs)):
        make_shards(source, tmp_path / name, split="train", unlabelled=True)
    assert stored(tmp_path / "a") == stored(tmp_path / "b")


def test_the_folder_of_the_split_is_taken_where_there_is_one(photographs, tmp_path):
    make_shards(photographs, tmp_path / "a", split="x", unlabelled=True)
    make_shards(photographs, tmp_path / "b", split="train", source_split="x", unlabelled=True)
    assert stored(tmp_path / "a", "x").keys() == stored(tmp_path / "b").keys() == {"b", "y/c_1"}
    with pytest.raises(UserError, match="no image in a folder 'val'"):
        make_shards(photographs, tmp_path / "c", split="train", source_split="val", unlabelled=True)


@pytest.mark.parametrize("source", ["empty", "labels.txt", "shards"])
def test_unlabelled_is_for_folders_of_images(photographs, tmp_path, source):
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.txt").write_text("a.png 1")
    make_shards(photographs, tmp_path / "shards", split="train", unlabelled=True)
    with pytest.raises(UserError, match=r"no image; name a folder|--unlabelled takes a folder"):
        make_shards(tmp_path / source, tmp_path / "out", split="train", unlabelled=True)
    with pytest.raises(UserError, match="--unlabelled takes a folder"):
        make_shards(photographs, tmp_path / "out", split="train", unlabelled=True, labels=tmp_path / "labels.txt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stride", [None, 3])
def test_patches_are_squares_of_the_pictures_named_by_their_place(photographs, tmp_path, stride):
    make_shards(photographs, tmp_path / "out", split="train", unlabelled=True, patch=6, stride=stride)
    step = stride or 6
    expected = {}
    for key, name in {"a": "a.png", "x/b": "x/b.png", "x/y/c_1": "x/y/c.1.png"}.items():
        whole = opened((photographs / name).read_bytes())
        for row in range(0, whole.shape[0] - 5, step):
            for column in range(0, whole.shape[1] - 5, step):
                expected[f"{key}_{row}_{column}"] = whole[row : row + 6, column : column + 6]
    found = {key: opened(data) for key, data in stored(tmp_path / "out").items()}
    assert found.keys() == expected.keys() and len(found) == (15 if stride is None else 45)
    assert all(np.array_equal(found[key], expected[key]) for key in found)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "dataset.yaml",
        "train-000000.tar",
        "train-000000.tar.index.json",
    }


@pytest.mark.parametrize("patch", [None, 4])
def test_samples_are_chosen_by_the_seed(photographs, tmp_path, patch):
    make_shards(photographs, tmp_path / "all", split="train", unlabelled=True, patch=patch)
    chosen, digests = {}, {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        made = make_shards(
            photographs, tmp_path / name, split="train", unlabelled=True, patch=patch, samples=2, seed=seed
        )
        chosen[name], digests[name] = stored(tmp_path / name), sha256_of(made.shards[0].path)
        assert len(chosen[name]) == 2 and chosen[name].items() <= stored(tmp_path / "all").items()
    assert digests["a"] == digests["b"] and chosen["a"] != chosen["c"]


def test_more_samples_than_there_are_is_all_of_them(photographs, tmp_path):
    words = ("--output", tmp_path / "out", "--split", "train", "--unlabelled", "--samples", 100, "--json")
    assert run("shards", "make", photographs, *words) == 0
    assert len(stored(tmp_path / "out")) == 3


def test_patches_of_a_labelled_source_keep_their_labels(tmp_path, picture):
    for name in ("ant", "bee"):
        (tmp_path / "source" / name).mkdir(parents=True)
        (tmp_path / "source" / name / "0.png").write_bytes(picture(0, (8, 4)))
    made = make_shards(tmp_path / "source", tmp_path / "out", split="train", patch=4)
    assert open_dataset(tmp_path / "out").classes == ("ant", "bee") and made.shards[0].samples == 4
    again = make_shards(tmp_path / "out", tmp_path / "again", split="train", patch=2)
    assert again.shards[0].samples == 16 and open_dataset(tmp_path / "again").classes == ("ant", "bee")


def test_a_grey_picture_gives_grey_patches(tmp_path, picture):
    (tmp_path / "grey").mkdir()
    (tmp_path / "grey" / "a.png").write_bytes(picture(0, (8, 8), channels=1))
    make_shards(tmp_path / "grey", tmp_path / "out", split="train", unlabelled=True, patch=8)
    (data,) = stored(tmp_path / "out").values()
    assert np.array_equal(opened(data), opened(picture(0, (8, 8), channels=1)))
    assert open_dataset(tmp_path / "out").channels == 1


def transparent():
    with io.BytesIO() as file:
        Image.new("RGBA", (20, 20), (1, 2, 3, 4)).save(file, format="PNG")
        return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"'x/b': a picture of 17 x 13 pixels is smaller than a patch of 15; choose a smaller --patch"),
        (b"junk", r"'x/b' cannot be decoded"),
        (transparent(), r"'x/b': some pixels are transparent"),
        ("cut off", r"'x/b' cannot be decoded"),
    ],
    ids=["small", "junk", "transparent", "cut off"],
)
def test_a_picture_that_cannot_be_cut_is_named_and_nothing_is_left(photographs, tmp_path, picture, data, message):
    (photographs / "x/y/c.1.png").unlink()
    (photographs / "a.png").write_bytes(picture(0, (20, 20)))
    if data is not None:
        (photographs / "x/b.png").write_bytes(picture(1, (20, 20))[:-60] if data == "cut off" else data)
    with pytest.raises(UserError, match=message) as error:
        make_shards(photographs, tmp_path / "out", split="train", unlabelled=True, patch=15)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_stride_without_a_patch_is_refused(photographs, tmp_path):
    words = ("--output", tmp_path / "out", "--split", "train", "--unlabelled", "--stride", 3)
    with pytest.raises(UserError, match="--stride 3: .*add --patch"):
        run("shards", "make", photographs, *words)


def test_what_was_made_is_told_as_json(photographs, tmp_path, capsys):
    run("shards", "make", photographs, "--output", tmp_path / "out", "--split", "train", "--unlabelled", "--json")
    assert json.loads(capsys.readouterr().out)["samples"] == 3
