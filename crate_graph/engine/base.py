"""The protocol of an engine, and the part of it that both adapters share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crate_graph.cluster.ranks import Ranks
from crate_graph.engine.objective import Objective

OptimizerFactory = Callable[[nn.Module], torch.optim.Optimizer]
MicroBatch = tuple[Tensor, Tensor, Tensor]  # images, targets, weights


@dataclass
class Portable:
    """Training state without a trace of engine, ZeRO stage or world size: full fp32 CPU tensors by parameter name."""

    model: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]  # moment -> parameter name -> tensor
    updates: int  # optimizer steps that were applied, not skipped


class Engine(ABC):
    """Gradients of a global batch, and their application.

    `backward` leaves the gradient of sum(loss) x scale, summed over ranks, where `grad_square` and `apply` find it.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    ranks: Ranks

    @property
    def model(self) -> nn.Module:
        """The bare model; its parameter names are those of checkpoints."""
        return self.objective.model

    @property
    def device(self) -> torch.device:
        return self.ranks.device

    @property
    @abstractmethod
    def wrapped(self) -> nn.Module:
        """What is called for a forward pass: the objective inside the engine's wrapper."""

    @abstractmethod
    def backward(self, micro_batches: Sequence[MicroBatch], scale: Tensor | float) -> tuple[Tensor, Tensor]:
        """Accumulate gradients over the micro batches; returns this rank's (loss sum, count), detached."""

    @abstractmethod
    def grad_square(self) -> Tensor:
        """This rank's share of the squared norm of the gradient; the shares of all ranks add up to the whole."""

    @abstractmethod
    def step(self) -> None:
        """Let the optimizer use the gradients, then forget them."""

    def apply(self, grad_scale: Tensor | None, found_inf: Tensor) -> None:
        """Divide the gradients by `grad_scale` and step, unless `found_inf` is 1. Nothing here waits for the device."""
        self.optimizer.grad_scale, self.optimizer.found_inf = grad_scale, found_inf
        self.step()

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

    @torch.no_grad()
    def measure(self, batch: MicroBatch) -> Tensor:
        """The task's evaluation sums of this rank's batch. Every rank must call it equally often."""
        self.wrapped.eval()
        try:
            return self.wrapped(*batch)
        finally:
            self.wrapped.train()

    @abstractmethod
    def local_parameters(self) -> dict[str, Tensor]:
        """What this rank holds of each parameter that learns: the tensor itself, or its ZeRO-3 shard."""

    @abstractmethod
    def frozen_parameters(self) -> dict[str, Tensor]:
        """The same of those that do not learn, which `local_parameters` leaves out."""

    def gradients(self) -> list[Tensor]:
        """What this rank holds of gradients when the backward pass has ended."""
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def masters(self) -> list[Tensor]:
        """This rank's part of the weights as the optimizer sees them, where it has a copy of its own."""
        return []

    @abstractmethod
    def gather(self, name: str, local: Tensor) -> Tensor:
        """The full tensor of which each rank passes its `local` part, laid out as in `local_parameters`. Collective."""

    @abstractmethod
    def shard(self, name: str, full: Tensor) -> Tensor:
        """This rank's part of a full tensor."""

    @abstractmethod
    def state(self) -> Portable:
        """Collective. Tensors are copies; they are filled in on the main process and empty elsewhere."""

    @abstractmethod
    def load_state(self, portable: Portable) -> None:
        """Every rank passes the same state."""

    def close(self) -> None:  # noqa: B027 - not every engine has something to close
        """Give back what the engine holds."""


def square_sum(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Sum of squares of all elements, as a float32 scalar on the device."""
    tensors = list(tensors)
    if not tensors:
        return torch.zeros((), device=device)
    return torch.stack(torch._foreach_norm(tensors)).float().square().sum()


def to_host(tensor: Tensor) -> Tensor:
    """A float32 copy on the CPU that later training steps do not touch."""
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
