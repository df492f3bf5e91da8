"""Rank discovery: the one reader of the environment variables that a launcher sets."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from crate_graph.errors import UserError

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """Place of this process: `rank` of `world` processes, `local_rank` on its host."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank)
        return torch.device("cpu")


def discover() -> Ranks:
    """Read the place of this process from torchrun's variables; without them it is alone.

    Raises:
        UserError: some of the variables are set and others are not, or they contradict each other.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return Ranks()
    missing = [name for name in _TORCHRUN if name not in os.environ]
    if missing:
        raise UserError(
            f"environment: {', '.join(missing)} not set although RANK or WORLD_SIZE is; start with torchrun"
        )
    try:
        rank, world, local_rank = (int(os.environ[name]) for name in _TORCHRUN[:3])
    except ValueError as error:
        raise UserError(f"environment: RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers ({error})") from None
    if not 0 <= rank < world:
        raise UserError(f"environment: RANK={rank} is not below WORLD_SIZE={world}; start with torchrun")
    return Ranks(rank, world, local_rank)
