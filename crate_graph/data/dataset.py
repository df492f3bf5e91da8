"""What a data set is: the description in `dataset.yaml`, and the shards that it names."""

from __future__ import annotations

import difflib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np
import yaml
from braceexpand import braceexpand
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from crate_graph.config.schema import Cache, Remote
from crate_graph.data.index import Shard, read_shard, sha256_of_shards
from crate_graph.data.progress import progress
from crate_graph.data.remote.address import PIPE, is_remote
from crate_graph.data.remote.cache import ShardCache
from crate_graph.data.remote.fetch import MissingFile
from crate_graph.data.remote.file import Location, RemoteFile
from crate_graph.errors import UserError
from crate_graph.paths import expanded
from crate_graph.shipped import shipped_folder

DESCRIPTION = "dataset.yaml"
MOST_CLASSES = 1_000_000
MOST_SHARDS = 1_000_000  # names that one pattern may stand for
INDEX_READERS = 16  # indexes asked for at once, where they are at an address


class SplitDescription(BaseModel):
    """One split: a pattern of shard names (`{000000..000003}` or `*`) and what the shards must add up to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shards: str
    samples: Annotated[int, Field(gt=0)] | None = None
    bytes: Annotated[int, Field(gt=0)] | None = None
    sha256: str | None = None  # of the list of the shards' digests, see `index.sha256_of_shards`

    @field_validator("shards")
    @classmethod
    def _names_shards(cls, pattern: str) -> str:
        if "*" not in pattern:
            _expand(pattern)
        elif Path(pattern).is_absolute() or any("**" in part and part != "**" for part in Path(pattern).parts):
            raise ValueError(f"{pattern!r} finds no shards; * stands in a path below the folder of the shards")
        return pattern


class Description(BaseModel):
    """The schema of `dataset.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    licence: str
    source: str  # how to get the original
    channels: Annotated[int, Field(ge=1)]
    classes: (
        Annotated[int, Field(gt=0, le=MOST_CLASSES)] | Annotated[list[str], Field(max_length=MOST_CLASSES)]
    )  # names in the order of the labels, or only how many
    mean: list[float]  # of pixels in [0, 1], per channel
    std: list[Annotated[float, Field(ge=1e-6)]]
    splits: dict[str, SplitDescription]

    @model_validator(mode="after")
    def _one_value_per_channel(self):
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels}; images are grey (1) or colour (3)")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need {self.channels} values each, one per channel")
        if isinstance(self.classes, list) and len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have one name")
        return self


@dataclass(frozen=True)
class Split:
    """The shards of one split, in natural order. Sample n is counted through them from 0."""

    name: str
    shards: tuple[Shard, ...]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def shard_samples(self) -> list[int]:
        return [shard.samples for shard in self.shards]

    def first_samples(self) -> np.ndarray:
        """Number of the first sample of each shard: (shards,) int64."""
        counts = np.array(self.shard_samples, dtype=np.int64)
        return np.cumsum(counts) - counts


@dataclass(frozen=True)
class Dataset:
    """A data set: its description, and the folder where its shards are."""

    description: Description
    file: Location  # the dataset.yaml
    root: Location  # the folder of the shards

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def channels(self) -> int:
        return self.description.channels

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(self.description.mean)

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self.description.std)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the labels; where the description only counts them, the numbers."""
        given = self.description.classes
        return tuple(given) if isinstance(given, list) else tuple(str(number) for number in range(given))

    @property
    def num_classes(self) -> int:
        given = self.description.classes
        return len(given) if isinstance(given, list) else given

    def split(self, name: str) -> Split:
        """Open the shards of a split (the first line of each index).

        Raises:
            UserError: no such split; a shard or an index is missing or does not match; the shards do not add up to
                what the description says.
        """
        if name not in self.description.splits:
            raise UserError(
                f"{self.file}: data set {self.name} has no split {name!r}; it has {', '.join(self.description.splits)}"
            )
        expected = self.description.splits[name]
        paths = shard_paths(self.root, expected.shards)
        if not paths:
            raise UserError(
                f"{self.root}: no shard {expected.shards} of {self.name} ({name}); set data.root to the folder that "
                f"has them, or get the data: {' '.join(self.description.source.split())}"
            )
        split = Split(name, _read_shards(paths))
        found = {
            "samples": split.samples,
            "bytes": sum(shard.bytes for shard in split.shards),
            "sha256": sha256_of_shards(split.shards),
        }
        for what, value in found.items():
            wanted = getattr(expected, what)
            if wanted is not None and wanted != value:
                raise UserError(
                    f"{self.root}: the {len(paths)} shards {expected.shards} have {what} {value}, but {self.file} says "
                    f"{wanted}; fetch the shards that are missing or changed, or make them again with: "
                    f"crate-graph shards make"
                )
        return split


def open_dataset(name_or_path: str | Path, root: str | Path | None = None, cache: ShardCache | None = None) -> Dataset:
    """Open a shipped data set by name, or any by its folder, its address or its `dataset.yaml`. No shard is opened yet.

    Args:
        name_or_path: for instance "fashion_mnist", a folder that `crate-graph shards make` wrote, or where it was
            uploaded to: "https://host/shards".
        root: folder or address of the shards, where it is not the folder of `dataset.yaml`.
        cache: where files at an address are kept, and how they are fetched; by default as the recipe's defaults say.

    Raises:
        UserError: unknown name, or a `dataset.yaml` that does not fit the schema.
        RunFailed: an address where the server or the network fails.
    """
    cache = cache or ShardCache(Cache(), Remote())
    file = _description_file(str(name_or_path), cache)
    description = read_description(file)
    if root is None:
        folder = file.parent
    else:
        folder = RemoteFile(str(root), cache=cache) if is_remote(str(root)) else expanded(root)
    return Dataset(description, file, folder)


def read_description(file: Location) -> Description:
    """Read and check a `dataset.yaml`. Raises UserError naming the file and the field."""
    try:
        text = file.read_bytes().decode()
        return check_description(yaml.safe_load(text), file)
    except MissingFile as error:
        raise UserError(f"{error}; where only the shards are there, name it with data.root") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: the file is not UTF-8; save it as UTF-8") from None
    except RecursionError:
        raise UserError(f"{file}: brackets inside brackets without end; see a shipped data set for the form") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise UserError(f"{file}: this is not YAML: {' '.join(str(error).split())}") from None


def check_description(content: Any, file: Location) -> Description:
    """The content of `file` against the schema. Raises UserError naming the field."""
    try:
        description = Description.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "content"
        raise UserError(f"{file}: {where}: {first['msg']}; see a shipped data set for the form") from None
    for field, value in description.model_dump().items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{file}: {field}: holds a half of a surrogate pair (\\ud800 to \\udfff); write the whole character"
            ) from None
    return description


def shipped_datasets() -> list[str]:
    return sorted(path.parent.name for path in shipped_folder("datasets").glob(f"*/{DESCRIPTION}"))


def shard_paths(root: Location, pattern: str) -> list[Location]:
    """The shards that a pattern names: `*` finds what is there, `{000000..000003}` says what must be there.

    Raises:
        UserError: `*` at an address that cannot list its files.
    """
    if "*" in pattern and isinstance(root, RemoteFile):
        return sorted(root.glob(pattern), key=lambda file: file.name.split("/"))  # the order of paths
    if "*" in pattern:
        return sorted(root.glob(pattern))
    return [root / name for name in _expand(pattern)]


def _read_shards(paths: list[Location]) -> tuple[Shard, ...]:
    """At an address many at a time: each is a question to a server."""
    if not isinstance(paths[0], RemoteFile):
        return tuple(read_shard(path) for path in paths)
    pool = ThreadPoolExecutor(INDEX_READERS)
    try:
        return tuple(progress(pool.map(read_shard, paths), len(paths), "indexes read"))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _expand(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for. Raises ValueError: braces without a pair, or too many names."""
    spans = re.findall(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}", pattern)
    names = []
    if all(abs(int(last) - int(first)) < MOST_SHARDS for first, last in spans):  # braceexpand holds a range whole
        names = list(islice(braceexpand(pattern), MOST_SHARDS + 1))
    if not 0 < len(names) <= MOST_SHARDS:
        raise ValueError(f"{pattern!r} stands for more than {MOST_SHARDS} shards; name fewer")
    return names


def _description_file(name_or_path: str, cache: ShardCache) -> Location:
    if is_remote(name_or_path):
        if name_or_path.startswith(PIPE) or not urlsplit(name_or_path).path.endswith((".yaml", ".yml")):
            return RemoteFile(name_or_path, DESCRIPTION, cache)
        return RemoteFile.of(name_or_path, cache)
    path = expanded(name_or_path)
    if path.is_file():
        return path
    if (path / DESCRIPTION).is_file():
        return path / DESCRIPTION
    names = shipped_datasets()
    if name_or_path in names:
        return shipped_folder("datasets") / name_or_path / DESCRIPTION
    if path.is_dir():
        raise UserError(f"{path}: the folder has no {DESCRIPTION}; make it with: crate-graph shards make")
    near = difflib.get_close_matches(name_or_path, names, n=3) or names
    raise UserError(
        f"data set {name_or_path!r} is neither shipped nor a folder with {DESCRIPTION}; did you mean {', '.join(near)}?"
    )
