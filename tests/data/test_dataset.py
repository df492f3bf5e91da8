import re

import pytest
import yaml

from crate_graph.data.dataset import open_dataset, shipped_datasets
from crate_graph.data.index import read_index
from crate_graph.data.stream import SampleReader
from crate_graph.errors import UserError


def edit(dataset, **fields):
    content = yaml.safe_load(dataset.file.read_text())
    split = fields.pop("split", {})
    content.update(fields)
    content["splits"]["train"].update(split)
    dataset.file.write_text(yaml.safe_dump(content))
    return open_dataset(dataset.file)


def test_every_shipped_description_is_valid():
    names = shipped_datasets()
    assert {"fashion_mnist", "imagenet1k", "cifar10", "cifar100", "flowers102", "oxford_pets"} < set(names)
    assert {"photo_crops", "div2k"} <= set(names)
    for name in names:
        dataset = open_dataset(name)
        assert dataset.name == name and (dataset.file.parent / "README.md").is_file()
        assert len(dataset.classes) == dataset.num_classes


def test_fashion_mnist_is_complete():
    dataset = open_dataset("fashion_mnist")
    assert (dataset.split("train").samples, dataset.split("test").samples) == (10_000, 2_000)
    assert dataset.classes[9] == "Ankle boot" and dataset.channels == 1
    assert "Copyright (c) 2017 Zalando SE" in (dataset.file.parent / "README.md").read_text()


def test_photo_crops_is_complete_and_its_photographs_are_attributed():
    dataset = open_dataset("photo_crops")
    assert (dataset.split("train").samples, dataset.split("test").samples) == (193, 8)
    assert dataset.classes == ("photograph",) and dataset.channels == 3
    text = (dataset.file.parent / "README.md").read_text()
    rows = dict(re.findall(r"^\| (\S+) \| (train|test) \| .+ \| CC(?:0 1\.0| BY 4\.0) \|$", text, re.MULTILINE))
    for split, side in (("train", 96), ("test", 256)):
        shards = dataset.split(split).shards
        names = {key.rsplit("_", 2)[0] for shard in shards for key in read_index(shard.path).keys}
        assert names == {name for name, its_split in rows.items() if its_split == split}
        reader = SampleReader(dataset, dataset.split(split))
        pictures = [reader.read(sample)[0] for sample in range(dataset.split(split).samples)]
        reader.close()
        assert {picture.size for picture in pictures} == {(side, side)}
        assert {picture.mode for picture in pictures} == {"RGB"}
    files = list(dataset.file.parent.iterdir())
    assert max(file.stat().st_size for file in files) < 2e6 and sum(file.stat().st_size for file in files) < 5e6


def test_unknown_name_gives_the_nearest():
    with pytest.raises(UserError, match="did you mean fashion_mnist"):
        open_dataset("fashon_mnist")


def test_a_set_without_data_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"data\.root.*image-net\.org"):
        open_dataset("imagenet1k", root=tmp_path).split("train")


def test_split_opens_and_counts(make_dataset):
    split = make_dataset((3, 1, 2)).split("train")
    assert split.shard_samples == [3, 1, 2] and split.first_samples().tolist() == [0, 3, 4]


def test_root_overrides_the_folder(make_dataset, tmp_path):
    dataset = make_dataset((3, 1))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in tmp_path.glob("*.tar*"):
        path.rename(elsewhere / path.name)
    with pytest.raises(UserError, match="train-000000.tar: the shard is missing"):
        dataset.split("train")
    assert open_dataset(dataset.file, root=elsewhere).split("train").samples == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["a", "\ud800"]}, "classes: holds a half of a surrogate pair"),
        ({"name": "\udcff"}, "name: holds a half of a surrogate pair"),
        ({"split": {"samples": 5}}, "have samples 4, but .*dataset.yaml says 5"),
        ({"split": {"bytes": 5}}, "have bytes .* says 5"),
        ({"split": {"sha256": "0"}}, "have sha256"),
        ({"channels": 2}, "channels=2"),
        ({"mean": [0.5]}, "need 3 values each"),
        ({"colour": 1}, "colour: Extra inputs"),
        ({"classes": ["a", "a"]}, "one name"),
        ({"split": {"shards": "test-*.tar"}}, "no shard test-\\*.tar"),
        ({"mean": [0.5, 0.5, float("nan")]}, r"mean\.2: .*finite"),
        ({"std": [0.5, 0.5, float("inf")]}, r"std\.2: .*finite"),
        ({"std": [0.5, 0.5, 1e-7]}, r"std\.2: .*0.000001"),
        ({"classes": 1_000_001}, "classes.*1000000"),
        ({"split": {"shards": "train-{0..3.tar"}}, r"splits\.train\.shards: .*Unbalanced"),
        ({"split": {"shards": "/data/train-*.tar"}}, r"splits\.train\.shards: .*below the folder"),
        ({"split": {"shards": "a**/*.tar"}}, r"splits\.train\.shards: .*below the folder"),
        ({"split": {"shards": "train-{0..1000000000000}.tar"}}, "more than 1000000 shards"),
        ({"split": {"shards": "{0..9999}-{0..9999}.tar"}}, "more than 1000000 shards"),
    ],
)
def test_a_description_that_does_not_fit(make_dataset, change, message):
    dataset = make_dataset((3, 1))
    with pytest.raises(UserError, match=message) as error:
        edit(dataset, **change).split("train")
    assert "\n" not in str(error.value)


def test_missing_split_and_bad_yaml(make_dataset):
    dataset = make_dataset((3,))
    with pytest.raises(UserError, match="has no split 'val'; it has train"):
        dataset.split("val")
    dataset.file.write_bytes("name: fl\xf4rs".encode("latin-1"))
    with pytest.raises(UserError, match=r"dataset\.yaml: the file is not UTF-8"):
        open_dataset(dataset.file)
    dataset.file.write_text("[" * 5000)
    with pytest.raises(UserError, match="brackets inside brackets"):
        open_dataset(dataset.file)
    dataset.file.write_text("name: 2026-19-39")
    with pytest.raises(UserError, match="not YAML"):
        open_dataset(dataset.file)
    dataset.file.write_text("name: [")
    with pytest.raises(UserError, match="not YAML"):
        open_dataset(dataset.file)
    dataset.file.unlink()
    with pytest.raises(UserError, match=r"the folder has no dataset\.yaml"):
        open_dataset(dataset.root)
