import pytest

from crate_graph.data.decode import Damaged
from crate_graph.data.stream import SampleReader
from crate_graph.errors import UserError


@pytest.fixture
def reader(make_dataset):
    opened = []

    def make(*arguments, **change):
        dataset = make_dataset(*arguments, **change)
        opened.append(SampleReader(dataset, dataset.split("train")))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def cut_off(damaged, picture, kind="JPEG"):
    """Changes samples: a picture whose second half is missing."""

    def change(n, members):
        if n not in damaged:
            return members
        data = picture(n, (64, 64), kind=kind)
        return {kind.lower(): data[: len(data) // 2], "cls": members["cls"]}

    return change


def test_reads_any_sample_in_any_order(reader, picture):
    import io

    from PIL import Image

    stream = reader((3, 1, 4))
    for n in (7, 0, 3, 4, 2, 7):
        image, label = stream.read(n)
        assert label == n % 5 and stream.key(n) == f"s{n:04d}"
        assert image.tobytes() == Image.open(io.BytesIO(picture(n))).tobytes()


def test_open_files_are_bounded(reader, monkeypatch):
    monkeypatch.setattr("crate_graph.data.stream.OPEN_FILES", 2)
    stream = reader((1, 1, 1, 1))
    for n in (0, 1, 2, 3, 0, 2):
        assert stream.read(n)[1] == n and len(stream._files) <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_cut_off_image_is_damage(reader, picture, kind):
    stream = reader((4,), change=cut_off({1}, picture, kind))
    with pytest.raises(Damaged):
        stream.read(1)


@pytest.mark.parametrize("label", [b"", b"cat", b"1.5"])
def test_a_label_that_is_no_number_is_damage(reader, label):
    stream = reader((2,), change=lambda n, m: {**m, "cls": label} if n else m)
    with pytest.raises(Damaged, match="no whole number"):
        stream.read(1)


def test_the_next_good_sample_of_the_shard_takes_its_place(reader, picture):
    stream = reader((3, 4), change=cut_off({4, 6}, picture))
    assert [stream.read_or_replace(n)[1] for n in (4, 6)] == [5 % 5, 3 % 5]  # 6 is the last: counted round to 3
    damage = stream.read_or_replace(4)[2]
    assert damage.shard == "train-000001.tar" and damage.key == "s0004" and damage.reason
    assert stream.read_or_replace(5)[2] is None


def test_a_shard_of_damage_is_an_error(reader, picture):
    stream = reader((2, 3), change=cut_off({2, 3, 4}, picture))
    with pytest.raises(UserError, match=r"train-000001\.tar: 3 samples in a row.*'s0003'"):
        stream.read_or_replace(3)


@pytest.mark.parametrize("label", [b"5", b"-1"])
def test_a_label_outside_the_classes_stops(reader, label):
    stream = reader((3,), change=lambda n, m: {**m, "cls": label} if n == 2 else m)
    with pytest.raises(UserError, match=rf"train-000000\.tar: sample 's0002' has label {label.decode()}.*5 classes"):
        stream.read_or_replace(2)


def test_a_shard_changed_after_opening_is_an_error(reader, make_dataset):
    stream = reader((3, 3))
    path = stream._split.shards[1].path
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"bytes, but its index says"):
        stream.read(4)


def test_a_shard_cut_while_it_is_open_is_an_error(reader):
    stream = reader((3, 3))
    stream.read(3)
    path = stream._split.shards[1].path
    with path.open("r+b") as file:
        file.truncate(1024)
    with pytest.raises(UserError, match=r"train-000001\.tar: the shard ends before byte"):
        stream.read(5)


@pytest.mark.parametrize(("mode", "channels"), [("P", 3), ("RGBA", 3), ("L", 3), ("CMYK", 3), ("RGB", 1), ("I;16", 1)])
def test_pictures_come_in_the_mode_of_the_data_set(mode, channels):
    import io

    import numpy as np
    from PIL import Image

    from crate_graph.data.decode import MODES, decode_image

    image = Image.fromarray(np.full((4, 4), 128, np.uint8)).convert("RGB")
    image = Image.fromarray(np.full((4, 4), 128 * 256, np.uint16)) if mode == "I;16" else image.convert(mode)
    with io.BytesIO() as file:
        image.save(file, format="TIFF")
        decoded = decode_image(file.getvalue(), channels)
    assert decoded.mode == MODES[channels] and abs(int(np.asarray(decoded).mean()) - 128) <= 1
