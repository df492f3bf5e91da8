"""The planned stream, decoded: this rank's share of every global batch, read by worker processes.

A task is (epoch, step, part); `part` is a group of slots. Tasks carry all that a worker needs, so workers keep no
position: they stay alive across epochs, and a restart in the middle of an epoch reads nothing that it skips. The plan
fixes what a task yields, hence who does it changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from crate_graph.data.batch import Batch, join
from crate_graph.data.dataset import Dataset, Split
from crate_graph.data.decode import Damaged
from crate_graph.data.outlook import Outlook
from crate_graph.data.plan import PAD, EpochPlan, plan_epoch
from crate_graph.data.stream import DamagedSample, SampleReader
from crate_graph.data.workers import guard_worker
from crate_graph.errors import RunFailed, UserError

Task = tuple[int, int, int]  # epoch, step, part
INLINE = 1 << 20  # bytes; 15 % faster per batch at 200 kB than shared memory


class Transform(Protocol):
    """What the model sees of a sample, and its target: `TrainView`, `EvalView`, `PatchView`, `KeyedView`."""

    shape: tuple[int, int, int]  # (H, W, C) of a view
    mixes: bool  # whether samples of a slot are mixed

    def view(self, image: Image.Image, key: tuple[int, ...]) -> np.ndarray:
        """The (H, W, C) uint8 part of one picture that belongs to `key`, (seed, epoch, sample)."""

    def batch(
        self,
        pixels: np.ndarray,
        labels: np.ndarray,
        keys: Sequence[tuple[int, ...]],
        slots: Sequence[tuple[int, ...]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Views (n, H, W, C), labels (n,), their keys, and the (seed, epoch, step, slot) of each slot that gave an
        equal part of them -> images and targets of the batch.
        """


