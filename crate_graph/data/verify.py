"""Check shards against their indexes, byte for byte, and if asked sample for sample.

Of a shard on a disk nothing else does: training looks at its size alone, since its sha256, the one checksum that an
index holds, takes a reading of all of it. Training sees what does not decode, and a label that is no class. A bit that
turns a label into another class, or pixels of a JPEG into others, is seen here only: verify shards after they were
copied. What is fetched from an address is compared with its sha256 as it arrives.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from crate_graph.config.schema import Cache, Remote
from crate_graph.data.dataset import DESCRIPTION, Dataset, Split, open_dataset, shard_paths
from crate_graph.data.decode import Damaged
from crate_graph.data.index import Index, Shard, build_index, read_index, sha256_of
from crate_graph.data.progress import progress
from crate_graph.data.remote.address import is_remote
from crate_graph.data.remote.cache import ShardCache, release
from crate_graph.data.remote.file import Location, RemoteFile
from crate_graph.data.stream import SampleReader
from crate_graph.errors import UserError
from crate_graph.paths import expanded
from crate_graph.redaction import redact


@dataclass(frozen=True)
class ShardReport:
    """What was found in one shard; no problem means that it is sound."""

    shard: str
    samples: int
    problems: tuple[str, ...]


def verify_shards(target: str | Path, *, root: str | Path | None = None, decode: bool = False) -> list[ShardReport]:
    """Check a data set (name, folder, address or dataset.yaml), a folder of indexed tars, or one tar.

    What is at an address is fetched for this, one shard after the other, and not kept.

    Raises:
        UserError: there is nothing to check, or the shards of a data set are not complete.
        RunFailed: an address where the server or the network fails.
    """
    with tempfile.TemporaryDirectory(prefix="crate-graph-verify-") as folder:
        cache = ShardCache(Cache(folder=folder), Remote())
        jobs = _jobs(target, root, cache)
        if not jobs:
            shown = redact(str(root or target))
            raise UserError(f"{shown}: no shard to check; name a data set, a folder of tars, or a tar")
        work = progress(jobs, len(jobs), "shards verified")
        reports = [_verify(path, dataset, name, decode) for dataset, name, path in work]
        if not any(report.problems for report in reports):
            for name, dataset in {name: dataset for dataset, name, _ in jobs if dataset is not None}.items():
                dataset.split(name)  # raises where sound shards do not add up to the description
    return reports


def _jobs(target: str | Path, root: str | Path | None, cache: ShardCache) -> list[tuple[Dataset | None, str, Location]]:
    """(data set, split, shard) of each shard to check; a shard alone has neither."""
    if is_remote(str(target)) and urlsplit(str(target)).path.endswith(".tar"):
        return [(None, "", RemoteFile.of(str(target), cache))]
    path = expanded(target)
    if not is_remote(str(target)):
        if path.suffix == ".tar":
            return [(None, "", path)]
        if path.is_dir() and not (path / DESCRIPTION).is_file():
            return [(None, "", tar) for tar in sorted(path.glob("*.tar"))]
    dataset = open_dataset(target, root, cache)
    return [(dataset, name, shard) for name in dataset.description.splits for shard in _of_split(dataset, name)]


def _of_split(dataset: Dataset, name: str) -> list[Location]:
    return shard_paths(dataset.root, dataset.description.splits[name].shards)


def _verify(path: Location, dataset: Dataset | None, split: str, decode: bool) -> ShardReport:
    local = path
    try:
        index = read_index(path)
        if isinstance(path, RemoteFile):
            release(path.hold(index.shard.bytes, index.shard.sha256))  # compares the digest, too
            local = path.local_path(index.shard.sha256)
        return _compare(index, local, dataset, split, decode)
    except UserError as error:
        return ShardReport(Shard(path, 0, 0, "").name, 0, (str(error).replace(str(local), str(path)),))
    finally:
        if local is not path:
            local.unlink()


def _compare(index: Index, local: Path, dataset: Dataset | None, split: str, decode: bool) -> ShardReport:
    """An index with its shard, which is at `local`."""
    name = index.shard.name
    if sha256_of(local) != index.shard.sha256:
        return ShardReport(name, index.shard.samples, ("sha256 differs from the index: its bytes changed",))
    found = build_index(local)
    problems = []
    if (found.keys, found.members) != (index.keys, index.members):
        problems.append("the index does not list the members of the shard; run: crate-graph shards index")
    elif decode and dataset is not None:
        problems += _decode_all(dataset, split, index.shard)
    return ShardReport(name, index.shard.samples, tuple(problems))


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
