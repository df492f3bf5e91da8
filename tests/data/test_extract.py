"""Samples as files, flat or by class: the bytes of the shard, nothing overwritten, and the way back into shards."""

import io
import json
import os
import resource
import signal
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import yaml
from PIL import Image
from torchvision.datasets import ImageFolder

from crate_graph.cli import main
from crate_graph.data import open_dataset
from crate_graph.data.class_folders import class_folders
from crate_graph.data.extract import extract_samples
from crate_graph.data.index import read_index
from crate_graph.data.make import index_shards, make_shards
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


def contents(shards):
    """(label, bytes of the picture) of each sample of some shards."""
    found = []
    for shard in shards:
        data, at = shard.path.read_bytes(), read_index(shard.path).compact
        members = zip(at.label_offset, at.label_size, at.image_offset, at.image_size, strict=True)
        found += [(int(data[label : label + n]), data[image : image + size]) for label, n, image, size in members]
    return found


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def make_toy(folder, labels, classes, key="{:03d}"):
    """A data set of tiny grey pictures in one shard, in the order of `labels`, also labels that no class has."""
    folder.mkdir()
    with tarfile.open(folder / "train-000000.tar", "w") as tar:
        for number, label in enumerate(labels):
            with io.BytesIO() as file:
                Image.new("L", (2, 2), number).save(file, "png")
                members = {"png": file.getvalue(), "cls": str(label).encode()}
            for extension, data in members.items():
                member = tarfile.TarInfo(f"{key.format(number)}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    index_shards([folder])
    fields = {"name": "toy", "licence": "", "source": "", "channels": 1, "mean": [0.5], "std": [0.5]}
    fields |= {"classes": classes, "splits": {"train": {"shards": "train-*.tar"}}}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(fields))
    return open_dataset(folder)


def test_from_shards_to_class_folders_and_back(tmp_path, capsys):
    """The same labels, class names and bytes come back, and torchvision sees the same classes."""
    tree, shards = tmp_path / "tree", tmp_path / "shards"
    for split, count in (("train", 60), ("test", 25)):
        words = ["--split", split, "--samples", str(count), "--by-class", "--output", str(tree)]
        assert main(["shards", "extract", "fashion_mnist", *words]) == 0
        words = ["--split", split, "--output", str(shards), "--like", "fashion_mnist"]
        assert main(["shards", "make", str(tree), *words]) == 0
    assert main(["shards", "verify", str(shards), "--decode"]) == 0
    original, again = open_dataset("fashion_mnist"), open_dataset(shards)
    assert again.classes == original.classes and again.description.mean == original.description.mean
    for split, count in (("train", 60), ("test", 25)):
        found = Counter(contents(again.split(split).shards))
        assert found.total() == count and found <= Counter(contents(original.split(split).shards))
        per_class = Counter(label for label, _ in found.elements())
        assert len(per_class) == 10 and max(per_class.values()) - min(per_class.values()) <= 1
    seen = ImageFolder(tree / "train")
    assert seen.classes == sorted(["T-shirt_top", *original.classes[1:]]) and len(seen) == 60
    names = class_folders(list(original.classes))
    labels = Counter(names[label] for label, _ in contents(again.split("train").shards))
    assert labels == Counter(seen.classes[label] for label in seen.targets)


def test_without_the_option_a_labelled_set_stays_flat(tmp_path):
    paths = extract_samples(open_dataset("fashion_mnist"), "test", tmp_path / "out", 4)
    assert files(tmp_path / "out") == sorted(path.name for path in paths) and len(paths) == 4


