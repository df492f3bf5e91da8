"""The process group: joined once at the start of a run, left at its end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist

from crate_graph.cluster.meeting import meet
from crate_graph.cluster.ranks import Ranks, export
from crate_graph.errors import RunFailed, UserError

T = TypeVar("T")


@contextmanager
def process_group(ranks: Ranks, *, timeout: timedelta = timedelta(minutes=10)) -> Iterator[None]:
    """Join the default process group for the length of the block, also when this process is alone.

    A process that ends without leaving the group may abort at exit, and a finished run would look like a failed one.

    Raises:
        UserError: no GPU is left for this process; or, on all of them, the processes do not find each other or do not
            fit together: see `meeting.meet`.
    """
    store = dist.HashStore() if ranks.world == 1 else meet(ranks, _mistake(ranks))
    device = ranks.device
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    export(ranks)
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it says on every rank that it found no GPU
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # collectives that the flight recorder remembers
    dist.init_process_group(backend, timeout=timeout, store=store, rank=ranks.rank, world_size=ranks.world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _mistake(ranks: Ranks) -> UserError | None:
    """Why this process has no device."""
    try:
        ranks.device  # noqa: B018 - it is computed
    except UserError as error:
        return error
    return None


def end_process(code: int) -> NoReturn:
    """End one of several processes, all of whose work is done, without the destructors of native code.

    Threads of gloo abort in them now and then, and a finished run would look like a failed one.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def limit_collectives(device: torch.device, seconds: float) -> None:
    """From now on a collective of the default group that takes longer than `seconds` fails."""
    dist.group.WORLD._get_backend(device)._set_default_timeout(timedelta(seconds=seconds))


def from_main(ranks: Ranks, value: T) -> T:
    """The main process's `value`, on every process."""
    if ranks.world == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(ranks: Ranks, value: T) -> list[T]:
    """`value` of every process, on all of them."""
    if ranks.world == 1:
        return [value]
    values: list[T] = [value] * ranks.world
    dist.all_gather_object(values, value)
    return values


@contextmanager
def agree(ranks: Ranks) -> Iterator[None]:
    """Where one process meets a user's mistake or a failure in the block, all raise it, so that none waits for one that
    is gone.

    The block itself must not communicate.
    """
    mistake: UserError | RunFailed | None = None
    try:
        yield
    except (UserError, RunFailed) as error:
        mistake = error
    mistakes = gather(ranks, mistake)  # also where this process has one of its own
    mistake = mistake or next(filter(None, mistakes), None)
    if mistake is not None:
        raise mistake


@contextmanager
def naming_a_lost_peer() -> Iterator[None]:
    """Where another process has ended, the block fails because of that: say so, without a traceback.

    Raises:
        RunFailed: in the place of the RuntimeError of a connection that was closed.
    """
    try:
        yield
    except RuntimeError as error:
        if "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error):
            raise RunFailed("another process of the run has ended; its own message or log says why") from error
        if "Timed out waiting" in str(error):
            raise RunFailed("a collective timed out: another process of the run stands still; see its log") from error
        raise
