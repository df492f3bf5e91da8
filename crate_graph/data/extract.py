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
from crate_graph.errors import FULL_DISK, UserError
from crate_graph.paths import expanded
from crate_graph.whole_files import nearest

Files = list[tuple[int, Path]]  # number of a sample, and the file that it becomes
_LONGEST = 255  # bytes of a file name, that file systems take


def extract_samples(
    dataset: Dataset, split: str, output: str | Path, count: int | None = None, *, by_class: bool = False
) -> list[Path]:
    """Write the first `count` samples of a split (None: all) into `output`, each under its key, bytes unchanged.

    `by_class`: into `output`/`split`/CLASS, with CLASS from `class_folders`, as `make_shards` and torchvision's
    ImageFolder take them. The `count` samples are then the first of each class, the second of each, and so on.

    Raises:
        UserError: what `Dataset.split` raises; a file of that name exists; the folder is none, or cannot be written;
            with `by_class`, the data set has fewer than two classes, or a label is none of its classes.
    """
    output = _folder(output)
    if by_class and dataset.num_classes < 2:
        raise UserError(
            f"{dataset.file}: {dataset.name} has fewer than two classes ({', '.join(dataset.classes)}), so there is "
            f"nothing to sort by; leave out --by-class"
        )
    opened = dataset.split(split)
    with closing(SampleReader(dataset, opened)) as reader:
        folder = output / folder_name(split) if by_class else output
        if by_class:
            files = _files_by_class(dataset, opened, reader, folder, count)
        else:
            names = (f"{key.replace('/', '_')}.{extension}" for key, extension in _names(opened))
            files = [(sample, output / name) for sample, name in enumerate(islice(names, count))]
        _check(files, f"{dataset.file}: two samples of the split {split}")
        _write(files, reader, folder)
    return [path for _, path in files]


def _folder(output: str | Path) -> Path:
    if not str(output):
        raise UserError("--output: is empty; name a folder")
    output = expanded(output)
    if ".." in output.parts:  # where it would lead through folders that are still to be made
        output = Path(os.path.realpath(output))
    if not (stands := nearest(output)).is_dir():
        raise UserError(f"{stands}: is no folder; choose another folder for --output")
    return output


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
        if len(os.fsencode(path.name)) > _LONGEST:
            raise UserError(
                f"{path}: a file name has at most {_LONGEST} bytes; make the shards of pictures with shorter names"
            )
        if os.path.lexists(path):
            raise UserError(f"{path}: exists already; choose another folder for --output")


def _write(files: Files, reader: SampleReader, folder: Path) -> None:
    """Write all of the files, which lie in `folder`; where that fails, none of them is there.

    A new folder appears at once with all that is in it, even where the process is killed. In one that is there already
    the files appear one after the other, when all of them are written under hidden names.
    """
    place = nearest(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".extract-", dir=place) as hidden:
            staged = [Path(hidden, path.relative_to(place)) for _, path in files]
            for (sample, _), file in progress(list(zip(files, staged, strict=True)), len(files), "pictures written"):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(reader.image_bytes(sample))
            if place == folder:
                _move([(file, path) for file, (_, path) in zip(staged, files, strict=True)])
            else:
                top = folder.relative_to(place).parts[0]
                Path(hidden, top).rename(place / top)
    except OSError as error:
        room = "make room there, or " if error.errno in FULL_DISK else ""
        raise UserError(
            f"{folder}: the pictures cannot be written ({error.strerror}); {room}choose another folder for --output"
        ) from None


def _move(moves: list[tuple[Path, Path]]) -> None:
    """Rename each file; where that fails, those that were renamed are removed, and the folders that were made."""
    moved: list[Path] = []
    made: list[Path] = []  # noted before they are there: a signal may come in between
    try:
        for file, path in moves:
            _make_folder(path.parent, made)
            moved.append(path)
            file.rename(path)
    except BaseException:
        for path in moved:
            with suppress(OSError):
                path.unlink()
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir()
        raise


def _make_folder(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it; the new ones are added to `made`."""
    if folder.is_dir():
        return
    _make_folder(folder.parent, made)
    made.append(folder)
    folder.mkdir()
