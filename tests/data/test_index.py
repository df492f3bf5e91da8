import gzip
import json

import pytest

from crate_graph.data.index import build_index, index_path, read_index, read_shard, write_index
from crate_graph.errors import UserError


def indexed(path):
    write_index(build_index(path))
    return path


@pytest.fixture
def good(tmp_path, shard, picture):
    path = tmp_path / "a.tar"
    kinds = ("PNG", "JPEG")
    shard(path, [(f"d.x/k{n}", {kinds[n % 2].lower(): picture(n, kind=kinds[n % 2]), "cls": b"1"}) for n in range(4)])
    return indexed(path)


def test_offsets_lead_to_the_members(good, picture):
    index = read_index(good)
    data, members = good.read_bytes(), index.compact
    assert index.keys == [f"d.x/k{n}" for n in range(4)]  # a dot in a folder does not end the key
    for n in range(4):
        start, size = members.image_offset[n], members.image_size[n]
        assert data[start : start + size] == picture(n, kind=("PNG", "JPEG")[n % 2])
        assert data[members.label_offset[n] : members.label_offset[n] + members.label_size[n]] == b"1"
    assert [index.image_name(n) for n in range(4)] == ["png", "jpeg", "png", "jpeg"]


def test_the_grouping_is_webdatasets_own(good):
    from webdataset import WebDataset

    keys = [sample["__key__"] for sample in WebDataset(str(good), shardshuffle=False)]
    assert keys == read_index(good).keys


def test_the_index_is_one_json_document_and_its_first_line_suffices(good):
    document = json.loads(index_path(good).read_text())
    assert document["samples"] == 4 and document["bytes"] == good.stat().st_size
    index_path(good).write_text(index_path(good).read_text().splitlines()[0] + "\nnonsense")
    assert read_shard(good).samples == 4
    with pytest.raises(UserError, match="index is damaged"):
        read_index(good)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("a", {"cls": b"1"})], r"sample 'a' has no image"),
        ([("a", {"png": b"x"})], r"sample 'a' has no label; add a member a.cls"),
        ([("a", {"png": b"x", "jpg": b"x", "cls": b"1"})], r"2 images \(jpg, png\)"),
        ([(k, {"png": b"x", "cls": b"1"}) for k in ("a", "b", "a")], r"'a' do not stand together"),
        ([("a", {"PNG": b"x", "png": b"x", "cls": b"1"})], r"two members .png"),
        ([], "holds no sample"),
    ],
)
def test_a_shard_that_makes_no_samples(tmp_path, shard, samples, message):
    shard(tmp_path / "a.tar", samples)
    with pytest.raises(UserError, match=message) as error:
        build_index(tmp_path / "a.tar")
    assert "a.tar" in str(error.value) and "\n" not in str(error.value)


def test_a_compressed_shard_is_refused(good):
    good.write_bytes(gzip.compress(good.read_bytes()))
    with pytest.raises(UserError, match="compressed.*decompress it"):
        build_index(good)


@pytest.mark.parametrize("keep", [100, 700, 1600, 3000])
def test_a_cut_off_shard_is_refused(good, keep):
    good.write_bytes(good.read_bytes()[:keep])
    with pytest.raises(UserError, match="cut off"):
        build_index(good)
    with pytest.raises(UserError, match=f"has {keep} bytes, but its index says"):
        read_shard(good)


def test_missing_shard_missing_index_foreign_index(good):
    text = index_path(good).read_text()
    for broken in ("", "{}", "[1]", text.replace("crate-graph-index/1", "crate-graph-index/9")):
        index_path(good).write_text(broken)
        with pytest.raises(UserError, match="crate-graph shards index"):
            read_shard(good)
    index_path(good).unlink()
    with pytest.raises(UserError, match=r"no index; make it with: crate-graph shards index .*a\.tar"):
        read_shard(good)
    good.unlink()
    with pytest.raises(UserError, match="the shard is missing"):
        read_shard(good)


def test_the_index_of_another_shard_is_refused(good):
    other = good.with_name("b.tar")
    other.write_bytes(good.read_bytes())
    index_path(other).write_text(index_path(good).read_text())
    with pytest.raises(UserError, match=r"index of another shard, a\.tar.*crate-graph shards index .*b\.tar"):
        read_shard(other)


@pytest.mark.parametrize("field", ["samples", "bytes", "sha256", "shard"])
@pytest.mark.parametrize("value", [None, "x", 1e30, -1, 10**9, [1]])
def test_a_malformed_head_is_refused(good, field, value):
    head, rest = index_path(good).read_text().split("\n", 1)
    head = json.loads(head.removesuffix(",") + "}")
    index_path(good).write_text(json.dumps({**head, field: value})[:-1] + ",\n" + rest)
    if field == "sha256" and value == "x":
        assert read_shard(good).sha256 == "x"  # the bytes are compared by verify, not at each opening
        return
    with pytest.raises(UserError, match="crate-graph shards index") as error:
        read_shard(good)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("offset", ["1", "2", "3", "4"]),
        ("offset", [1e30] * 4),
        ("offset", [512.0] * 4),
        ("offset", [10**30] * 4),
        ("offset", [-2] * 4),
        ("offset", [-1] * 4),
        ("offset", [[512]] * 4),
        ("offset", [512] * 3),
        ("offset", None),
        ("size", [-1] * 4),
        ("size", [10**6] * 4),
        ("size", [2**63 - 1] * 4),
    ],
)
@pytest.mark.parametrize("extension", ["cls", "png"])
def test_malformed_members_are_refused(good, extension, part, value):
    document = json.loads(index_path(good).read_text())
    document["members"][extension][part] = value
    refuse(good, document)


@pytest.mark.parametrize("change", [{"members": None}, {"members": []}, {"members": {"cls": None}}, {"keys": [1] * 4}])
def test_a_malformed_body_is_refused(good, change):
    refuse(good, {**json.loads(index_path(good).read_text()), **change})


def refuse(path, document):
    head = {name: document.pop(name) for name in ("format", "shard", "samples", "bytes", "sha256")}
    index_path(path).write_text(json.dumps(head)[:-1] + ",\n" + json.dumps(document)[1:] + "\n")
    assert read_shard(path).samples == 4
    with pytest.raises(UserError, match="index is damaged; make it again: crate-graph shards index"):
        read_index(path)
