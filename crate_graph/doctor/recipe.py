"""Whether a recipe can run here: its batches on so many processes, and its shards from each host."""

from __future__ import annotations

import time

from crate_graph.config.schema import Recipe
from crate_graph.data import Dataset, open_dataset
from crate_graph.data.decode import Damaged
from crate_graph.data.remote.cache import ShardCache
from crate_graph.data.stream import SampleReader
from crate_graph.doctor.check import Check

SAMPLES, SECONDS = 256, 10.0  # read of each split, at most


def check_batches(recipe: Recipe, world: int) -> list[Check]:
    """Raises UserError: the global batch or the slots do not divide."""
    micro, accumulation = recipe.batch.resolve(world)
    readers = world * max(recipe.data.workers, 1)
    found = f"{recipe.batch.global_batch} = {micro} x accumulation {accumulation} x {world} processes"
    if recipe.data.slots % readers:
        remedy = f"choose data.workers so that {world} x workers divides data.slots, or other slots"
        return [Check("batches", "failed", f"{found}; {recipe.data.slots} slots for {readers} readers", remedy)]
    return [Check("batches", "ok", f"{found}; {recipe.data.slots // readers} slots for each reader")]


def check_shards(recipe: Recipe) -> list[Check]:
    """The first shard of each split, fetched, read and decoded as a loader does.

    Raises:
        UserError, RunFailed: the data set or the shard cannot be opened or fetched.
    """
    data = recipe.data
    dataset = open_dataset(data.dataset, data.root, ShardCache(data.cache, data.remote))
    splits = dict.fromkeys((data.train_split, data.eval_split))
    return [
        _read_first(dataset, name) for name in splits if name in dataset.description.splits or name == data.train_split
    ]


def _read_first(dataset: Dataset, name: str) -> Check:
    split = dataset.split(name)
    shard = split.shards[0]
    reader = SampleReader(dataset, split)
    read = nbytes = damaged = 0
    began = time.perf_counter()
    try:
        for sample in range(min(shard.samples, SAMPLES)):
            nbytes += len(reader.image_bytes(sample))
            try:
                reader.read(sample)
            except Damaged:
                damaged += 1
            read += 1
            if time.perf_counter() - began > SECONDS:
                break
    finally:
        reader.close()
    seconds = time.perf_counter() - began
    rates = f"{read / seconds:.0f} images/s, {nbytes / seconds / 1e6:.3g} MB/s"
    found = f"{shard.path}: {read} images in {seconds:.3g} s, {rates}"
    if damaged:
        found, remedy = f"{found}; {damaged} of them damaged", "crate-graph shards verify --decode names them"
        return Check(f"shards of {name}", "warning", found, remedy)
    return Check(f"shards of {name}", "ok", found)


def shared_bytes(recipe: Recipe, world: int, processes: int) -> float:
    """What the loader workers of a host keep in shared memory: float32 batches in colour, made ahead and in use."""
    data = recipe.data
    if not data.workers:
        return 0.0
    side = data.patch if recipe.task.kind == "restoration" else data.train_transform.size
    of_process = recipe.batch.global_batch / world * 3 * side**2 * 4
    return processes * of_process * (data.prefetch + 1)
