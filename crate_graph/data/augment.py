"""What the model sees of a picture: the random view for training, the fixed view for evaluation.

Randomness is keyed, never drawn from a running generator: a view by (seed, epoch, sample), a mixture by (seed, epoch,
step, slot). So the pixels do not depend on who reads a sample, nor on what was read before.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from crate_graph.config.schema import EvalTransform, TrainTransform
from crate_graph.errors import UserError

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Key = tuple[int, ...]


@dataclass(frozen=True)
class Normalize:
    """Pixels 0..255 to (x / 255 - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: np.ndarray) -> torch.Tensor:
        """(n, H, W, C) uint8 -> (n, C, H, W) float32."""
        images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C"))
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        return images.div_(255).sub_(mean).div_(std)


class TrainView:
    """Random views of training images.

    `size`: side of the square; `shape`: (H, W, C) of a view; `mixes`: whether targets become distributions.
    """

    def __init__(
        self, config: TrainTransform, *, mean: Sequence[float], std: Sequence[float], channels: int, num_classes: int
    ):
        self.size = config.size
        self.shape = (config.size, config.size, channels)
        self.num_classes = num_classes
        self.mixes = bool(config.mixup or config.cutmix)
        self._config = config
        self._normalize = Normalize(tuple(mean), tuple(std))
        self._crop = {
            "random_resized": self._random_resized,
            "pad_and_crop": self._pad_and_crop,
            "center": self._center,
            "none": self._resize,
        }[config.crop]
        self._rand_augment = self._erase = self._mixup = None
        if config.rand_augment:
            fill = tuple(round(255 * value) for value in mean)
            self._rand_augment = _rand_augment(config.rand_augment, fill if channels == 3 else fill[0])
        if config.random_erasing:
            from timm.data.random_erasing import RandomErasing

            self._erase = RandomErasing(config.random_erasing, mode="pixel", device="cpu")
        if self.mixes:
            from timm.data import Mixup

            self._mixup = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                switch_prob=config.mixup_switch,
                label_smoothing=0.0,
                num_classes=num_classes,
            )

    def view(self, image: Image.Image, key: Key) -> np.ndarray:
        """The view of one picture that belongs to `key`: (size, size, C) uint8."""
        generator = random.Random(keyed_number(key))
        image = self._crop(image, generator)
        flip = generator.random() < self._config.horizontal_flip
        if self._rand_augment is not None:
            if flip:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            with keyed_globals((*key, 1)):
                image = self._rand_augment(image)
            return as_array(image)
        pixels = as_array(image)
        return pixels[:, ::-1] if flip else pixels

    def batch(
        self, pixels: np.ndarray, labels: np.ndarray, keys: Sequence[Key], slots: Sequence[Key]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of equally many samples of each slot -> images (n, C, H, W); targets (n,), or (n, classes) if mixed."""
        images, targets = self.finish(pixels, keys), torch.from_numpy(labels)
        if not self.mixes:
            return images, targets
        share = len(labels) // len(slots)
        pieces = zip(images.split(share), targets.split(share), slots, strict=True)
        return images, torch.cat([self.mix(*piece)[1] for piece in pieces])

    def finish(self, pixels: np.ndarray, keys: Sequence[Key]) -> torch.Tensor:
        """Normalise views and, where the recipe says so, erase a part: (n, H, W, C) uint8 -> (n, C, H, W) float32."""
        images = self._normalize(pixels)
        if self._erase is not None:
            for image, key in zip(images, keys, strict=True):
                with keyed_globals((*key, 2)):
                    self._erase(image)
        return images

    def mix(self, images: torch.Tensor, targets: torch.Tensor, key: Key) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix the samples that one slot gives to one step, in place; targets become (n, classes) float32.

        mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899), by timm. Label smoothing is the task's business.
        """
        with keyed_globals(key):
            return self._mixup(images, targets)

    def _random_resized(self, image: Image.Image, generator: random.Random) -> Image.Image:
        """Crop of random area and aspect ratio, resized (the rule of torchvision's RandomResizedCrop)."""
        left, top, width, height = random_box(image.size, self._config.scale, self._config.ratio, generator)
        return self._resize(image.crop((left, top, left + width, top + height)))

    def _pad_and_crop(self, image: Image.Image, generator: random.Random) -> Image.Image:
        """Pad with black by `padding` on each side and crop a square of `size` at random."""
        image = self._resize(image)
        top = int(generator.random() * (2 * self._config.padding + 1)) - self._config.padding
        left = int(generator.random() * (2 * self._config.padding + 1)) - self._config.padding
        return image.crop((left, top, left + self.size, top + self.size))  # what lies outside comes out black

    def _center(self, image: Image.Image, generator: random.Random) -> Image.Image:
        return center_crop(resize_shorter(image, self.size, RESAMPLING[self._config.interpolation]), self.size)

    def _resize(self, image: Image.Image, generator: random.Random | None = None) -> Image.Image:
        if image.size == (self.size, self.size):
            return image
        return image.resize((self.size, self.size), RESAMPLING[self._config.interpolation])


class EvalView:
    """The fixed view: shorter side to `resize`, then the central square of `size`. The key is not used."""

    mixes = False

    def __init__(self, config: EvalTransform, *, mean: Sequence[float], std: Sequence[float], num_classes: int):
        self.size = config.size
        self.shape = (config.size, config.size, len(mean))
        self.num_classes = num_classes
        self._config = config
        self._resampling = RESAMPLING[config.interpolation]
        self._normalize = Normalize(tuple(mean), tuple(std))

    def view(self, image: Image.Image, key: Key) -> np.ndarray:
        """(size, size, C) uint8."""
        if self._config.resize is None:
            if image.size != (self.size, self.size):
                image = image.resize((self.size, self.size), self._resampling)
            return as_array(image)
        return as_array(center_crop(resize_shorter(image, self._config.resize, self._resampling), self.size))

    def batch(
        self, pixels: np.ndarray, labels: np.ndarray, keys: Sequence[Key], slots: Sequence[Key]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (n, C, H, W) and targets (n,) int64."""
        return self.finish(pixels, keys), torch.from_numpy(labels)

    def finish(self, pixels: np.ndarray, keys: Sequence[Key]) -> torch.Tensor:
        """(n, H, W, C) uint8 -> (n, C, H, W) float32, normalised."""
        return self._normalize(pixels)


def build_train_transform(
    config: TrainTransform, *, mean: Sequence[float], std: Sequence[float], channels: int, num_classes: int
) -> TrainView:
    return TrainView(config, mean=mean, std=std, channels=channels, num_classes=num_classes)


def build_eval_transform(
    config: EvalTransform, *, mean: Sequence[float], std: Sequence[float], channels: int, num_classes: int
) -> EvalView:
    return EvalView(config, mean=mean, std=std, num_classes=num_classes)


def _rand_augment(notation: str, fill: tuple[int, ...] | int):
    """timm's RandAugment. Raises UserError where timm would refuse a part of `notation`, or pass over it in silence."""
    from timm.data import rand_augment_transform

    try:
        if not re.fullmatch(r"rand(-((m|n|mmax|inc)\d+|(mstd|p)\d+(\.\d+)?|t(weights|3aw?)))*", notation, re.ASCII):
            raise ValueError(notation)
        return rand_augment_transform(notation, {"img_mean": fill})
    except (ValueError, AssertionError):
        raise UserError(
            f"data.train_transform.rand_augment={notation!r}: not timm's notation; write rand, then parts like -m9, "
            f"-n2, -mstd0.5, -inc1, -p0.5, for instance rand-m9-n2-mstd0.5"
        ) from None


def random_box(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], generator: random.Random
) -> tuple[int, int, int, int]:
    """(left, top, width, height): area uniform in `scale` of the image, log aspect ratio uniform, ten tries.

    After ten tries that do not fit, the largest central box whose ratio is allowed (torchvision's RandomResizedCrop).
    """
    width, height = size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * generator.random())
        aspect = math.exp(low + (high - low) * generator.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(generator.random() * (width - w + 1)), int(generator.random() * (height - h + 1)), w, h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (width - w) // 2, (height - h) // 2, w, h


def resize_shorter(image: Image.Image, side: int, resampling: Image.Resampling) -> Image.Image:
    """Resize so that the shorter side is `side`, keeping the aspect ratio."""
    width, height = image.size
    short = min(width, height)
    if short == side:
        return image
    return image.resize((side * width // short, side * height // short), resampling)


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """The central square of `side`; what lies outside the image comes out black."""
    width, height = image.size
    if (width, height) == (side, side):
        return image
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def as_array(image: Image.Image) -> np.ndarray:
    """(H, W, C) uint8 of a grey or RGB picture."""
    width, height = image.size
    return np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(height, width, -1)


@contextmanager
def keyed_globals(key: Key) -> Iterator[None]:
    """Seed the global generators (random, numpy, torch) by `key`, and put them back as they were: timm draws there."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    number = keyed_number(key)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number % 2**63)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(torch_state)


def keyed_generator(key: Key) -> np.random.Generator:
    """A generator of NumPy that draws the same for the same key, whatever was drawn before."""
    return np.random.Generator(np.random.Philox(key=keyed_number(key)))


def keyed_number(key: Key) -> int:
    """One whole number for a key, by splitmix64's mixing: keys that differ by one share no pattern."""
    state = 0
    for part in (len(key), *key):
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state
