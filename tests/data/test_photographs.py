import io

import numpy as np
import pytest
import torch
from PIL import Image

from crate_graph.config.schema import Degradation
from crate_graph.data.decode import Damaged, decode_image, decode_photograph
from crate_graph.data.degrade import luma, unpack
from crate_graph.data.photographs import FolderPictures, SplitPictures, WholeImages, open_pictures
from crate_graph.errors import UserError

NOISY = Degradation(kind="bayer", phase="any", sigma=(5, 50))


def encoded(image, kind, **options):
    with io.BytesIO() as file:
        image.save(file, format=kind, **options)
        return file.getvalue()


def pixels(size=(9, 11, 3), kind=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(kind).max, size, dtype=kind, endpoint=True)


@pytest.fixture
def folder(tmp_path, picture):
    """Five pictures of different sizes, at different depths, beside what is none."""
    names = ["a.png", "b/c.PNG", "b/d/e.bmp", "f.tiff", "g.png"]
    for number, name in enumerate(names):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, (12 + number, 9), kind={"bmp": "BMP", "iff": "TIFF"}.get(name[-3:], "PNG")))
    for name in (".hidden.png", ".cache/x.png", "notes.txt"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no picture")
    return tmp_path / "pictures"


def test_pictures_of_a_folder_come_by_name_and_exactly(folder, picture):
    pictures = open_pictures(folder, "test")
    assert [pictures.key(number) for number in range(pictures.samples)] == [
        "a.png",
        "b/c.PNG",
        "b/d/e.bmp",
        "f.tiff",
        "g.png",
    ]
    assert pictures.name == "pictures"
    for number in range(5):
        values = pictures.read(number)
        expected = np.asarray(Image.open(io.BytesIO(picture(number, (12 + number, 9)))))
        assert values.shape == (9, 12 + number, 3) and values.dtype == np.float32
        assert np.array_equal(np.rint(values * 255), expected)


def test_one_picture_is_a_folder_of_one(folder):
    pictures = open_pictures(folder / "b" / "c.PNG", "test")
    assert pictures.samples == 1 and pictures.key(0) == "c.PNG" and pictures.read(0).shape == (9, 13, 3)


def test_a_folder_without_a_picture_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=rf"{tmp_path}: no image in it"):
        open_pictures(tmp_path, "test")


def test_a_file_that_cannot_be_decoded_is_named(folder):
    (folder / "b" / "c.PNG").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"b/c\.PNG: cannot be read \(unknown image format\)"):
        open_pictures(folder, "test").read(1)


def test_a_data_set_gives_the_pictures_of_its_split(make_dataset, picture, tmp_path):
    make_dataset((3, 2))
    pictures = open_pictures(tmp_path, "train")
    assert isinstance(pictures, SplitPictures) and (pictures.name, pictures.samples) == ("train", 5)
    assert pictures.key(3) == "s0003" and len(pictures.shards) == 2
    expected = np.asarray(Image.open(io.BytesIO(picture(3))))
    assert np.array_equal(np.rint(pictures.read(3) * 255), expected)
    pictures.close()
    with pytest.raises(UserError, match="has no split 'val'"):
        open_pictures(tmp_path, "val")


def test_a_shipped_name_is_the_data_set_whatever_folders_are_called(tmp_path, monkeypatch):
    (tmp_path / "photo_crops").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_pictures("photo_crops", "test").samples == 8
    with pytest.raises(UserError, match="neither shipped nor a folder"):
        open_pictures("photo_crop", "test")


def test_a_batch_is_one_degraded_picture(folder):
    loader = WholeImages(open_pictures(folder, "test"), Degradation(kind="decimate"))
    batches = list(loader.epoch(0))
    assert loader.steps() == len(batches) == loader.split.samples == 5
    for number, batch in enumerate(batches):
        clean = torch.from_numpy(loader.split.read(number)).permute(2, 0, 1)[None]
        observed, mask, sigma = unpack(batch.images)
        assert torch.equal(batch.targets, clean) and torch.equal(observed, clean * mask) and sigma.tolist() == [0]
        assert mask[..., ::2, ::2].all() and mask.sum() == mask[..., ::2, ::2].sum()
        assert batch.samples.tolist() == [number] and batch.weights.tolist() == [1] and not batch.damaged
    assert len(list(loader.epoch(0, start=3))) == 2


def test_luma_has_one_channel(folder):
    loader = WholeImages(open_pictures(folder, "test"), Degradation(kind="none", sigma=10), "y")
    batch = next(loader.epoch(0))
    assert batch.images.shape == (1, 3, 9, 12)
    assert np.array_equal(batch.targets[0, 0], luma(loader.split.read(0))[..., 0])


