import argparse
import errno
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from crate_graph.data.commands import add_parser
from crate_graph.data.dataset import open_dataset
from crate_graph.data.index import build_index, read_index, sha256_of
from crate_graph.data.make import index_shards, make_shards
from crate_graph.data.sources import read_idx
from crate_graph.data.stream import SampleReader
from crate_graph.data.verify import verify_shards
from crate_graph.errors import UserError


def run(*words):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args([str(word) for word in words])
    return args.run(args)


@pytest.fixture
def tree(tmp_path, picture):
    """source/train/{ant,bee}/N.png and source/test/...: 6 + 5 and 2 + 2 pictures."""
    for split, counts in (("train", {"ant": 6, "bee": 5}), ("test", {"ant": 2, "bee": 2})):
        for name, count in counts.items():
            folder = tmp_path / "source" / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                (folder / f"{n}.png").write_bytes(picture(100 * len(name) + n))
    return tmp_path / "source"


def samples(folder, split):
    """{key: (image bytes, label)} of a split, through the index."""
    found = {}
    for shard in open_dataset(folder).split(split).shards:
        index, data = read_index(shard.path), shard.path.read_bytes()
        m = index.compact
        for n, key in enumerate(index.keys):
            image = data[m.image_offset[n] : m.image_offset[n] + m.image_size[n]]
            found[key] = image, int(data[m.label_offset[n] : m.label_offset[n] + m.label_size[n]])
    return found


def test_a_tree_becomes_shards_with_the_same_bytes(tree, tmp_path):
    out = tmp_path / "out"
    for split in ("train", "test"):
        make_shards(tree, out, split=split, shard_samples=4)
    dataset = open_dataset(out)
    assert dataset.classes == ("ant", "bee") and dataset.channels == 3 and dataset.name == "out"
    assert dataset.split("train").shard_samples == [4, 4, 3] and dataset.split("test").samples == 4
    found = samples(out, "train")
    assert len(found) == 11 and list(found) != sorted(found)  # shuffled
    for key, (image, label) in found.items():
        assert image == (tree / "train" / f"{key}.png").read_bytes() and label == key.startswith("bee")
    assert sorted(path.name for path in out.iterdir())[0] == "dataset.yaml"  # no leftover that begins with a dot


def test_the_same_source_gives_the_same_bytes(tree, tmp_path):
    digests = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        made = make_shards(tree, tmp_path / name, split="train", shard_samples=4, seed=seed)
        digests[name] = [sha256_of(shard.path) for shard in made.shards]
        assert digests[name] == [shard.sha256 for shard in made.shards]
    assert digests["a"] == digests["b"] != digests["c"]


@pytest.mark.parametrize("top", ["", "deep/source/"])
def test_a_tar_of_the_tree_gives_the_same_samples(tree, tmp_path, top):
    with tarfile.open(tmp_path / "tree.tar", "w") as tar:
        for folder in sorted(tree.iterdir()):
            tar.add(folder, arcname=top + folder.name)
    make_shards(tmp_path / "tree.tar", tmp_path / "a", split="train")
    make_shards(tree, tmp_path / "b", split="train")
    assert samples(tmp_path / "a", "train") == samples(tmp_path / "b", "train")


def test_a_split_folder_may_have_another_name(tree, tmp_path):
    (tree / "test").rename(tree / "val")
    make_shards(tree, tmp_path / "a", split="test", source_split="val")
    make_shards(tree / "val", tmp_path / "b", split="test")
    assert len(samples(tmp_path / "a", "test")) == 4
    assert samples(tmp_path / "a", "test") == samples(tmp_path / "b", "test")


def test_a_class_that_bears_the_name_of_a_split_is_not_taken_for_it(tree, tmp_path):
    (tree / "test").rename(tree / "val")
    (tree / "train" / "bee").rename(tree / "train" / "val")
    with tarfile.open(tmp_path / "tree.tar", "w") as tar:  # with entries of its folders, unlike the tree
        tar.add(tree, arcname=".")
    make_shards(tree / "val", tmp_path / "out", split="val")
    for source in (tree, tmp_path / "tree.tar"):
        make_shards(source, tmp_path / f"of_{source.stem}", split="val")
        assert samples(tmp_path / f"of_{source.stem}", "val") == samples(tmp_path / "out", "val")


