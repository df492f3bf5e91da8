"""The index beside a shard: `NAME.tar.index.json` says where every member lies, so that no tar is ever scanned.

    {"format": "crate-graph-index/1", "shard": "train-000000.tar", "samples": 2, "bytes": 10240, "sha256": "...",
    "keys": ["0001", "0002"],
    "members": {"cls": {"offset": [512, 2560], "size": [1, 1]}, "png": {"offset": [1536, 3584], "size": [402, 377]}}}

The first line alone answers "how many samples": opening a data set of thousands of shards reads no more than that.
Members are grouped into samples by webdataset's own key rule. Offset -1: the sample has no member of that extension.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from crate_graph.data.remote.fetch import MissingFile
from crate_graph.data.remote.file import Location, RemoteFile
from crate_graph.errors import UserError
from crate_graph.whole_files import write_whole

FORMAT = "crate-graph-index/1"
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm", "pgm")
LABEL_EXTENSION = "cls"  # the class number in ASCII digits


@dataclass(frozen=True)
class Shard:
    """One tar: what the first line of its index says."""

    path: Location
    samples: int
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return self.path.basename if isinstance(self.path, RemoteFile) else self.path.name


@dataclass(frozen=True)
class Members:
    """Where the image and the label of each sample of a shard lie: four (samples,) int64 arrays."""

    image_offset: np.ndarray
    image_size: np.ndarray
    label_offset: np.ndarray
    label_size: np.ndarray


@dataclass(frozen=True)
class Index:
    """The whole index of one shard."""

    shard: Shard
    keys: list[str]
    members: dict[str, dict[str, list[int]]]

    @cached_property
    def compact(self) -> Members:
        image = np.full((2, self.shard.samples), -1, dtype=np.int64)  # (offset and size, sample)
        for extension in IMAGE_EXTENSIONS:
            if extension in self.members:
                column = np.array([self.members[extension]["offset"], self.members[extension]["size"]], dtype=np.int64)
                image = np.where(column[0] >= 0, column, image)
        label = self.members[LABEL_EXTENSION]
        return Members(*image, np.array(label["offset"], dtype=np.int64), np.array(label["size"], dtype=np.int64))

    def image_name(self, position: int) -> str:
        """Extension of the image of the sample at `position`."""
        return next(e for e in IMAGE_EXTENSIONS if e in self.members and self.members[e]["offset"][position] >= 0)


def index_path(shard: Location) -> Location:
    name = shard.basename if isinstance(shard, RemoteFile) else shard.name
    return shard.with_name(name + ".index.json")


def build_index(path: Path) -> Index:
    """Read a tar once and find its samples.

    Raises:
        UserError: the shard is missing, compressed, cut off or no tar; a sample has no image, no label, or a member
            twice; the samples of one key do not stand together.
    """
    path = Path(path)
    shard = Shard(path, 0, _size(path), sha256_of(path))
    keys, rows = _group(path)
    for key, row in zip(keys, rows, strict=True):
        images = [extension for extension in row if extension in IMAGE_EXTENSIONS]
        if len(images) != 1:
            what = f"{len(images)} images ({', '.join(images)})" if images else "no image"
            raise UserError(
                f"{path}: sample {key!r} has {what}; each sample needs one of {', '.join(IMAGE_EXTENSIONS)}"
            )
        if LABEL_EXTENSION not in row:
            raise UserError(f"{path}: sample {key!r} has no label; add a member {key}.{LABEL_EXTENSION}")
    if not keys:
        raise UserError(f"{path}: the shard holds no sample; remove it or write it again")
    members = {}
    for extension in sorted({extension for row in rows for extension in row}):
        pairs = [row.get(extension, (-1, 0)) for row in rows]
        members[extension] = {"offset": [offset for offset, _ in pairs], "size": [size for _, size in pairs]}
    return Index(Shard(path, len(keys), shard.bytes, shard.sha256), keys, members)


def write_index(index: Index) -> Path:
    """Write the index beside its shard, whole or not at all."""
    shard = index.shard
    head = {
        "format": FORMAT,
        "shard": shard.name,
        "samples": shard.samples,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
    }
    body = json.dumps({"keys": index.keys, "members": index.members}, separators=(",", ":"))
    path = index_path(shard.path)
    try:
        write_whole(path, json.dumps(head)[:-1] + ",\n" + body[1:] + "\n")
    except OSError as error:
        raise UserError(
            f"{path.parent}: the index of {shard.name} cannot be written ({error.strerror or error}); make room there, "
            f"or copy the shards to a folder that can be written"
        ) from None
    return path


def read_shard(path: Location, *, fresh: bool = True) -> Shard:
    """The first line of the index of the shard at `path`; neither the rest nor the shard is read.

    `fresh`: at an address, the index as it is there now; else a copy in the cache will do.

    Raises:
        UserError: the shard or its index is missing, or the index is not ours or of another shard.
    """
    remote = isinstance(path, RemoteFile)
    path = path if remote else Path(path)
    size = None if remote else _size(path)
    try:
        if remote:
            line = index_path(path).read_bytes(fresh=fresh).partition(b"\n")[0].decode()
        else:
            with index_path(path).open(encoding="utf-8") as file:
                line = file.readline()
        head = json.loads(line.rstrip().removesuffix(",") + "}")
        shard, name = Shard(path, head["samples"], head["bytes"], head["sha256"]), head["shard"]
        kinds = [type(value) for value in (shard.samples, shard.bytes, shard.sha256, name)]
        if head["format"] != FORMAT or kinds != [int, int, str, str] or not 0 < shard.samples <= shard.bytes // 1024:
            raise ValueError(head)  # a sample takes a header of 512 bytes for its image and one for its label
    except (FileNotFoundError, MissingFile):
        raise UserError(f"{path}: the shard has no index; make it with: {_make(path)}") from None
    except (ValueError, KeyError, TypeError, RecursionError, IsADirectoryError):
        raise UserError(f"{index_path(path)}: not an index of format {FORMAT}; make it again: {_make(path)}") from None
    if name != shard.name:
        raise UserError(
            f"{index_path(path)}: this is the index of another shard, {name}; put the shard's own index beside it, or "
            f"make it again: {_make(path)}"
        )
    if remote and not re.fullmatch("[0-9a-f]{64}", shard.sha256):
        raise UserError(f"{index_path(path)}: its sha256 is none; make it again: {_make(path)}")
    if size is not None and size != shard.bytes:
        raise UserError(
            f"{path}: the shard has {size} bytes, but its index says {shard.bytes}; it was cut off or changed: "
            f"fetch it again, or if the change is meant: crate-graph shards index {path}"
        )
    return shard


def read_index(path: Location, *, fresh: bool = True) -> Index:
    """The whole index of the shard at `path`. `fresh` and what it raises: see `read_shard`."""
    shard = read_shard(path, fresh=fresh)
    file = index_path(path)
    try:
        data = json.loads(file.read_bytes(fresh=False) if isinstance(file, RemoteFile) else file.read_text("utf-8"))
        index = Index(shard, data["keys"], data["members"])
        _check(index)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{file}: the index is damaged; make it again: {_make(path)}") from None
    return index


def read_index_of(shard: Shard) -> Index:
    """The index of a shard that was opened before; it must still be the same.

    Raises:
        UserError: as `read_shard`; also where shard and index have been replaced since.
    """
    index = read_index(shard.path, fresh=False)
    if index.shard.sha256 != shard.sha256:
        index = read_index(shard.path)  # the copy in the cache was another one
    if index.shard.sha256 != shard.sha256:
        raise UserError(f"{shard.path}: the shard was replaced while it was in use; start again to use the new one")
    return index


def _make(path: Location) -> str:
    """The remedy where an index is missing or wrong."""
    if isinstance(path, RemoteFile):
        return f"crate-graph shards index {path.basename}, where that file is, and upload it beside the shard"
    return f"crate-graph shards index {path}"


def _check(index: Index) -> None:
    """Raise ValueError, KeyError, TypeError or AttributeError where an index cannot be one of its shard."""
    count, end = index.shard.samples, index.shard.bytes
    if [type(key) for key in index.keys] != [str] * count:
        raise ValueError("keys")
    images = np.zeros(count, dtype=int)
    for extension, member in index.members.items():
        offset, size = np.array(member["offset"]), np.array(member["size"])  # (samples,) each
        if not offset.shape == size.shape == (count,) or not offset.dtype.kind == size.dtype.kind == "i":
            raise ValueError(extension)
        if offset.min() < -1 or size.min() < 0 or (size > end - offset).any():
            raise ValueError(extension)
        if extension == LABEL_EXTENSION and offset.min() < 0:
            raise ValueError(extension)
        images += (offset >= 0) & (extension in IMAGE_EXTENSIONS)
    if LABEL_EXTENSION not in index.members or (images != 1).any():
        raise ValueError("members")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_shards(shards: list[Shard] | tuple[Shard, ...]) -> str:
    """One digest for a list of shards: sha256 of their sha256 hex digests, in order, one per line."""
    return hashlib.sha256("\n".join(shard.sha256 for shard in shards).encode()).hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise UserError(
            f"{path}: the shard is missing; fetch it again, or point data.root at the folder that has it"
        ) from None


def _group(path: Path) -> tuple[list[str], list[dict[str, tuple[int, int]]]]:
    """Keys of the samples of a tar and, for each, {extension: (offset, size)}."""
    from webdataset.tariterators import base_plus_ext

    keys: list[str] = []
    rows: list[dict[str, tuple[int, int]]] = []
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                key, extension = base_plus_ext(member.name)
                if not member.isfile() or key is None:
                    continue
                extension = extension.lower()
                if not keys or keys[-1] != key:
                    keys.append(key)
                    rows.append({})
                if extension in rows[-1]:
                    raise UserError(f"{path}: sample {key!r} has two members .{extension}; keep one")
                rows[-1][extension] = (member.offset_data, member.size)
                end = member.offset_data + member.size
            if keys and end > path.stat().st_size:
                raise UserError(f"{path}: the shard is cut off inside sample {keys[-1]!r}; fetch it again")
    except tarfile.ReadError as error:
        with path.open("rb") as file:
            start = file.read(6)
        if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
            raise UserError(
                f"{path}: the shard is compressed, and a compressed tar cannot be read at an offset; decompress it "
                f"(images are compressed already)"
            ) from None
        raise UserError(f"{path}: the shard is cut off or no tar ({error}); fetch it again") from None
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(
            f"{path}: the members of sample {twice!r} do not stand together; write the shard again in order"
        )
    return keys, rows
