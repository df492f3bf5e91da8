"""Check shards against their indexes, byte for byte, and if asked sample for sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crate_graph.data.dataset import DESCRIPTION, Dataset, Split, open_dataset, shard_paths
from crate_graph.data.decode import Damaged
from crate_graph.data.index import Shard, build_index, read_index, sha256_of
from crate_graph.data.progress import progress
from crate_graph.data.stream import SampleReader
from crate_graph.errors import UserError


@dataclass(frozen=True)
class ShardReport:
    """What was found in one shard; no problem means that it is sound."""

    shard: str
    samples: int
    problems: tuple[str, ...]


def verify_shards(target: str | Path, *, root: str | Path | None = None, decode: bool = False) -> list[ShardReport]:
    """Check a data set (name, folder or dataset.yaml), a folder of indexed tars, or one tar.

    Raises:
        UserError: there is nothing to check, or the shards of a data set are not complete.
    """
    path = Path(target).expanduser()
    if path.suffix == ".tar":
        jobs = [(None, "", path)]
    elif path.is_dir() and not (path / DESCRIPTION).is_file():
        jobs = [(None, "", tar) for tar in sorted(path.glob("*.tar"))]
    else:
        dataset = open_dataset(target, root)
        jobs = [(dataset, name, shard) for name in dataset.description.splits for shard in _of_split(dataset, name)]
    if not jobs:
        raise UserError(f"{root or target}: no shard to check; name a data set, a folder of tars, or a tar")
    work = progress(jobs, len(jobs), "shards verified")
    reports = [_verify(path, dataset, name, decode) for dataset, name, path in work]
    if not any(report.problems for report in reports):
        for name in {name for dataset, name, _ in jobs if dataset is not None}:
            dataset.split(name)  # raises where sound shards do not add up to the description
    return reports


def _of_split(dataset: Dataset, name: str) -> list[Path]:
    return shard_paths(dataset.root, dataset.description.splits[name].shards)


def _verify(path: Path, dataset: Dataset | None, split: str, decode: bool) -> ShardReport:
    try:
        index = read_index(path)
        if sha256_of(path) != index.shard.sha256:
            return ShardReport(path.name, index.shard.samples, ("sha256 differs from the index: its bytes changed",))
        found = build_index(path)
    except UserError as error:
        return ShardReport(path.name, 0, (str(error),))
    problems = []
    if (found.keys, found.members) != (index.keys, index.members):
        problems.append("the index does not list the members of the shard; run: crate-graph shards index")
    elif decode and dataset is not None:
        problems += _decode_all(dataset, split, index.shard)
    return ShardReport(path.name, index.shard.samples, tuple(problems))


def _decode_all(dataset: Dataset, split: str, shard: Shard) -> list[str]:
    reader = SampleReader(dataset, Split(split, (shard,)))
    problems = []
    for sample in range(shard.samples):
        try:
            reader.read(sample)
        except Damaged as error:
            problems.append(f"sample {reader.key(sample)!r}: {error}")
        except UserError as error:
            problems.append(str(error))
    reader.close()
    return problems