def test_a_list_of_labels(tree, tmp_path):
    (tmp_path / "labels.txt").write_text("train/ant/0.png zebra\n\ntrain/bee/1.png  yak\ntrain/ant/2.png yak\n")
    make_shards(tree, tmp_path / "out", split="train", labels=tmp_path / "labels.txt")
    labels = {key: label for key, (_, label) in samples(tmp_path / "out", "train").items()}
    assert labels == {"train/ant/0": 1, "train/bee/1": 0, "train/ant/2": 0}


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_idx_files(tmp_path, pack):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 5, 6), dtype=np.uint8)
    labels = np.arange(9, dtype=np.uint8) % 3
    for name, array in (("images", pixels), ("labels", labels)):
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (tmp_path / name).write_bytes(pack(head + array.tobytes()))
    make_shards(tmp_path / "images", tmp_path / "out", split="train", labels=tmp_path / "labels", per_class=2)
    dataset = open_dataset(tmp_path / "out")
    assert dataset.channels == 1 and dataset.num_classes == 3
    reader = SampleReader(dataset, dataset.split("train"))
    for sample in range(6):
        image, label = reader.read(sample)
        original = int(reader.key(sample))
        assert original < 6 and label == labels[original] and np.array_equal(np.asarray(image), pixels[original])
    reader.close()
    with pytest.raises(UserError, match="add --labels"):
        make_shards(tmp_path / "images", tmp_path / "other", split="train")
    with pytest.raises(UserError, match=r"labels of shape \(9, 5, 6\)"):
        make_shards(tmp_path / "images", tmp_path / "other", split="train", labels=tmp_path / "images")
    (tmp_path / "images").write_bytes(pack((head + array.tobytes())[:-1]))
    with pytest.raises(UserError, match="no whole IDX file"):
        make_shards(tmp_path / "images", tmp_path / "other", split="train", labels=tmp_path / "labels")


def test_shards_are_sharded_anew(tree, tmp_path):
    make_shards(tree, tmp_path / "a", split="train", shard_samples=4)
    make_shards(tmp_path / "a", tmp_path / "b", split="train", shards=2, seed=5)
    assert samples(tmp_path / "a", "train") == samples(tmp_path / "b", "train")
    assert open_dataset(tmp_path / "b").classes == ("ant", "bee")
    assert open_dataset(tmp_path / "b").split("train").shard_samples == [6, 5]
    make_shards(tmp_path / "a" / "train-000000.tar", tmp_path / "c", split="train")
    assert len(samples(tmp_path / "c", "train")) == 4


def test_a_shard_with_a_label_that_is_no_number(make_dataset, tmp_path):
    dataset = make_dataset((3,), change=lambda n, m: {**m, "cls": b"cat"} if n == 1 else m)
    with pytest.raises(UserError, match=r"train-000000\.tar: sample 's0001': label b'cat'"):
        make_shards(dataset.root, tmp_path / "out", split="train")


def test_existing_shards_stay_unless_forced(tree, tmp_path):
    out = tmp_path / "out"
    make_shards(tree, out, split="train", shard_samples=2)
    make_shards(tree, out, split="test")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match="shards of 'train' already.*--force"):
        make_shards(tree, out, split="train")
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    make_shards(tree, out, split="train", shard_samples=20, force=True)
    assert open_dataset(out).split("train").shard_samples == [11] and open_dataset(out).split("test").samples == 4
    assert len(list(out.glob("train-*.tar*"))) == 2


