"""The pictures that a model is shown: of its data set's split, or of a folder, with masks of what is in front.

A mask lies beside its picture as NAME.mask.png, or under the same name in a folder `masks`; it is a picture of the same
size, 0 where the background is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crate_graph.analysis.subject import Subject, named_classes
from crate_graph.config.schema import EvalTransform
from crate_graph.data import Dataset, open_dataset
from crate_graph.data.augment import build_eval_transform, center_crop, resize_shorter
from crate_graph.data.class_folders import class_folders
from crate_graph.data.decode import Damaged, decode_image, decode_mask
from crate_graph.data.degrade import luma, observe, pack, unpack
from crate_graph.data.index import IMAGE_EXTENSIONS
from crate_graph.data.photographs import SMALLEST, open_pictures
from crate_graph.data.remote.cache import ShardCache
from crate_graph.data.stream import SampleReader
from crate_graph.errors import UserError
from crate_graph.paths import expanded

_MASKS, _MASK = "masks", ".mask"
Picture = tuple[Path, Path | None]  # with its mask


@dataclass(frozen=True)
class Sample:
    """A picture as it is stored, before any view of it."""

    key: str
    image: Image.Image
    mask: Image.Image | None = None  # L, not 0 in front
    label: str = ""  # the class that its data set says; empty where nothing says it


@dataclass(frozen=True)
class Observation:
    """A picture for a restoration network: observed, mask and clean (1, C, H, W), sigma (1,)."""

    key: str
    observed: Tensor
    mask: Tensor
    sigma: Tensor
    clean: Tensor


def samples_of(subject: Subject, folder: str | None, count: int) -> list[Sample]:
    """Up to `count` pictures for a classifier, spread evenly over a folder or over the split of its recipe.

    Of a folder with subfolders each gives one in turn, under the name SUBFOLDER/NAME, and is the class of its pictures
    where a class of the model has its name.

    Raises:
        UserError: no picture, a mask without its picture or of another size, one that cannot be read; no data set.
    """
    channels = len(subject.mean)
    if folder is not None:
        root = expanded(folder)
        chosen = _spread_over_folders(_with_masks(root), count)
        return [_read(path, mask, channels, root, subject.classes) for path, mask in chosen]
    dataset = _dataset(subject)
    if dataset.channels != channels:
        raise UserError(
            f"{dataset.file}: pictures of {dataset.channels} channels, {subject.name} takes {channels}; name others "
            f"with --images FOLDER"
        )
    reader = SampleReader(dataset, split := dataset.split(subject.split))
    try:
        found = []
        for number in _spread(range(split.samples), count):
            image, label, _ = reader.read_or_replace(number)
            found.append(Sample(reader.key(number), image, label=_name_of(dataset, label)))
        return found
    finally:
        reader.close()


def observations_of(subject: Subject, folder: str | None, count: int, side: int) -> list[Observation]:
    """Up to `count` pictures for a restoration network, likewise, each cut to its central `side` x `side` pixels.

    Raises:
        UserError: no picture, one that cannot be read or is too small for the network; no data set.
    """
    source = folder if folder is not None else subject.dataset
    _check_source(subject, source)
    data = subject.recipe.data if subject.recipe is not None and folder is None else None
    cache = ShardCache(data.cache, data.remote) if data is not None else None
    pictures = open_pictures(source, subject.split, data.root if data is not None else None, cache)
    found = []
    try:
        for number in _spread(range(pictures.samples), count):
            try:
                clean = _central(pictures.read(number), side)  # (H, W, 3)
            except Damaged as error:
                raise UserError(f"{pictures.where(number)}: {error}; name other pictures with --images") from None
            if min(clean.shape[:2]) < SMALLEST:
                raise UserError(f"{pictures.where(number)}: under {SMALLEST} x {SMALLEST} pixels; remove it")
            if subject.color == "y":
                clean = luma(clean)
            images = pack([observe(clean, subject.degradation, (0, 0, number))])
            target = torch.from_numpy(np.ascontiguousarray(clean.transpose(2, 0, 1)))[None]
            found.append(Observation(readable(pictures.key(number)), *unpack(images), target))
    finally:
        pictures.close()
    return found


class View:
    """The evaluation view of a classifier at `size` pixels: what it takes, what a person sees, and where masks fall."""

    def __init__(self, subject: Subject, size: int | None = None):
        own = subject.view
        size = size or own.size
        resize = None if own.resize is None else max(size, round(own.resize * size / own.size))
        self.config = EvalTransform(size=size, resize=resize, interpolation=own.interpolation)
        self._transform = build_eval_transform(
            self.config, mean=subject.mean, std=subject.std, channels=len(subject.mean), num_classes=1
        )

    def images(self, samples: list[Sample]) -> Tensor:
        """(B, C, size, size), normalised."""
        return self._transform.finish(np.stack([self._transform.view(s.image, ()) for s in samples]), [()])

    def seen(self, sample: Sample) -> np.ndarray:
        """(size, size, C) in [0, 1]."""
        return self._transform.view(sample.image, ()).astype(np.float32) / 255

    def mask(self, sample: Sample) -> np.ndarray:
        """(size, size) bool: what of the view is in front."""
        size, resize = self.config.size, self.config.resize
        if resize is None:
            mask = sample.mask.resize((size, size), Image.Resampling.NEAREST)
        else:
            mask = center_crop(resize_shorter(sample.mask, resize, Image.Resampling.NEAREST), size)
        return np.asarray(mask) > 0


def _dataset(subject: Subject) -> Dataset:
    _check_source(subject, subject.dataset)
    if subject.recipe is None:
        return open_dataset(subject.dataset)
    data = subject.recipe.data
    return open_dataset(data.dataset, data.root, ShardCache(data.cache, data.remote))


def _name_of(dataset: Dataset, label: int) -> str:
    """The class in words; nothing of a data set without classes, whose pictures are all of one."""
    return named_classes(dataset.classes)[label] if dataset.num_classes > 1 else ""


def _check_source(subject: Subject, source: str) -> None:
    if not source:
        raise UserError(
            f"{subject.name}: does not say on which data it was trained; name pictures with --images FOLDER"
        )


def _spread(items, count: int) -> list:
    """Up to `count` of the items, evenly from the first on: a data set is often in the order of its classes."""
    total = len(items)
    return [items[i * total // min(count, total)] for i in range(min(count, total))]


def _spread_over_folders(pictures: list[Picture], count: int) -> list[Picture]:
    """Up to `count`, of each folder one in turn, so that the first of them are of many; in a folder evenly spread."""
    folders: dict[Path, list[Picture]] = {}
    for picture in pictures:
        folders.setdefault(picture[0].parent, []).append(picture)
    chosen = _spread(list(folders.values()), count)
    shares, left = [0] * len(chosen), min(count, sum(map(len, chosen)))
    while left:
        for number, folder in enumerate(chosen):
            if left and shares[number] < len(folder):
                shares[number] += 1
                left -= 1
    rounds = zip_longest(*(_spread(folder, share) for folder, share in zip(chosen, shares, strict=True)))
    return [picture for each in rounds for picture in each if picture is not None]


def _central(pixels: np.ndarray, side: int) -> np.ndarray:
    """The central square, or what there is of it, from an even row and column on: a mosaic keeps its phase."""
    top, left = (max(0, (length - side) // 4 * 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def _with_masks(folder: Path) -> list[Picture]:
    """The pictures under a folder, by name, each with its mask."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no folder of that name; name one that holds pictures")
    files = [path for path in sorted(folder.rglob("*")) if _is_picture(path, folder)]
    masks = [path for path in files if _is_mask(path)]
    pictures = [path for path in files if path not in set(masks)]
    by_place = {_place_of(path): path for path in pictures}
    found: dict[Path, Path] = {}
    for mask in masks:
        picture = by_place.get(_place_of(mask))
        if picture is None:
            raise UserError(f"{mask}: a mask without its picture {_place_of(mask).name}.*; add it, or remove the mask")
        if picture in found:
            raise UserError(f"{mask} and {found[picture]}: two masks of one picture; remove one of the two")
        found[picture] = mask
    if not pictures:
        raise UserError(f"{folder}: no image in it (.{', .'.join(IMAGE_EXTENSIONS)}); name a folder of pictures")
    return [(picture, found.get(picture)) for picture in pictures]


