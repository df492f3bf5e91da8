"""Whole pictures for the evaluation of restoration, one at a time: of a data set's split, or of a plain folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from crate_graph.config.schema import Degradation
from crate_graph.data.augment import Key
from crate_graph.data.batch import Batch
from crate_graph.data.dataset import DESCRIPTION, Dataset, open_dataset, shipped_datasets
from crate_graph.data.decode import Damaged, decode_photograph
from crate_graph.data.degrade import Observed, luma, observe, pack
from crate_graph.data.index import IMAGE_EXTENSIONS, Shard
from crate_graph.data.plan import PAD
from crate_graph.data.remote.address import is_remote
from crate_graph.data.remote.cache import ShardCache
from crate_graph.data.stream import DamagedSample, SampleReader
from crate_graph.errors import UserError
from crate_graph.paths import expanded

SMALLEST = 7  # pixels of a side: SSIM's window, which is larger than that of the graphs
BLANK = np.zeros((16, 16, 3), dtype=np.float32)  # stands where there is no picture; its weight is 0


class Pictures(Protocol):
    """Pictures by number, from 0."""

    name: str
    samples: int
    shards: tuple[Shard, ...]

    def key(self, sample: int) -> str:
        """The picture's name."""

    def where(self, sample: int) -> str:
        """The picture's place, for an error."""

    def read(self, sample: int) -> np.ndarray:
        """(H, W, 3) float32 in [0, 1].

        Raises:
            Damaged: the bytes of a shard cannot be decoded.
            UserError: it is refused by `decode_photograph`, or a file cannot be decoded.
        """

    def describe(self, sample: int, error: Damaged) -> DamagedSample: ...

    def close(self) -> None: ...


class SplitPictures:
    """The pictures of a split, in the order of its shards; labels are not looked at."""

    def __init__(self, dataset: Dataset, split: str):
        opened = dataset.split(split)
        self.name, self.samples, self.shards = split, opened.samples, opened.shards
        self._reader = SampleReader(dataset, opened)
        reader = self._reader
        self.key, self.where, self.describe, self.close = reader.key, reader.where, reader.describe, reader.close

    def read(self, sample: int) -> np.ndarray:
        return decode_photograph(self._reader.image_bytes(sample), self.where(sample))


class FolderPictures:
    """The pictures of a folder, at any depth, by name; or the one picture of a file.

    Raises:
        UserError: there is none.
    """

    shards = ()

    def __init__(self, folder: str | Path):
        self._root = expanded(folder)
        if self._root.is_file():
            self._files, self._root = [self._root], self._root.parent
        else:
            self._files = [path for path in sorted(self._root.rglob("*")) if self._is_picture(path)]
        if not self._files:
            raise UserError(f"{folder}: no image in it (.{', .'.join(IMAGE_EXTENSIONS)}); name a folder of pictures")
        self.name, self.samples = self._root.name or str(self._root), len(self._files)

    def key(self, sample: int) -> str:
        return self._files[sample].relative_to(self._root).as_posix()

    def where(self, sample: int) -> str:
        return str(self._files[sample])

    def read(self, sample: int) -> np.ndarray:
        path = self._files[sample]
        try:
            return decode_photograph(path.read_bytes(), str(path))
        except (Damaged, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{path}: cannot be read ({reason}); mend or remove it") from None

    def describe(self, sample: int, error: Damaged) -> DamagedSample:
        return DamagedSample(self.name, self.key(sample), str(error))

    def close(self) -> None:
        """Nothing is kept open."""

    def _is_picture(self, path: Path) -> bool:
        hidden = any(part.startswith(".") for part in path.relative_to(self._root).parts)
        return not hidden and path.suffix[1:].lower() in IMAGE_EXTENSIONS and path.is_file()


def open_pictures(
    source: str | Path, split: str, root: str | Path | None = None, cache: ShardCache | None = None
) -> Pictures:
    """The pictures of a data set's `split`, or of a folder that is no data set, whatever `split` says.

    `root` and `cache`: see `open_dataset`.

    Raises:
        UserError: neither; what `open_dataset` and `Dataset.split` raise; a folder without a picture.
    """
    if is_folder_of_pictures(source):
        return FolderPictures(source)
    return SplitPictures(open_dataset(source, root, cache), split)


def is_folder_of_pictures(source: str | Path) -> bool:
    """Whether it is a folder that is no data set, or one picture."""
    if is_remote(str(source)):
        return False
    path = expanded(source)
    is_dataset = (path / DESCRIPTION).is_file() or str(source) in shipped_datasets()
    return (path.is_dir() and not is_dataset) or (path.is_file() and path.suffix[1:].lower() in IMAGE_EXTENSIONS)


class WholeImages:
    """Yields this rank's share of the pictures, degraded, in batches of one: the loader of restoration's evaluation.

    Picture n goes to rank n modulo `world`. All ranks take equally many batches: where pictures run out, and in the
    place of a damaged sample, comes a blank one of weight 0. Degradations are keyed by (seed, 0, picture).

    Args:
        pictures: from `open_pictures`.
        degradation: what is lost of each.
        color: "rgb", or "y" for luma.
        observed_by: what takes a picture, the degradation and a key, and gives what is known of the picture.
        seed: of the degradation.
        rank, world: this process among those that share the pictures.
        pin_memory: batches come in page-locked memory.
    """

    def __init__(
        self,
        pictures: Pictures,
        degradation: Degradation,
        color: Literal["rgb", "y"] = "rgb",
        observed_by: Callable[[np.ndarray, Degradation, Key], Observed] = observe,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ):
        self.split = pictures
        self._degradation, self._color, self._seed = degradation, color, seed
        self._observe = observed_by
        self._rank, self._world, self._pin_memory = rank, world, pin_memory

    def steps(self, epoch: int = 0) -> int:
        """Batches of an epoch, the same on every rank."""
        return -(-self.split.samples // self._world)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Batches of one picture: images (1, 2C + 1, H, W) as `degrade.pack` lays them, targets (1, C, H, W).

        Every epoch is the same.

        Raises:
            UserError: what `Pictures.read` raises; a picture smaller than `SMALLEST`.
        """
        for step in range(start, self.steps()):
            number = step * self._world + self._rank
            batch = self._batch(number if number < self.split.samples else PAD)
            yield batch.pin_memory() if self._pin_memory else batch

    def close(self) -> None:
        self.split.close()

    def _read(self, number: int) -> np.ndarray:
        clean = self.split.read(number)  # (H, W, 3)
        height, width = clean.shape[:2]
        if min(height, width) < SMALLEST:
            raise UserError(
                f"{self.split.where(number)}: {width} x {height} pixels are fewer than the {SMALLEST} x {SMALLEST} "
                f"that networks and SSIM look at together; leave it out of the evaluation"
            )
        return clean

    def _batch(self, number: int) -> Batch:
        clean, damaged = None, []
        if number != PAD:
            try:
                clean = self._read(number)
            except Damaged as error:
                damaged = [self.split.describe(number, error)]
        weight = torch.tensor([0.0 if clean is None else 1.0])
        clean = BLANK if clean is None else clean  # (H, W, 3)
        if self._color == "y":
            clean = luma(clean)  # (H, W, 1)
        images = pack([self._observe(clean, self._degradation, (self._seed, 0, number))])
        targets = torch.from_numpy(np.ascontiguousarray(clean.transpose(2, 0, 1)))[None]  # (1, C, H, W)
        return Batch(images, targets, weight, torch.tensor([number]), damaged)