def spoil(tree, how, picture):
    train = tree / "train"
    if how == "twice":
        (train / "ant" / "0.jpg").write_bytes(picture(1, kind="JPEG"))
    elif how == "empty":
        (train / "cat").mkdir()
    elif how == "text":
        (train / "cat").mkdir()
        (train / "cat" / "notes.txt").write_text("no image")
    elif how == "none":
        shutil.rmtree(tree)
        tree.mkdir()
    elif how == "junk":
        (train / "bee" / "0.png").write_bytes(b"junk")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("twice", r"two images have the key 'ant/0'"),
        ("empty", "class 'cat' has no image"),
        ("text", "class 'cat' has no image"),
        ("none", "no image in class folders"),
        ("junk", "'bee/0' cannot be decoded"),
    ],
)
def test_a_bad_source_leaves_nothing(tree, tmp_path, picture, how, message):
    spoil(tree, how, picture)
    with pytest.raises(UserError, match=message):
        make_shards(tree, tmp_path / "out", split="train")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("step", ["_write_shard", "write_index", "write_description"])
def test_a_failure_while_writing_leaves_nothing(tree, tmp_path, monkeypatch, step):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"crate_graph.data.make.{step}", fail)
    with pytest.raises(UserError, match="out: the shards cannot be written .No space left on device.; make room"):
        make_shards(tree, tmp_path / "out", split="train", shard_samples=4)
    assert not (tmp_path / "out").exists()


def test_an_index_that_cannot_be_written_leaves_nothing(make_dataset, monkeypatch):
    root = make_dataset((3,)).root
    before = sorted(path.name for path in root.iterdir())

    def fail(path, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(UserError, match="index of train-000000.tar cannot be written .*make room"):
        index_shards([root])
    assert sorted(path.name for path in root.iterdir()) == before


def test_an_output_that_cannot_be_written(tree, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below", "/proc/crate-graph"):
        with pytest.raises(UserError, match=f"^{output}: the folder cannot be made .*--output"):
            make_shards(tree, output, split="train")
    with pytest.raises(UserError, match="^/proc: the shards cannot be written .*--output"):
        make_shards(tree, "/proc", split="train")


@pytest.mark.parametrize(("top", "found"), [("", "test, train"), ("deep/", "test, train"), ("train/", "train")])
def test_splits_are_not_taken_for_classes(tree, tmp_path, top, found):
    source = tmp_path / "other"
    if top == "train/":
        shutil.rmtree(tree / "test")
        tree.rename(source)
    else:
        (source / top).parent.mkdir(exist_ok=True)
        shutil.copytree(tree, source / top)
    with pytest.raises(UserError, match=f"no folder of split 'val', but .* splits {found}; .*--source-split"):
        make_shards(source, tmp_path / "out", split="val")
    make_shards(source, tmp_path / "out", split="val", source_split="train")
    assert open_dataset(tmp_path / "out").classes == ("ant", "bee")


def test_folders_inside_one_class_do_not_make_it_a_split(tree, tmp_path, picture):
    (tree / "train" / "ant" / "red").mkdir()
    (tree / "train" / "ant" / "red" / "0.png").write_bytes(picture(1))
    make_shards(tree / "train", tmp_path / "out", split="val")
    assert open_dataset(tmp_path / "out").classes == ("ant", "bee")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train/ant/0.png 7", "label 7, which is none of the 2 classes"),
        ("train/ant/0.png cat", "label 'cat', which is none"),
        ("train/ant/77.png ant", "line 1: 'train/ant/77.png' is no image"),
        ("train/ant/0.png ²", "label '²', which is none"),
        (f"train/ant/0.png {'9' * 5000}", "label '999.*', which is none"),
        ("", "file of labels is empty"),
    ],
)
def test_bad_labels(tree, tmp_path, line, message):
    (tmp_path / "labels.txt").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        make_shards(
            tree, tmp_path / "out", split="train", labels=tmp_path / "labels.txt", about={"classes": ["ant", "bee"]}
        )