def _is_picture(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.suffix[1:].lower() in IMAGE_EXTENSIONS and path.is_file()


def _is_mask(path: Path) -> bool:
    return path.stem.endswith(_MASK) or path.parent.name == _MASKS


def _place_of(path: Path) -> Path:
    """Of a picture and of its mask alike."""
    folder = path.parent.parent if path.parent.name == _MASKS else path.parent
    return folder / path.stem.removesuffix(_MASK)


def _read(path: Path, mask: Path | None, channels: int, root: Path, classes: Sequence[str]) -> Sample:
    image = _decoded(path, partial(decode_image, channels=channels))
    inside = None if mask is None else _decoded(mask, decode_mask)
    if inside is not None and inside.size != image.size:
        raise UserError(
            f"{mask}: {inside.width} x {inside.height} pixels, its picture {path.name} has {image.width} x "
            f"{image.height}; make them equal"
        )
    return Sample(readable(path.relative_to(root).as_posix()), image, inside, _class_of(path, root, classes))


def _class_of(path: Path, root: Path, classes: Sequence[str]) -> str:
    """The class that the innermost folder around a picture is named after, from `root` on; empty where none is."""
    if not classes:
        return ""
    counted = tuple(classes) == named_classes(list(map(str, range(len(classes)))))
    known = dict(zip(class_folders(len(classes) if counted else list(classes)), classes, strict=True))
    known |= {name: name for name in classes}
    around = (root.resolve().name, *path.relative_to(root).parts[:-1])
    return next((known[name] for name in reversed(around) if name in known), "")


def _decoded(path: Path, decode: Callable[[bytes], Image.Image]) -> Image.Image:
    try:
        return decode(path.read_bytes())
    except (Damaged, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason}); mend or remove it") from None


def readable(text: str) -> str:
    """With U+FFFD for each byte of a file's name that is no UTF-8: neither a page nor a drawing can hold it."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def batches(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def pixels(picture: Tensor) -> np.ndarray:
    """(1, C, H, W) -> (H, W, C)."""
    return picture[0].permute(1, 2, 0).numpy()