class PlannedLoader:
    """Yields this rank's share of each global batch of a split, in the planned order.

    Args:
        split: name of the split.
        dataset: from `open_dataset`.
        transform: from `build_train_transform` or `build_eval_transform`, or a `PatchView`.
        seed, slots, global_batch, block, shuffle, tail: the plan, see `plan_epoch`.
        rank, world: this process among those that share the global batch.
        workers: loader processes of this rank; 0 reads here.
        prefetch: steps that the workers are ahead.
        replace_damaged: True gives a damaged sample's place to the next good one (training); False gives it weight 0
            (evaluation).
        pin_memory: batches come in page-locked memory, ready for a non-blocking copy to a GPU.

    Raises:
        UserError: the slots do not divide among the ranks and workers; what `Dataset.split` and `plan_epoch` raise.
    """

    def __init__(
        self,
        split: str,
        *,
        dataset: Dataset,
        transform: Transform,
        slots: int,
        global_batch: int,
        seed: int = 0,
        block: int = 1024,
        shuffle: bool = True,
        tail: Literal["drop", "pad"] = "drop",
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        prefetch: int = 2,
        replace_damaged: bool = True,
        pin_memory: bool = False,
    ):
        readers = world * max(workers, 1)
        if slots % readers:
            raise UserError(
                f"{slots} slots do not divide among {world} processes x {max(workers, 1)} workers; set data.workers "
                f"so that {world} x workers divides {slots}, or choose other data.slots (that changes the batches)"
            )
        if transform.mixes and tail == "pad":
            raise ValueError("mixup would mix padding into samples; use tail='drop'")
        self.split = dataset.split(split)
        self._parts = max(workers, 1)
        self._pin_memory = pin_memory
        self._reader = _PartReader(
            dataset,
            self.split,
            transform,
            dict(seed=seed, slots=slots, global_batch=global_batch, block=block, shuffle=shuffle, tail=tail),
            first_slot=rank * slots // world,
            part_slots=slots // readers,
            replace_damaged=replace_damaged,
        )
        self._reader.plan(0)  # says now, not at the first batch, that there are too few samples
        self._tasks = _Tasks()
        self._workers = self._start(workers, prefetch) if workers else None
        self._results: Iterator[Any] | None = None

    def plan(self, epoch: int) -> EpochPlan:
        return self._reader.plan(epoch)

    def steps(self, epoch: int = 0) -> int:
        """Steps of an epoch, the same on every rank."""
        return self.plan(epoch).steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's share of the global batches from step `start` on. Nothing before `start` is read.

        Only one epoch can be under way: to ask for another one ends it.

        Raises:
            UserError: a shard that is not what its index says, a label outside the classes, too much damage.
            RunFailed: a shard that cannot be fetched.
        """
        steps = range(start, self.steps(epoch))
        if self._workers is None:
            for step in steps:
                yield join([self._reader.read((epoch, step, 0))], self._pin_memory)
            return
        self._tasks.tasks = [(epoch, step, part) for step in steps for part in range(self._parts)]
        self._results = iter(self._workers)
        for _ in steps:
            yield join([_unpack(next(self._results)) for _ in range(self._parts)], self._pin_memory)

    def close(self) -> None:
        """End the worker processes and close files. The loader is not used after that."""
        if self._workers is not None:
            self._workers = self._results = None  # the iterator's finaliser ends the processes
        self._reader.close()

    def _start(self, workers: int, prefetch: int) -> DataLoader:
        return DataLoader(
            self._reader,
            batch_size=None,
            collate_fn=_as_is,
            sampler=self._tasks,
            num_workers=workers,
            prefetch_factor=prefetch,
            persistent_workers=True,
            worker_init_fn=guard_worker,
            # Workers touch neither a GPU nor a process group, so a fork is safe, and it repeats no imports.
            multiprocessing_context="fork" if sys.platform == "linux" else None,
            generator=torch.Generator(),  # else each epoch would draw a number from the caller's generator
        )


class _Tasks:
    """The tasks of the epoch under way, in the form of a sampler; DataLoader deals them to the workers in turn."""

    def __init__(self):
        self.tasks: list[Task] = []

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


@dataclass(frozen=True)
class _Failure:
    """What a worker met and can name: travels as a value, since torch wraps an exception into a traceback."""

    kind: type[UserError] | type[RunFailed]
    message: str


class _PartReader:
    """Makes the batch of a task. The same object serves in this process or, copied, in each worker."""

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        transform: Transform,
        plan: dict[str, Any],
        *,
        first_slot: int,
        part_slots: int,
        replace_damaged: bool,
    ):
        self._samples = SampleReader(dataset, split)
        self._counts = split.shard_samples
        self._transform = transform
        self._plan_arguments = plan
        self._first_slot = first_slot
        self._part_slots = part_slots
        self._replace = replace_damaged
        self._plans: dict[int, EpochPlan] = {}
        self._outlook = Outlook(split.first_samples(), plan["block"], self._samples.looks_ahead)

    def plan(self, epoch: int) -> EpochPlan:
        """The plan of `epoch`; the last two asked for are kept."""
        if epoch not in self._plans:
            while len(self._plans) > 1:
                del self._plans[next(iter(self._plans))]
            self._plans[epoch] = plan_epoch(self._counts, epoch=epoch, **self._plan_arguments)
        return self._plans[epoch]

    def __getitem__(self, task: Task) -> Any:
        """As `read`, in a form that crosses to the training process."""
        try:
            return _pack(self.read(task))
        except (UserError, RunFailed) as error:
            return _Failure(RunFailed if isinstance(error, RunFailed) else UserError, str(error))

    def read(self, task: Task) -> Batch:
        epoch, step, part = task
        seed, plan = self._plan_arguments["seed"], self.plan(epoch)
        q = plan.per_slot
        slots = range(self._first_slot + part * self._part_slots, self._first_slot + (part + 1) * self._part_slots)
        if self._samples.remote:
            shuffled = self._plan_arguments["shuffle"]  # else the epoch is that of an evaluation, and none follows
            self._samples.expect(self._outlook.shards(plan, slots, step, self.plan(epoch + 1) if shuffled else None))
        numbers = np.concatenate([plan.slot(slot)[step * q : (step + 1) * q] for slot in slots])
        keys = [(seed, epoch, number) for number in numbers.tolist()]
        pixels = np.zeros((len(numbers), *self._transform.shape), dtype=np.uint8)  # (n, H, W, C)
        labels = np.zeros(len(numbers), dtype=np.int64)
        weights = (numbers != PAD).astype(np.float32)
        damaged = []
        for place in np.flatnonzero(weights).tolist():
            image, labels[place], damage = self._sample(keys[place][-1])
            if damage is not None:
                damaged.append(damage)
            if image is None:
                weights[place] = 0
            else:
                pixels[place] = self._view(image, keys[place])
        images, targets = self._transform.batch(pixels, labels, keys, [(seed, epoch, step, slot) for slot in slots])
        images[weights == 0] = 0
        return Batch(images, targets, torch.from_numpy(weights), torch.from_numpy(numbers), damaged)

    def close(self) -> None:
        self._samples.close()

    def _view(self, image: Image.Image, key: tuple[int, ...]) -> np.ndarray:
        try:
            return self._transform.view(image, key)
        except UserError as error:
            raise UserError(f"{self._samples.where(key[-1])}: {error}") from None

    def _sample(self, number: int) -> tuple[Any, int, DamagedSample | None]:
        if self._replace:
            return self._samples.read_or_replace(number)
        try:
            return *self._samples.read(number), None
        except Damaged as error:
            return None, 0, self._samples.describe(number, error)


def _as_is(packed: Any) -> Any:
    return packed


def _pack(batch: Batch) -> Any:
    """Large tensors cross through shared memory, at a price each; what is small is cheaper sent as bytes."""
    tensors = (batch.images, batch.targets, batch.weights, batch.samples)
    return [tensor.numpy() if tensor.nbytes < INLINE else tensor for tensor in tensors], batch.damaged


def _unpack(packed: Any) -> Batch:
    if isinstance(packed, _Failure):
        raise packed.kind(packed.message)
    tensors, damaged = packed
    return Batch(*map(torch.as_tensor, tensors), damaged)