def test_degradations_repeat_and_do_not_depend_on_the_ranks(folder):
    pictures = open_pictures(folder, "test")
    alone = [batch.images for batch in WholeImages(pictures, NOISY, seed=1).epoch(0)]
    ranks = [list(WholeImages(pictures, NOISY, seed=1, rank=rank, world=3).epoch(5)) for rank in range(3)]
    assert [len(batches) for batches in ranks] == [2, 2, 2]
    for batch in (batch for batches in ranks for batch in batches):
        number = int(batch.samples)
        if number < 0:
            assert (
                batch.weights.tolist() == [0] and torch.isfinite(batch.images).all() and min(batch.images.shape[2:]) > 4
            )
        else:
            assert batch.weights.tolist() == [1] and torch.equal(batch.images, alone[number])
    seen = [int(batch.samples) for batches in ranks for batch in batches]
    assert sorted(seen) == [-1, 0, 1, 2, 3, 4]
    assert not torch.equal(next(WholeImages(pictures, NOISY, seed=2).epoch(0)).images, alone[0])


def test_a_damaged_sample_weighs_nothing_and_is_told(make_dataset):
    dataset = make_dataset((3, 2), change=lambda n, m: {**m, "png": b"junk"} if n == 3 else m)
    loader = WholeImages(SplitPictures(dataset, "train"), NOISY)
    batches = list(loader.epoch(0))
    loader.close()
    assert [batch.weights.item() for batch in batches] == [1, 1, 1, 0, 1]
    assert [batch.damaged for batch in batches if batch.damaged] == [
        [("train-000001.tar", "s0003", "unknown image format")]
    ]


GREY16 = pixels((9, 11), np.uint16)
COLOUR = Image.fromarray(pixels())


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(GREY16), "PNG"),
        encoded(Image.fromarray(GREY16), "TIFF"),
        encoded(Image.fromarray(GREY16.astype(">u2")), "TIFF"),
        encoded(Image.fromarray(GREY16), "PPM"),
    ],
    ids=["PNG", "TIFF", "TIFF of big endian", "PGM"],
)
def test_grey_of_16_bits_is_read_in_full(data):
    expected = np.repeat(GREY16[..., None].astype(np.float32) / 65535, 3, axis=2)
    assert np.array_equal(decode_photograph(data, "it"), expected)
    assert np.array_equal(decode_image(data, 1), GREY16 >> 8)


@pytest.mark.parametrize(
    ("data", "exact"),
    [
        (encoded(COLOUR.quantize(256), "PNG"), COLOUR.quantize(256).convert("RGB")),
        (encoded(COLOUR.convert("RGBA"), "PNG"), COLOUR),
        (encoded(COLOUR.convert("L"), "PNG"), COLOUR.convert("L").convert("RGB")),
        (encoded(COLOUR.convert("LA"), "PNG"), COLOUR.convert("L").convert("RGB")),
        (encoded(COLOUR.convert("1"), "PNG"), COLOUR.convert("1").convert("RGB")),
        (encoded(COLOUR, "WEBP", lossless=True), COLOUR),
    ],
    ids=["palette", "opaque", "grey", "opaque grey", "bits", "WebP"],
)
def test_what_is_turned_into_rgb(data, exact):
    assert np.array_equal(np.rint(255 * decode_photograph(data, "it")), np.asarray(exact))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (encoded(COLOUR.convert("CMYK"), "TIFF"), "it: its colours are CMYK"),
        (encoded(COLOUR, "TIFF", save_all=True, append_images=[COLOUR]), "it: holds 2 pictures"),
        (encoded(COLOUR, "PNG", save_all=True, append_images=[COLOUR.convert("L").convert("RGB")]), "holds 2 pictures"),
    ],
    ids=["CMYK", "pages", "animation"],
)
def test_what_restore_refuses_is_refused_here(data, says):
    with pytest.raises(UserError, match=says):
        decode_photograph(data, "it")


def test_a_telephones_preview_is_no_second_picture():
    data = encoded(COLOUR, "MPO", save_all=True, append_images=[COLOUR.resize((8, 6))])
    assert decode_photograph(data, "it").shape == (*COLOUR.size[::-1], 3)


def half_transparent():
    image = COLOUR.convert("RGBA")
    image.putpixel((3, 4), (1, 2, 3, 254))
    return image


@pytest.mark.parametrize(
    "data",
    [
        encoded(half_transparent(), "PNG"),
        encoded(half_transparent().convert("LA"), "PNG"),
        encoded(COLOUR.quantize(4), "PNG", transparency=2),
    ],
    ids=["RGBA", "LA", "palette"],
)
def test_transparent_pixels_are_refused_by_name(data):
    with pytest.raises(UserError, match=r"^photo\.png: some pixels are transparent; flatten"):
        decode_photograph(data, "photo.png")


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        (Image.fromarray(np.ones((5, 5), np.float32)), "F"),
        (Image.fromarray(np.ones((5, 5), np.int32)), "I"),
        (COLOUR.convert("LAB"), "LAB"),
    ],
    ids=["float", "32 bits", "Lab"],
)
def test_pixels_without_a_range_are_damage(image, mode):
    data = encoded(image, "TIFF")
    for decode in (lambda: decode_photograph(data, "it"), lambda: decode_image(data, 3)):
        with pytest.raises(Damaged, match=f"pixels of type {mode}, which have no known range"):
            decode()


def test_a_file_that_is_gone_is_named(folder):
    pictures = FolderPictures(folder)
    (folder / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png: cannot be read \(No such file or directory\)"):
        pictures.read(0)
