"""Write shards: shuffled, balanced, the same bytes each time, and never half of them."""

from __future__ import annotations

import fcntl
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from crate_graph.data.class_folders import class_folders
from crate_graph.data.cut import choose, cut_patches
from crate_graph.data.dataset import DESCRIPTION, MOST_CLASSES, Description, check_description, read_description
from crate_graph.data.decode import Damaged, check_photograph, decode_image
from crate_graph.data.index import LABEL_EXTENSION, Shard, build_index, index_path, sha256_of_shards, write_index
from crate_graph.data.progress import progress
from crate_graph.data.sources import Item, open_source, read_item
from crate_graph.errors import UserError
from crate_graph.paths import expanded
from crate_graph.whole_files import write_whole

WORKPLACE = ".making-"  # begins the name of the folder in which shards are written, inside that where they go
MEASURED = 1000  # samples from which mean and std are measured where nobody gives them


@dataclass(frozen=True)
class Made:
    """What `make_shards` wrote."""

    file: Path  # dataset.yaml
    split: str
    shards: tuple[Shard, ...]


def make_shards(
    source: str | Path,
    output: str | Path,
    *,
    split: str,
    source_split: str | None = None,
    labels: str | Path | None = None,
    unlabelled: bool = False,
    patch: int | None = None,
    stride: int | None = None,
    samples: int | None = None,
    shard_samples: int = 1000,
    shards: int | None = None,
    per_class: int | None = None,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Made:
    """Write `split` of a source as shards with indexes into `output`, and enter it in `output`/dataset.yaml.

    Images keep their bytes; IDX images become PNG. The samples are shuffled by `seed` and dealt so that shard sizes
    differ by at most one. The same source and arguments give the same bytes.

    Args:
        source, source_split, labels, unlabelled: see `sources.open_source`.
        patch, stride: cut the images into PNG squares of `patch` pixels at every `stride` pixels (default: `patch`).
        samples: keep that many samples, chosen at random by `seed`.
        shard_samples: samples of a shard, unless `shards` says how many shards.
        per_class: keep only the first samples of each class.
        about: fields of dataset.yaml (name, licence, source, channels, classes, mean, std); what is missing is taken
            from a dataset.yaml in `output`, else from the source, else measured.
        force: replace the shards of `split` that are there.

    Raises:
        UserError: shards of `split` are there already; what `open_source` and `cut_patches` raise; a label outside the
            classes; an image that cannot be decoded among those measured; `output` cannot be written.
    """
    if not re.fullmatch(r"\w+", split):
        raise UserError(f"split {split!r}: a split is called by letters, digits and _; choose such a name")
    output = expanded(output).absolute()
    if _is_within(output, source):
        raise UserError(
            f"{output}: lies among the pictures of {source}, which the shards would then be part of; choose a folder "
            f"beside it for --output"
        )
    if unlabelled and per_class is not None:
        raise UserError(f"--per-class {per_class}: --unlabelled pictures have no classes; choose --samples")
    if stride is not None and patch is None:
        raise UserError(f"--stride {stride}: there are no patches to place; add --patch")
    found = open_source(source, split=split, source_split=source_split, labels=labels, unlabelled=unlabelled)
    with _workplace(output) as folder:
        old = sorted(output.glob(f"{split}-[0-9]*.tar"))
        if old and not force:
            raise UserError(f"{output}: there are shards of {split!r} already; choose another folder, or add --force")
        known = read_description(output / DESCRIPTION) if (output / DESCRIPTION).is_file() else None
        items = _first_of_each_class(found.items, per_class) if per_class else found.items
        if patch:
            store = folder / "patches"
            items = cut_patches(items, patch, stride=stride or patch, samples=samples, seed=seed, store=store)
        elif samples:
            items = [items[n] for n in choose(len(items), samples, seed)]
        if unlabelled and not patch:  # patches are checked when they are cut
            _check_photographs(items)
        given = {**_fields(found.description), **_fields(known), **(about or {})}
        classes, numbers = _number_classes(items, given.get("classes"), Path(source))
        order = np.random.Generator(np.random.Philox(seed)).permutation(len(items))
        fields = {
            "name": output.name,
            "licence": "not stated",
            "source": f"made from {Path(source).name}",
            **given,
            "classes": classes,
        }
        if not {"channels", "mean", "std"} <= fields.keys():
            fields = {**_measure([items[n] for n in order[:MEASURED]], fields.get("channels")), **fields}
        count = min(shards or -(-len(items) // shard_samples), len(items))
        written = []
        for number, part in enumerate(progress(np.array_split(order, count), count, f"shards of {split}")):
            path = folder / f"{split}-{number:06d}.tar"
            _write_shard(path, [(items[n], numbers[n]) for n in part])
            index = build_index(path)
            write_index(index)
            written.append(index.shard)
        entry = {
            "shards": f"{split}-{{000000..{count - 1:06d}}}.tar",
            "samples": len(items),
            "bytes": sum(shard.bytes for shard in written),
            "sha256": sha256_of_shards(written),
        }
        splits = {**(known.model_dump()["splits"] if known else {}), split: entry}
        description = check_description({**fields, "splits": splits}, output / DESCRIPTION)
        write_description(description, folder / DESCRIPTION)
        _move(written, output, old)
        (folder / DESCRIPTION).replace(output / DESCRIPTION)
    final = tuple(Shard(output / shard.name, shard.samples, shard.bytes, shard.sha256) for shard in written)
    return Made(output / DESCRIPTION, split, final)


def _is_within(output: Path, source: str | Path) -> bool:
    """Whether `output` is, or lies in, a source that is a folder of pictures. Of shards, others may be made there."""
    folder = expanded(source).absolute()
    is_tree = folder.is_dir() and not (folder / DESCRIPTION).is_file() and not any(folder.glob("*.tar"))
    return is_tree and (folder.resolve() == output.resolve() or folder.resolve() in output.resolve().parents)


def _check_photographs(items: list[Item]) -> None:
    for item in progress(items, len(items), "pictures checked"):
        try:
            check_photograph(Image.open(io.BytesIO(read_item(item))), f"sample {item.key!r}")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # a damaged one is found, counted and budgeted when it is read


def index_shards(paths: list[str | Path]) -> list[Shard]:
    """Write the index of each tar; a folder stands for the tars in it.

    Raises:
        UserError: no tar there; what `build_index` raises.
    """
    tars: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: the folder has no .tar; name the folder of the shards")
        tars += inside
    found = []
    for path in progress(tars, len(tars), "indexes"):
        index = build_index(path)
        write_index(index)
        found.append(index.shard)
    return found


def write_description(description: Description, file: Path) -> None:
    """Write a dataset.yaml, whole or not at all."""
    write_whole(file, yaml.safe_dump(description.model_dump(), sort_keys=False, allow_unicode=True, width=110))


def _fields(description: Description | None) -> dict[str, Any]:
    return {} if description is None else description.model_dump(exclude={"splits"})


def _first_of_each_class(items: list[Item], count: int) -> list[Item]:
    taken: dict[str | int, int] = {}
    kept = []
    for item in items:
        taken[item.label] = taken.get(item.label, 0) + 1
        if taken[item.label] <= count:
            kept.append(item)
    return kept


def _number_classes(
    items: list[Item], given: list[str] | int | None, source: Path
) -> tuple[list[str] | int, list[int]]:
    """The classes of dataset.yaml (names, or how many) and the class number of every item.

    Where classes are given, their folders as `extract` names them stand for them.
    """
    names = {item.label for item in items if isinstance(item.label, str)}
    if broken := sorted(name for name in names if re.search("[\ud800-\udfff]", name)):
        raise UserError(f"{source}: the name of the class {broken[0]!r} is no UTF-8; rename it")
    if given is None:
        given = sorted(names) if names else 1 + _largest_label(items, source)
    elif isinstance(given, int) and names and names != set(class_folders(given)):
        if len(names) != given:
            raise UserError(
                f"{source}: {len(names)} class names, but the data set has {given} classes; complete the source"
            )
        given = sorted(names)
    count = given if isinstance(given, int) else len(given)
    place = {folder: number for number, folder in enumerate(class_folders(given) if names else ())}
    if not isinstance(given, int):
        place |= {name: number for number, name in enumerate(given)}
    numbers = []
    for item in items:
        number = place.get(item.label, -1) if isinstance(item.label, str) else item.label
        if not 0 <= number < count:
            raise UserError(
                f"{source}: sample {item.key!r} has label {item.label!r}, which is none of the {count} classes of the "
                f"data set; mend the label or the classes"
            )
        numbers.append(number)
    return given, numbers


def _largest_label(items: list[Item], source: Path) -> int:
    item = max(items, key=lambda item: item.label)
    if item.label >= MOST_CLASSES:
        raise UserError(
            f"{source}: sample {item.key!r} has label {item.label}, but a data set has at most {MOST_CLASSES} classes; "
            f"mend the label, or number the classes from 0"
        )
    return item.label


def _measure(items: list[Item], channels: int | None) -> dict[str, Any]:
    """Channels, and mean and standard deviation of the pixels in [0, 1] per channel, from some samples."""
    sums, squares, count, grey = np.zeros(3), np.zeros(3), 0, True
    for item in items:
        try:
            pixels = np.asarray(decode_image(read_item(item), 3)).reshape(-1, 3)
        except Damaged as error:
            raise UserError(f"sample {item.key!r} cannot be decoded ({error}); mend or remove it") from None
        grey = grey and bool((pixels[:, :1] == pixels).all())
        values = pixels / 255
        sums, squares, count = sums + values.sum(axis=0), squares + (values**2).sum(axis=0), count + len(values)
    channels = channels or (1 if grey else 3)
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
    return {
        "channels": channels,
        "mean": [round(float(value), 4) for value in mean[:channels]],
        "std": [round(float(value), 4) for value in std[:channels]],
    }


@contextmanager
def _workplace(output: Path) -> Iterator[Path]:
    """A folder inside `output` (hence on its disk) that is gone afterwards; so is `output` where nothing came of it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{output}: the folder cannot be made ({error.strerror}); choose another folder for --output"
        ) from None
    try:
        with _alone_in(output):
            try:
                with tempfile.TemporaryDirectory(prefix=WORKPLACE, dir=output) as folder:
                    yield Path(folder)
            finally:
                if not any(output.iterdir()):
                    output.rmdir()
    except OSError as error:
        raise UserError(
            f"{output}: the shards cannot be written ({error.strerror or error}); make room there, or choose another "
            f"folder for --output"
        ) from None


@contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    """Hold the folder's lock, which a killed process gives back, and remove what such a one left."""
    folder = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{output}: shards are being made in this folder; wait for that to end, or choose another folder for "
                f"--output"
            ) from None
        for left in output.glob(f"{WORKPLACE}*"):
            shutil.rmtree(left)
        yield
    finally:
        os.close(folder)


def _write_shard(path: Path, samples: list[tuple[Item, int]]) -> None:
    from webdataset import TarWriter

    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0, user="root", group="root") as tar:
        for item, number in samples:
            tar.write({"__key__": item.key, item.extension: read_item(item), LABEL_EXTENSION: str(number).encode()})


def _move(written: list[Shard], output: Path, old: list[Path]) -> None:
    for path in old:
        path.unlink()
        index_path(path).unlink(missing_ok=True)
    for shard in written:
        shutil.move(index_path(shard.path), output)
        shutil.move(shard.path, output)
