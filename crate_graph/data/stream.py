"""Samples by number: positional reads from the shards of a split, in any order, without scanning a tar."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from crate_graph.data.dataset import Dataset, Split
from crate_graph.data.decode import Damaged, decode_image, decode_label
from crate_graph.data.index import Members, Shard, read_index_of
from crate_graph.data.remote.ahead import ShardHolder
from crate_graph.data.remote.file import RemoteFile
from crate_graph.errors import UserError

OPEN_FILES = 64  # shards kept open at once by one reader
REPLACEMENTS = 16  # following samples tried in the place of a damaged one


class DamagedSample(NamedTuple):
    """A sample that could not be read: for the log and the budget."""

    shard: str
    key: str
    reason: str


class SampleReader:
    """Reads (image, label) of a split by sample number. Each process makes its own; it holds open files.

    Indexes stay in memory once read, 32 bytes per sample. Shards at an address are fetched when they are needed, or
    before where `expect` says what comes.
    """

    def __init__(self, dataset: Dataset, split: Split):
        self._split = split
        self._channels = dataset.channels
        self._classes = dataset.num_classes
        self._first = split.first_samples().tolist()
        self._members: dict[int, Members] = {}
        self._files: OrderedDict[int, int] = OrderedDict()  # shard number -> file descriptor, least recent first
        remote = bool(split.shards) and isinstance(split.shards[0].path, RemoteFile)
        self._remote = ShardHolder(split.shards) if remote else None

    @property
    def remote(self) -> bool:
        """Whether the shards are at an address."""
        return self._remote is not None

    @property
    def looks_ahead(self) -> int:
        """Shards of each slot that should be ready before they are needed, as `data.remote.read_ahead` says."""
        return self._remote.read_ahead if self._remote is not None else 0

    def expect(self, shards: Sequence[int]) -> None:
        """Hold these shards ready, soonest needed first, and no others. Only for shards at an address."""
        if self._remote is not None:
            self._remote.want(shards)

    def read(self, sample: int) -> tuple[Image.Image, int]:
        """The picture and the label of `sample`.

        Raises:
            Damaged: its bytes cannot be decoded.
            UserError: its shard does not match its index, or its label is outside the classes of the data set.
            RunFailed: its shard cannot be fetched.
        """
        label = self.label(sample)
        return decode_image(self.image_bytes(sample), self._channels), label

    def label(self, sample: int) -> int:
        """The label of `sample` alone. It raises what `read` does."""
        number, position = self._locate(sample)
        members = self._index(number)
        label = decode_label(self._bytes(number, members.label_offset[position], members.label_size[position]))
        if not 0 <= label < self._classes:
            shard = self._split.shards[number]
            raise UserError(
                f"{shard.path}: sample {self.key(sample)!r} has label {label}, but the data set has {self._classes} "
                f"classes (0 to {self._classes - 1}); mend the shard or the classes in dataset.yaml"
            )
        return label

    def image_bytes(self, sample: int) -> bytes:
        """The picture of `sample` as it is stored. Raises UserError: its shard does not match its index."""
        number, position = self._locate(sample)
        members = self._index(number)
        return self._bytes(number, members.image_offset[position], members.image_size[position])

    def read_or_replace(self, sample: int) -> tuple[Image.Image, int, DamagedSample | None]:
        """As `read`, but a damaged sample gives way to the next good one of its shard (counted round), always the same.

        Raises:
            UserError: as `read`; also where too many samples in a row are damaged.
        """
        number, position = self._locate(sample)
        count = self._split.shards[number].samples
        damaged = None
        for step in range(min(count, REPLACEMENTS + 1)):
            candidate = self._first[number] + (position + step) % count
            try:
                return *self.read(candidate), damaged
            except Damaged as error:
                damaged = damaged or self.describe(sample, error)
        raise UserError(
            f"{self._split.shards[number].path}: {step + 1} samples in a row are damaged, from {damaged.key!r} "
            f"({damaged.reason}); check it with: crate-graph shards verify"
        )

    def describe(self, sample: int, error: Damaged) -> DamagedSample:
        return DamagedSample(self._split.shards[self._locate(sample)[0]].name, self.key(sample), str(error))

    def where(self, sample: int) -> str:
        """The sample in the words of an error."""
        return f"{self._split.shards[self._locate(sample)[0]].path}: sample {self.key(sample)!r}"

    def key(self, sample: int) -> str:
        number, position = self._locate(sample)
        return read_index_of(self._split.shards[number]).keys[position]

    def close(self) -> None:
        if self._remote is not None:
            self._remote.close()
        while self._files:
            os.close(self._files.popitem()[1])

    def _locate(self, sample: int) -> tuple[int, int]:
        number = bisect_right(self._first, sample) - 1
        return number, sample - self._first[number]

    def _index(self, number: int) -> Members:
        if number not in self._members:
            self._members[number] = read_index_of(self._split.shards[number]).compact
        return self._members[number]

    def _bytes(self, number: int, offset: int, size: int) -> bytes:
        shard = self._split.shards[number]
        try:
            data = os.pread(self._file(number, shard), int(size), int(offset))
        except OSError as error:
            raise UserError(
                f"{shard.path}: cannot be read ({error}); check the disk or fetch the shard again"
            ) from None
        if len(data) != size:
            raise UserError(
                f"{shard.path}: the shard ends before byte {offset + size}, where its index has a sample; "
                f"fetch it again, or: crate-graph shards index {shard.path}"
            )
        return data

    def _file(self, number: int, shard: Shard) -> int:
        if self._remote is not None:
            return self._remote.descriptor(number)
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        while len(self._files) >= OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        descriptor = os.open(shard.path, os.O_RDONLY)
        if os.fstat(descriptor).st_size != shard.bytes:
            os.close(descriptor)
            raise UserError(
                f"{shard.path}: the shard is not the one that its index describes ({shard.bytes} bytes); "
                f"fetch it again, or: crate-graph shards index {shard.path}"
            )
        self._files[number] = descriptor
        return descriptor