def test_classes_that_are_only_counted_are_numbers_and_come_back_as_such(tmp_path):
    original = make_toy(tmp_path / "a", [*range(12), 11, 3], classes=12)
    extract_samples(original, "train", tmp_path / "tree", by_class=True)
    assert files(tmp_path / "tree")[:3] == ["train/00/000.png", "train/01/001.png", "train/02/002.png"]
    assert len(files(tmp_path / "tree/train/11")) == 2 == len(files(tmp_path / "tree/train/03"))
    for about in ({}, {"classes": 12}):
        made = make_shards(tmp_path / "tree", tmp_path / f"again{len(about)}", split="train", about=about)
        assert sorted(contents(made.shards)) == sorted(contents(original.split("train").shards))
        assert open_dataset(made.file).num_classes == 12
    assert open_dataset(made.file).description.classes == 12
    extract_samples(open_dataset(made.file), "train", tmp_path / "twice", by_class=True)
    assert files(tmp_path / "twice") == files(tmp_path / "tree")


def test_samples_are_dealt_over_the_classes_even_where_they_are_sorted(tmp_path):
    dataset = make_toy(tmp_path / "a", [0, 0, 0, 0, 0, 0, 1, 2, 2, 2], classes=["a", "b", "c"])
    for count, want in ((2, {"a": 1, "b": 1}), (7, {"a": 3, "b": 1, "c": 3}), (99, {"a": 6, "b": 1, "c": 3})):
        paths = extract_samples(dataset, "train", tmp_path / str(count), count, by_class=True)
        assert Counter(path.parent.name for path in paths) == want


@pytest.mark.parametrize(
    ("classes", "want"),
    [
        (["../../up", "..", ".git", "a/b\\c"], ["_._.._up", "__", "_git", "a_b_c"]),
        (["", " ", "x.", "nul\0\n"], ["0__", "1__", "2_x_", "3_nul__"]),
        (["a/b", "a_b", "0_a_b"], ["0_a_b", "1_a_b", "2_0_a_b"]),
        (["Bag", "bag"], ["0_Bag", "1_bag"]),
        (["Ankle boot", "T-shirt/top", "été, 夏"], ["Ankle boot", "T-shirt_top", "été, 夏"]),
        (["夏" * 100, "x"], ["夏" * 66, "x"]),
        (3, ["0", "1", "2"]),
    ],
)
def test_a_class_name_is_one_folder_and_leads_nowhere_else(classes, want):
    assert list(class_folders(classes)) == want


def test_hostile_class_names_and_keys_stay_in_the_folder(tmp_path):
    names = ["../../up", "/etc", ".."]
    dataset = make_toy(tmp_path / "a", [0, 1, 2, 2], classes=names, key="../../{:03d}")
    out = tmp_path / "deep" / "out"
    paths = extract_samples(dataset, "train", out, by_class=True)
    assert all(path.resolve().is_relative_to(out.resolve()) for path in paths) and len(files(tmp_path / "deep")) == 4
    made = make_shards(out, tmp_path / "again", split="train", about={"classes": names})
    assert sorted(contents(made.shards)) == sorted(contents(dataset.split("train").shards))


