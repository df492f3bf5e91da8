import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from crate_graph.config.schema import EvalTransform, TrainTransform
from crate_graph.data.augment import build_eval_transform, build_train_transform, random_box
from crate_graph.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(width=50, height=37, mode="RGB"):
    channels = 3 if mode == "RGB" else 1
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


def train(mean=MEAN, std=STD, **config):
    config = TrainTransform(**{"size": 16, **config})
    return build_train_transform(config, mean=mean, std=std, channels=len(mean), num_classes=4)


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (32, 32), (20, 64)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", [20, None])
def test_eval_view_is_torchvisions(size, interpolation, resize):
    image, mode = picture(*size), v2.InterpolationMode(interpolation)
    geometry = [v2.Resize(resize, mode), v2.CenterCrop(16)] if resize else [v2.Resize((16, 16), mode)]
    reference = v2.Compose([*geometry, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    view = build_eval_transform(
        EvalTransform(size=16, resize=resize, interpolation=interpolation),
        mean=MEAN,
        std=STD,
        channels=3,
        num_classes=4,
    )
    torch.testing.assert_close(view.finish(view.view(image, ())[None], [()])[0], reference(image))


def test_random_resized_is_torchvisions_resized_crop():
    image, view = picture(), train(horizontal_flip=0)
    for sample in range(20):
        left, top, width, height = random_box(image.size, (0.08, 1), (3 / 4, 4 / 3), _generator((0, 0, sample)))
        expected = v2.functional.resized_crop(image, top, left, height, width, [16, 16], v2.InterpolationMode.BICUBIC)
        assert np.array_equal(view.view(image, (0, 0, sample)), np.asarray(expected))


def _generator(key):
    from crate_graph.data.augment import keyed_number

    return random.Random(keyed_number(key))


def test_boxes_have_the_stated_area_and_ratio():
    generator = random.Random(0)
    boxes = [random_box((400, 300), (0.2, 0.6), (0.5, 2.0), generator) for _ in range(2000)]
    assert all(x >= 0 and y >= 0 and x + w <= 400 and y + h <= 300 for x, y, w, h in boxes)
    area = np.array([w * h / 120_000 for _, _, w, h in boxes])
    ratio = np.array([w / h for _, _, w, h in boxes])
    assert 0.19 < area.min() < 0.22 and 0.57 < area.max() < 0.61
    assert 0.49 < ratio.min() < 0.55 and 1.8 < ratio.max() < 2.02
    assert random_box((400, 4), (0.9, 1.0), (0.75, 4 / 3), generator) == (197, 0, 5, 4)  # nothing fits: the central box


def test_pad_and_crop_shifts_by_at_most_the_padding():
    image, view = picture(16, 16, "L"), train((0.5,), (0.5,), crop="pad_and_crop", padding=2, horizontal_flip=0)
    canvas = np.zeros((20, 20), np.uint8)
    canvas[2:18, 2:18] = np.asarray(image)
    shifts = [canvas[y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
    seen = set()
    for sample in range(300):
        pixels = view.view(image, (0, 0, sample))[..., 0]
        (at,) = (n for n, shift in enumerate(shifts) if np.array_equal(shift, pixels))
        seen.add(at)
    assert len(seen) == 25


def test_flip_happens_as_often_as_asked():
    image = picture(16, 16)
    for chance, low, high in ((0.0, 0, 0), (0.5, 120, 180), (1.0, 300, 300)):
        view = train(crop="none", horizontal_flip=chance)
        flipped = sum(np.array_equal(view.view(image, (0, 0, n)), np.asarray(image)[:, ::-1]) for n in range(300))
        assert low <= flipped <= high


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"crop": "pad_and_crop"},
        {"crop": "center"},
        {"rand_augment": "rand-m9-n2-mstd0.5"},
        {"random_erasing": 1.0, "crop": "none", "horizontal_flip": 0.0},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_depend_on_the_key_alone(config, mode):
    image = picture(mode=mode)
    view = train(*((MEAN, STD) if mode == "RGB" else ((0.5,), (0.5,))), **config)

    def pixels(key):
        return view.finish(view.view(image, key)[None], [key])

    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first = pixels((0, 1, 7))
    assert torch.equal(pixels((0, 1, 7)), first)
    assert state == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert first.shape == (1, 3 if mode == "RGB" else 1, 16, 16) and first.dtype == torch.float32
    if config.get("crop") != "center":
        others = [pixels(key) for key in ((0, 1, 8), (0, 2, 7), (1, 1, 7), (0, 1, 9), (5, 1, 7))]
        differ = [not torch.equal(first, other) for other in others]
        assert all(differ) if "random_erasing" in config else any(differ)


@pytest.mark.parametrize("config", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixtures_keep_the_mass_of_the_targets(config):
    view, images = train(**config), torch.rand(4, 3, 16, 16)
    mixed, targets = view.mix(images.clone(), torch.tensor([0, 1, 2, 3]), (0, 0, 3, 1))
    again, _ = view.mix(images.clone(), torch.tensor([0, 1, 2, 3]), (0, 0, 3, 1))
    other, _ = view.mix(images.clone(), torch.tensor([0, 1, 2, 3]), (0, 0, 3, 2))
    assert torch.equal(mixed, again) and not torch.equal(mixed, other)
    assert targets.shape == (4, 4) and torch.allclose(targets.sum(1), torch.ones(4))
    if "mixup" in config and "cutmix" not in config:
        weight = targets[0, 0]
        torch.testing.assert_close(mixed[0], weight * images[0] + (1 - weight) * images[3])


@pytest.mark.parametrize(
    "notation",
    ["rand-m9-n2-mstd0.5", "rand", "rand-m9-mstd0.5-inc1", "rand-m15-mmax20-n3-p0.5", "rand-m9-tweights", "rand-t3a"],
)
def test_the_notation_of_rand_augment(notation):
    assert train(rand_augment=notation).view(picture(), (0, 0, 1)).shape == (16, 16, 3)


@pytest.mark.parametrize(
    "notation",
    ["m9", "augmix-m5", "rand_m9", "rand-m", "rand-mx", "rand-m9.5", "rand-m9x", "rand-q3", "rand-m9-", "rand-m-9"]
    + ["rand-mstdinf", "rand-w0", "rand-tnothing", "Rand-m9", "rand-m9\n", "rand-m²"],
)
def test_what_is_not_the_notation_of_rand_augment(notation):
    with pytest.raises(UserError, match=r"data\.train_transform\.rand_augment=.*rand-m9-n2-mstd0\.5"):
        train(rand_augment=notation)