def test_labels_that_cannot_be_read(tree, tmp_path):
    (tmp_path / "latin.txt").write_bytes("train/ant/0.png b\xe9b\xe9\n".encode("latin-1"))
    (tmp_path / "large.txt").write_text("train/ant/0.png 1000000\n")
    for name, message in (
        ("latin.txt", "latin.txt: the labels are not UTF-8"),
        ("source", "source: the labels cannot be read .*name a text file"),
        ("none.txt", "none.txt: there is no such file of labels"),
        ("large.txt", "'train/ant/0' has label 1000000, but a data set has at most 1000000 classes"),
    ):
        with pytest.raises(UserError, match=message):
            make_shards(tree, tmp_path / "out", split="train", labels=tmp_path / name)


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
@pytest.mark.parametrize("content", [b"\0\0\x08\x03\0\0", b"\0\0\x08\x03", b"\0\0\x08\xff", b"\0\0\x08"])
def test_a_short_idx_header(tmp_path, pack, content):
    (tmp_path / "images").write_bytes(pack(content))
    with pytest.raises(UserError, match="no whole IDX file"):
        read_idx(tmp_path / "images")


def test_idx_labels_that_are_a_folder_and_idx_files_that_are_empty_or_broken(tmp_path):
    (tmp_path / "images").write_bytes(b"\0\0\x08\x03" + bytes(12))
    (tmp_path / "labels").write_bytes(b"\0\0\x08\x01" + bytes(4))
    (tmp_path / "broken").write_bytes(gzip.compress((tmp_path / "images").read_bytes())[:12])
    for source, labels, message in (
        ("images", "", "this is a folder; name an IDX file"),
        ("images", "labels", "for images of shape"),
        ("broken", "labels", "broken: the file is cut off"),
    ):
        with pytest.raises(UserError, match=message):
            make_shards(tmp_path / source, tmp_path / "out", split="train", labels=tmp_path / labels)


def test_class_names_must_complete_a_count(tree, tmp_path):
    with pytest.raises(UserError, match="2 class names, but the data set has 3 classes"):
        make_shards(tree, tmp_path / "out", split="train", about={"classes": 3})
    with pytest.raises(UserError, match="need 3 values each"):
        make_shards(tree, tmp_path / "out", split="train", about={"mean": [0.5]})
    with pytest.raises(UserError, match="letters, digits"):
        make_shards(tree, tmp_path / "out", split="../train")
    with pytest.raises(UserError, match="no such source"):
        make_shards(tmp_path / "nowhere", tmp_path / "out", split="train")


def test_the_shards_do_not_go_among_the_pictures(tmp_path, picture):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(picture(0))
    for output in (photos, photos / "shards"):
        with pytest.raises(UserError, match="lies among the pictures"):
            run("shards", "make", photos, "--unlabelled", "--split", "train", "--output", output)
    assert [path.name for path in photos.iterdir()] == ["a.png"]


@pytest.mark.parametrize("mode, says", [("CMYK", "its colours are CMYK"), ("RGBA", "some pixels are transparent")])
def test_a_photograph_that_evaluation_would_refuse_is_refused(tmp_path, mode, says):
    (tmp_path / "photos").mkdir()
    Image.new(mode, (20, 20), (9, 9, 9, 9)).save(tmp_path / "photos" / "odd.tif")
    with pytest.raises(UserError, match=f"sample 'odd': {says}"):
        make_shards(tmp_path / "photos", tmp_path / "shards", split="train", unlabelled=True)
    assert not (tmp_path / "shards").exists()


def test_a_tiff_that_is_not_read_is_named_as_one(tmp_path):
    (tmp_path / "photos").mkdir()
    tifffile.imwrite(tmp_path / "photos" / "odd.tif", np.zeros((20, 20, 3), np.float32), photometric="rgb")
    with pytest.raises(UserError, match="floating-point colour; save it with 8 or 16 bits"):
        make_shards(tmp_path / "photos", tmp_path / "shards", split="train", unlabelled=True)


def test_a_number_for_each_class_where_there_are_none(tree, tmp_path):
    with pytest.raises(UserError, match="--per-class 2: --unlabelled pictures have no classes"):
        make_shards(tree, tmp_path / "out", split="train", unlabelled=True, per_class=2)
    assert not (tmp_path / "out").exists()