def test_there_are_no_folders_without_classes(tmp_path, capsys):
    assert main(["shards", "extract", "photo_crops", "--by-class", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "fewer than two classes (photograph)" in error and "leave out --by-class" in error
    assert not (tmp_path / "out").exists()


def test_a_label_that_is_no_class_is_named_and_nothing_is_written(tmp_path):
    dataset = make_toy(tmp_path / "a", [0, 1, 2], classes=2)
    with pytest.raises(UserError, match="sample '002' has label 2, but the data set has 2 classes"):
        extract_samples(dataset, "train", tmp_path / "out", by_class=True)
    assert not (tmp_path / "out").exists()


def test_a_failure_half_way_takes_back_what_was_written(tmp_path, capsys):
    """The second class folder cannot be made: a file is in its place. What was there before stays."""
    out = tmp_path / "out"
    (out / "train").mkdir(parents=True)
    (out / "train" / "b").write_text("mine")
    dataset = make_toy(tmp_path / "a", [0, 0, 1], classes=["a", "b"])
    words = ["--split", "train", "--by-class", "--output", str(out)]
    assert main(["shards", "extract", str(dataset.root), *words]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert files(out) == ["train/b"] and not (out / "train" / "a").exists()
    (out / "train" / "b").unlink()
    assert main(["shards", "extract", str(dataset.root), *words, "--json"]) == 0
    assert sorted(json.loads(capsys.readouterr().out)) == [str(out / name) for name in files(out)]
    assert main(["shards", "extract", str(dataset.root), *words]) == 2
    assert "exists already" in capsys.readouterr().err and len(files(out)) == 3


@pytest.fixture
def ctrl_c():
    """Python's own handler of SIGINT, which is ignored where the suite runs in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("step", ["rename", "mkdir"])
def test_a_signal_right_after_a_step_takes_it_back(step, tmp_path, monkeypatch, ctrl_c):
    """Into a folder that is there already, where the files appear one by one."""
    dataset = make_toy(tmp_path / "a", [0, 1, 1], classes=["a", "b"])
    out = tmp_path / "out" / "train"
    out.mkdir(parents=True)
    real = getattr(Path, step)

    def interrupted(path, *args, **kwargs):
        real(path, *args, **kwargs)
        if (Path(args[0]) if args else path).parent.parent == (out if step == "rename" else out.parent):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Path, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract_samples(dataset, "train", tmp_path / "out", by_class=True)
    assert list((tmp_path / "out").rglob("*")) == [out]


@pytest.mark.parametrize("there", [".", "new", "new/out"])
def test_a_new_folder_appears_in_one_step(there, tmp_path, monkeypatch):
    """Whenever it is killed, no part of the tree looks like the whole."""
    dataset = make_toy(tmp_path / "a", [0, 1, 1], classes=["a", "b"])
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    out, real, steps = tmp_path / "new" / "out", Path.rename, []

    def noted(path, target):
        assert not (out / "train").exists()
        steps.append(target)
        real(path, target)

    monkeypatch.setattr(Path, "rename", noted)
    paths = extract_samples(dataset, "train", out, by_class=True)
    assert steps == [{".": out.parent, "new": out, "new/out": out / "train"}[there]]
    assert [str(path.relative_to(out)) for path in sorted(paths)] == files(out) and len(paths) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "new"]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("", "is empty; name a folder"),
        ("file", "file: is no folder; choose another"),
        ("file/new", "file: is no folder; choose another"),
        ("nowhere", "nowhere: is no folder; choose another"),
        ("loop/new", "loop: is no folder; choose another"),
        ("n" * 256, "(File name too long); choose another"),
        ("/proc/new", "cannot be written (No such file or directory); choose another"),
    ],
)
def test_an_output_that_cannot_be_a_folder(output, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to("absent")
    (tmp_path / "loop").symlink_to("loop")
    assert main(["shards", "extract", "photo_crops", "--samples", "1", "--output", output]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error and "make room" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop", "nowhere"]


def test_a_key_too_long_for_a_file_and_an_output_with_dots(tmp_path):
    dataset = make_toy(tmp_path / "a", [0, 1], classes=2, key="k" * 252 + "{}")
    with pytest.raises(UserError, match="at most 255 bytes; make the shards of pictures with shorter names"):
        extract_samples(dataset, "train", tmp_path / "out")
    paths = extract_samples(open_dataset("photo_crops"), "test", tmp_path / "new" / ".." / "out", 1)
    assert paths[0].parent == tmp_path / "out" and paths[0].is_file() and not (tmp_path / "new").exists()


def test_a_class_folder_that_is_no_utf8_is_refused(tmp_path):
    for name in ("a", "x\udcff"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        Image.new("L", (2, 2)).save(tmp_path / "tree" / name / "1.png")
    with pytest.raises(UserError, match="the class 'x.udcff' is no UTF-8; rename it"):
        make_shards(tmp_path / "tree", tmp_path / "out", split="train")
    assert not (tmp_path / "out").exists()
