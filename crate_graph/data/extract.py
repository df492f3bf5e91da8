"""The samples of a data set as ordinary image files, to look at or to try a model on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

from crate_graph.data.class_folders import class_folders, folder_name
from crate_graph.data.dataset import Dataset, Split
from crate_graph.data.decode import Damaged
from crate_graph.data.index import read_index_of
from crate_graph.data.progress import progress
from crate_graph.data.stream import SampleReader
from crate_graph.errors import UserError

Files = list[tuple[int, Path]]  # number of a sample, and the file that it becomes


def extract_samples(
    dataset: Dataset, split: str, output: str | Path, count: int | None = None, *, by_class: bool = False
) -> list[Path]:
    """Write the first `count` samples of a split (None: all) into `output`, each under its key, bytes unchanged.

    `by_class`: into `output`/`split`/CLASS, with CLASS from `class_folders`, as `make_shards` and torchvision's
    ImageFolder take them. The `count` samples are then the first of each class, the second of each, and so on.

    Raises:
        UserError: what `Dataset.split` raises; a file of that name exists; the folder cannot be written; with
            `by_class`, the data set has fewer than two classes, or a label is none of its classes.
    """
    output = Path(output).expanduser()
    if by_class and dataset.num_classes < 2:
        raise UserError(
            f"{dataset.file}: {dataset.name} has fewer than two classes ({', '.join(dataset.classes)}), so there is "
            f"nothing to sort by; leave out --by-class"
        )
    opened = dataset.split(split)
    with closing(SampleReader(dataset, opened)) as reader:
        if by_class:
            files = _files_by_class(dataset, opened, reader, output / folder_name(split), count)
        else:
            names = (f"{key.replace('/', '_')}.{extension}" for key, extension in _names(opened))
            files = [(sample, output / name) for sample, name in enumerate(islice(names, count))]
        _check(files, f"{dataset.file}: two samples of the split {split}")
        _write(files, reader, output)
    return [path for _, path in files]


def _names(split: Split) -> Iterator[tuple[str, str]]:
    """Key and extension of each sample, in their order."""
    for shard in split.shards:
        index = read_index_of(shard)
        for position, key in enumerate(index.keys):
            yield key, index.image_name(position)


def _files_by_class(dataset: Dataset, split: Split, reader: SampleReader, folder: Path, count: int | None) -> Files:
    labels = _evenly(reader, split.samples, dataset.num_classes, split.samples if count is None else count)
    folders = class_folders(dataset.description.classes)
    files = []
    for sample, (key, extension) in enumerate(islice(_names(split), max(labels) + 1)):
        if sample in labels:
            kind = folders[labels[sample]]
            name = key.removeprefix(f"{kind}/").replace("/", "_")  # `make` puts the class before the name
            files.append((sample, folder / kind / f"{name}.{extension}"))
    return files


def _evenly(reader: SampleReader, samples: int, classes: int, count: int) -> dict[int, int]:
    """The labels of `count` of the samples: the first of each class, then the second of each, and so on.

    Reads no further than to where there are enough of each class.
    """
    enough = -(-count // classes)
    seen = [0] * classes
    full = 0
    turns = []  # (samples of its class before this one, sample, label)
    for sample in progress(range(samples), samples, "labels read"):
        try:
            label = reader.label(sample)
        except Damaged as error:
            raise UserError(f"{reader.where(sample)}: {error}; mend the shard, or leave out --by-class") from None
        turns.append((seen[label], sample, label))
        seen[label] += 1
        full += seen[label] == enough
        if full == classes:
            break
    return {sample: label for _, sample, label in sorted(turns)[:count]}


def _check(files: Files, two: str) -> None:
    paths: set[Path] = set()
    for _, path in files:
        if path in paths:
            raise UserError(
                f"{two} would both be written to {path}, since / in a key becomes _; make the shards of pictures with "
                f"other names"
            )
        paths.add(path)
        if os.path.lexists(path):
            raise UserError(f"{path}: exists already; choose another folder for --output")


def _write(files: Files, reader: SampleReader, output: Path) -> None:
    """Write all of the files; where that fails, none of them is there, and no folder that was not there before."""
    made: list[Path] = []
    try:
        _make_folder(output, made)
        with tempfile.TemporaryDirectory(prefix=".extract-", dir=output) as staging:
            for sample, _ in progress(files, len(files), "pictures written"):
                Path(staging, str(sample)).write_bytes(reader.image_bytes(sample))
            for sample, path in files:
                _make_folder(path.parent, made)
                Path(staging, str(sample)).rename(path)
                made.append(path)
    except BaseException as error:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"{output}: the pictures cannot be written ({error.strerror}); make room there, or choose another folder "
            f"for --output"
        ) from None


def _make_folder(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it; the new ones are added to `made`."""
    if folder.is_dir():
        return
    _make_folder(folder.parent, made)
    folder.mkdir()
    made.append(folder)
