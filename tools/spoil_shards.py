"""Damage to the shards of a small data set, and the data set in which that damage has been made good before.

Sample numbers are those of the split `train`. The functions on shards are called in a process that may import the
package.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import yaml


def cut_images(data: Path, samples: list[int], seed: float) -> None:
    """The second half of these pictures becomes zeros: as a file system leaves them that lost a write."""
    for shard, members, position in places(data, samples):
        offset, size = int(members.image_offset[position]), int(members.image_size[position])
        with shard.open("r+b") as file:
            file.seek(offset + size // 2)
            file.write(bytes(size - size // 2))


def flip_bits_of_images(data: Path, samples: list[int], seed: float) -> None:
    """One bit of each of these pictures, wherever in its bytes."""
    rng = random.Random(seed)
    for shard, members, position in places(data, samples):
        flip_bit(shard, rng.random(), int(members.image_offset[position]), int(members.image_size[position]))


def flip_bits_of_labels(data: Path, samples: list[int], seed: float) -> None:
    """One bit of each of these labels."""
    rng = random.Random(seed)
    for shard, members, position in places(data, samples):
        flip_bit(shard, rng.random(), int(members.label_offset[position]), int(members.label_size[position]))


def flip_bit(file: Path, where: float, start: int = 0, size: int | None = None) -> None:
    """Flip the bit at the share `where`, in [0, 1), of the `size` bytes from `start` on, or of all."""
    content = bytearray(file.read_bytes())
    bit = 8 * start + int(where * 8 * (len(content) - start if size is None else size))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def places(data: Path, samples: list[int]) -> Iterator[tuple]:
    """The shard, its members and the position in it, of each sample."""
    from crate_graph.data.index import read_index

    first = 0
    for shard in sorted(data.glob("train-*.tar")):
        index = read_index(shard)
        for sample in samples:
            if 0 <= sample - first < index.shard.samples:
                yield shard, index.compact, sample - first
        first += index.shard.samples


def replace_samples(data: Path, samples: list[int]) -> None:
    """Write the shards anew with the next good sample in the place of each of these, as training is to do."""
    from webdataset import TarWriter

    from crate_graph.data.index import LABEL_EXTENSION, build_index, read_index, write_index

    first = 0
    for shard in sorted(data.glob("train-*.tar")):
        index, content = read_index(shard), shard.read_bytes()
        count, members = index.shard.samples, index.compact
        bad = {sample - first for sample in samples}
        with shard.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
            for position, key in enumerate(index.keys):
                good = next(p % count for p in range(position, position + count) if p % count not in bad)
                image, label = (
                    content[offset : offset + size]
                    for offset, size in (
                        (members.image_offset[good], members.image_size[good]),
                        (members.label_offset[good], members.label_size[good]),
                    )
                )
                tar.write({"__key__": key, index.image_name(good): image, LABEL_EXTENSION: label})
        write_index(build_index(shard))
        first += count
    description = yaml.safe_load((data / "dataset.yaml").read_text())
    for fact in ("bytes", "sha256"):  # of the shards as they were
        del description["splits"]["train"][fact]
    (data / "dataset.yaml").write_text(yaml.safe_dump(description))
