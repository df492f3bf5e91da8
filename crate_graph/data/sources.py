"""Where `crate-graph shards make` takes its samples from: folders, tars, IDX files, shards."""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from crate_graph.data.dataset import DESCRIPTION, Description, open_dataset, read_description
from crate_graph.data.decode import Damaged, decode_label
from crate_graph.data.index import IMAGE_EXTENSIONS, LABEL_EXTENSION, Index, build_index, index_path, read_index
from crate_graph.errors import UserError
from crate_graph.paths import expanded


@dataclass(frozen=True)
class Item:
    """One sample of a source. Its bytes are read when it is written."""

    key: str  # as webdataset wants it: no dot after the last slash
    extension: str
    label: str | int  # a class name, or a class number
    read: Callable[[], bytes]


def read_item(item: Item) -> bytes:
    """The picture's bytes. Raises UserError where they cannot be read."""
    try:
        return item.read()
    except OSError as error:
        raise UserError(f"sample {item.key!r} cannot be read ({error}); mend or remove it") from None


@dataclass(frozen=True)
class Source:
    items: list[Item]
    description: Description | None = None  # where the source is a data set itself


def open_source(
    path: str | Path,
    *,
    split: str,
    source_split: str | None = None,
    labels: str | Path | None = None,
    unlabelled: bool = False,
) -> Source:
    """Find the samples of `split` in any of these.

    - a folder `split/class/*.png` or `class/*.png`; with `labels`, or `unlabelled`, any folder
    - an uncompressed tar of such a folder
    - an IDX file of images (gzip or not), with `labels` an IDX file too
    - a folder with dataset.yaml and shards, or one shard

    `labels` for a folder or a tar: a text file, each line the path of an image and its class (name or number).
    `unlabelled`: there are no classes; all images, at any depth, or all in the folder `split` where there is one, get
    the class "photograph". `source_split`: folder of the split, where it is called otherwise; then it must be there.

    Raises:
        UserError: nothing there, no image, labels where `unlabelled` says that there are none, a class without an
            image, two images of one key, a label without its image.
    """
    path = expanded(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such source; name a folder, a tar, an IDX file or shards")
    if unlabelled:
        return Source(_photographs(path, labels, split, source_split))
    split = source_split or split
    if path.is_dir():
        if labels is None and (path / DESCRIPTION).is_file():
            dataset = open_dataset(path)
            shards = [read_index(shard.path) for shard in dataset.split(split).shards]
            return Source(_from_shards(shards), dataset.description)
        return Source(_from_tree(path, _files(path), split, labels))
    if _is_idx(path):
        return Source(_from_idx(path, labels))
    if not tarfile.is_tarfile(path):
        raise UserError(f"{path}: neither a folder, a tar nor an IDX file")
    names, readers = _tar_members(path)
    if any(name.endswith("." + LABEL_EXTENSION) for name in names):
        index = read_index(path) if index_path(path).exists() else build_index(path)
        beside = path.parent / DESCRIPTION
        return Source(_from_shards([index]), read_description(beside) if beside.is_file() else None)
    return Source(_from_tree(path, dict(zip(names, readers, strict=True)), split, labels))


def _files(root: Path) -> dict[str, Callable[[], bytes]]:
    """Readers of all files under a folder, by their path relative to it; an empty folder has the reader `bytes`."""
    found: dict[str, Callable[[], bytes]] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file():
            found[name] = path.read_bytes
        elif path.is_dir() and not any(path.iterdir()):
            found[name + "/"] = bytes
    return found


def _tar_members(path: Path) -> tuple[list[str], list[Callable[[], bytes]]]:
    names, readers = [], []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isfile():
                    names.append(name)
                    readers.append(partial(read_range, path, member.offset_data, member.size))
                elif member.isdir():
                    names.append(name + "/")
                    readers.append(bytes)
    except tarfile.ReadError as error:
        raise UserError(f"{path}: the tar is compressed or cut off ({error}); decompress or fetch it again") from None
    return names, readers


def read_range(path: Path, offset: int, size: int) -> bytes:
    """A part of a file."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _from_tree(root: Path, files: dict[str, Callable[[], bytes]], split: str, labels: str | Path | None) -> list[Item]:
    if labels is not None:
        return _from_list(root, files, Path(labels))
    below = _folder_of_split(root, list(files), split)
    items: dict[str, Item] = {}
    classes, filled = set(), set()
    for name, read in files.items():
        if not name.startswith(below) or "/" not in name[len(below) :]:
            continue
        inside = name[len(below) :]
        label = inside.split("/", 1)[0]
        if label.startswith("."):
            continue
        classes.add(label)
        if name.endswith("/") or _extension(name) not in IMAGE_EXTENSIONS:
            continue
        filled.add(label)
        _add(items, root, inside, label, read)
    if not items:
        raise UserError(
            f"{root}: no image in class folders ({below or ''}CLASS/NAME.png and the like); name the folder above the "
            f"class folders, or give --labels"
        )
    if classes - filled:
        raise UserError(f"{root}: class {min(classes - filled)!r} has no image; remove its folder or fill it")
    return list(items.values())


def _folder_of_split(root: Path, names: list[str], split: str) -> str:
    """The part of the path before the class folders: "", "train/", "cifar10/train/"...

    Raises:
        UserError: there is no folder of `split`, and what is there looks like other splits, not like classes.
    """
    folders = set()
    for name in names:
        parts = name.split("/")[:-1]
        if split in parts[:-1] or (name.endswith("/") and split in parts):
            folders.add(tuple(parts[: parts.index(split) + 1]))
    if folders:
        return "/".join(min(folders, key=lambda folder: (len(folder), folder))) + "/"  # a class may bear its name
    found = _other_splits(names)
    if found:
        raise UserError(
            f"{root}: no folder of split {split!r}, but what looks like the splits {', '.join(found)}; name one with "
            f"--source-split, or if these are classes, give --labels"
        )
    return ""


def _other_splits(names: list[str]) -> list[str]:
    """The folders, in their order, under each of which all images lie two or more levels deep."""
    images = [name.split("/") for name in names if "/" in name and _extension(name) in IMAGE_EXTENSIONS]
    images = [parts for parts in images if not any(part.startswith(".") for part in parts)]
    depth, found = 0, set()
    while len(found) < 2 and images and all(len(parts) > depth + 2 for parts in images):
        found = {parts[depth] for parts in images}
        depth += 1
    return sorted(found)


def _photographs(root: Path, labels: str | Path | None, split: str, source_split: str | None) -> list[Item]:
    """All images of a folder or a tar, without looking at the names of folders but for the split's."""
    if labels is not None or (root / DESCRIPTION).is_file() or not (root.is_dir() or tarfile.is_tarfile(root)):
        raise UserError(f"{root}: --unlabelled takes a folder of images or a tar of one; for labels leave it out")
    files = _files(root) if root.is_dir() else dict(zip(*_tar_members(root), strict=True))
    images = [name for name in files if _extension(name) in IMAGE_EXTENSIONS and not _is_hidden(name)]
    wanted = source_split or split
    below = next((f"{name.partition(f'{wanted}/')[0]}{wanted}/" for name in images if f"/{wanted}/" in f"/{name}"), "")
    if not images or (source_split and not below):
        folder = f" in a folder {source_split!r}" if source_split else ""
        raise UserError(f"{root}: no image{folder}; name a folder of images")
    items: dict[str, Item] = {}
    for name in images:
        if name.startswith(below):
            _add(items, root, name[len(below) :], "photograph", files[name])
    return list(items.values())


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _from_list(root: Path, files: dict[str, Callable[[], bytes]], labels: Path) -> list[Item]:
    items: dict[str, Item] = {}
    try:
        lines = labels.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{labels}: there is no such file of labels; name one after --labels") from None
    except OSError as error:
        raise UserError(f"{labels}: the labels cannot be read ({error.strerror}); name a text file") from None
    except UnicodeDecodeError:
        raise UserError(f"{labels}: the labels are not UTF-8; save them as a text file in UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        name = name.strip()
        if name not in files or _extension(name) not in IMAGE_EXTENSIONS:
            raise UserError(f"{labels}: line {number}: {name or line!r} is no image in {root}; write: PATH CLASS")
        _add(items, root, name, _class(label), files[name])
    if not items:
        raise UserError(f"{labels}: the file of labels is empty; write one line per image: PATH CLASS")
    return list(items.values())


def _class(label: str) -> str | int:
    """A class number, or the name of a class: digits that make no number (as "²") are a name."""
    try:
        return int(label) if label.isdecimal() else label
    except ValueError:  # Python reads no number of thousands of digits
        return label


def _add(items: dict[str, Item], root: Path, name: str, label: str | int, read: Callable[[], bytes]) -> None:
    folder, slash, file = name.rpartition("/")
    key = folder + slash + file.rpartition(".")[0].replace(".", "_")  # webdataset ends a key at the first dot
    if key in items:
        raise UserError(
            f"{root}: two images have the key {key!r} (.{items[key].extension} and .{_extension(name)}); rename one"
        )
    items[key] = Item(key, _extension(name), label, read)


def _from_shards(indexes: list[Index]) -> list[Item]:
    items = []
    keys: set[str] = set()
    for index in indexes:
        members, path = index.compact, index.shard.path
        for position, key in enumerate(index.keys):
            if key in keys:
                raise UserError(f"{path}: sample {key!r} is in two shards; write them again under keys of their own")
            keys.add(key)
            try:
                label = decode_label(read_range(path, members.label_offset[position], members.label_size[position]))
            except Damaged as error:
                raise UserError(f"{path}: sample {key!r}: {error}; mend the shard") from None
            read = partial(read_range, path, members.image_offset[position], members.image_size[position])
            items.append(Item(key, index.image_name(position), label, read))
    return items


def _is_idx(path: Path) -> bool:
    try:
        with _open(path) as file:
            start = file.read(4)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: the file is cut off ({error}); fetch it again") from None
    return len(start) == 4 and start[:3] == b"\x00\x00\x08" and start[3] in (1, 3)


def _open(path: Path):
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def read_idx(path: str | Path) -> np.ndarray:
    """An IDX file of bytes (the form of MNIST), gzip or not: (n,) labels or (n, H, W) images, uint8.

    Raises:
        UserError: missing, cut off, or no IDX file of bytes.
    """
    path = expanded(path)
    try:
        with _open(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; name an IDX file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: this is a folder; name an IDX file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: the file is cut off ({error}); fetch it again") from None
    dimensions = data[3] if data[:3] == b"\x00\x00\x08" and len(data) > 3 else 0
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    if not dimensions or len(data) != start + math.prod(shape):
        raise UserError(f"{path}: this is no whole IDX file of bytes; fetch it again")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def _from_idx(path: Path, labels: str | Path | None) -> list[Item]:
    if labels is None:
        raise UserError(f"{path}: IDX images need their labels; add --labels FILE")
    images, classes = read_idx(path), read_idx(labels)
    if images.ndim != 3 or classes.shape != images.shape[:1] or not images.size:
        raise UserError(f"{labels}: labels of shape {classes.shape} for images of shape {images.shape}; name the pair")
    return [Item(f"{n:05d}", "png", int(classes[n]), partial(png, images[n])) for n in range(len(images))]


def png(pixels: np.ndarray) -> bytes:
    """A picture, (H, W) or (H, W, 3) uint8, as the bytes of a PNG file."""
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, format="PNG", optimize=True)
        return file.getvalue()


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower()