def test_two_sizes_of_shards_exclude_each_other(tree, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("shards", "make", tree, "--output", tmp_path, "--split", "train", "--shards", 2, "--shard-samples", 5)
    assert "not allowed with" in capsys.readouterr().err


def test_two_at_once_and_a_kill_in_the_middle(tmp_path, picture):
    """The second is refused while the first is at work; what a killed one leaves is cleared by the next."""
    (tmp_path / "photos").mkdir()
    for n in range(2):
        (tmp_path / "photos" / f"{n}.png").write_bytes(picture(n, (640, 480)))
    output = tmp_path / "shards"
    words = ["make", tmp_path / "photos", "--unlabelled", "--output", output, "--patch", 8]
    command = [sys.executable, "-m", "crate_graph", "shards", *map(str, words), "--split", "train", "--stride", "2"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    while not list(output.glob(".making-*")):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    with pytest.raises(UserError, match="shards are being made in this folder; wait"):
        run("shards", *words, "--split", "test")
    assert first.poll() is None and not (output / "dataset.yaml").exists()
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert list(output.glob(".making-*"))
    assert run("shards", *words, "--split", "train") == 0
    assert {path.name for path in output.iterdir()} == {
        "dataset.yaml",
        *(f"train-00000{n}.{kind}" for n in range(10) for kind in ("tar", "tar.index.json")),
    }


def test_index_shards_finds_the_tars_of_a_folder(make_dataset):
    root = make_dataset((3, 2)).root
    for path in root.glob("*.index.json"):
        path.unlink()
    assert [shard.samples for shard in index_shards([root])] == [3, 2]
    assert open_dataset(root).split("train").samples == 5


def test_verify_finds_what_is_wrong(make_dataset):
    dataset = make_dataset((3, 2, 2, 2), change=lambda n, m: {**m, "png": b"junk"} if n == 3 else m)
    assert not any(report.problems for report in verify_shards(dataset.root))
    paths = [shard.path for shard in dataset.split("train").shards]
    data = bytearray(paths[2].read_bytes())
    data[600] ^= 1  # one bit, inside a member
    paths[2].write_bytes(data)
    paths[3].write_bytes(paths[3].read_bytes()[:-512])
    found = {report.shard: report.problems for report in verify_shards(dataset.root, decode=True)}
    assert found["train-000000.tar"] == ()
    assert found["train-000001.tar"] == ("sample 's0003': unknown image format",)
    assert found["train-000002.tar"] == ("sha256 differs from the index: its bytes changed",)
    assert "bytes, but its index says" in found["train-000003.tar"][0]


def test_verify_finds_an_index_that_lies(make_dataset):
    dataset = make_dataset((3,))
    path = dataset.root / "train-000000.tar.index.json"
    index = build_index(dataset.root / "train-000000.tar")
    path.write_text(path.read_text().replace(f"[{index.members['png']['offset'][0]},", "[512,", 1))
    (report,) = verify_shards(dataset.root)
    assert "does not list the members" in report.problems[0]


def test_verify_counts_against_the_description(make_dataset):
    dataset = make_dataset((3, 2))
    content = yaml.safe_load(dataset.file.read_text())
    content["splits"]["train"]["samples"] = 6
    dataset.file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="have samples 5"):
        verify_shards(dataset.root)


def test_command_line(tree, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("shards", "make", tree, "--output", out, "--split", "train", "--shards", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 11
    assert run("shards", "verify", out, "--decode", "--json") == 0
    assert json.loads(capsys.readouterr().out)["sound"] is True
    assert run("shards", "index", out, "--json") == 0
    assert [shard["samples"] for shard in json.loads(capsys.readouterr().out)] == [6, 5]
    (out / "train-000001.tar").write_bytes(b"")
    assert run("shards", "verify", out) == 2
    assert "train-000001.tar" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["make", "index", "verify"])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        run("shards", command, "--help")
    assert end.value.code == 0 and f"crate-graph shards {command}" in capsys.readouterr().out


def test_the_help_of_verify_tells_its_exit_codes(capsys):
    with pytest.raises(SystemExit):
        run("shards", "verify", "--help")
    assert "0: sound. 2: something is wrong" in capsys.readouterr().out  # as test_command_line finds it


def test_the_shipped_shards_are_sound():
    assert [report.problems for report in verify_shards("fashion_mnist", decode=True)] == [()] * 20
