"""The accelerate engine: data parallelism by DDP, on GPU or CPU.

Accelerate places and wraps the model, nothing else: its prepared loaders would make every rank read the whole stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from crate_graph.cluster.ranks import Ranks
from crate_graph.engine.base import Engine, MicroBatch, OptimizerFactory, Portable, square_sum, to_host
from crate_graph.engine.objective import Objective
from crate_graph.engine.optimizers import fresh_state


class AccelerateEngine(Engine):
    def __init__(self, objective: Objective, make_optimizer: OptimizerFactory, ranks: Ranks):
        self.ranks = ranks
        self.objective = objective
        self._wrapped = self._prepare(objective)
        self.optimizer = make_optimizer(objective.model)
        self._params = {name: p for name, p in objective.model.named_parameters() if p.requires_grad}
        self._wrapped.train()

    def _prepare(self, objective: Objective) -> nn.Module:
        if self.ranks.world == 1:
            return objective.to(self.device)
        # The objective casts by itself, alike under every engine; Accelerate is told to leave precision alone.
        accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            mixed_precision="no",
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        if accelerator.num_processes != self.ranks.world:
            raise RuntimeError(
                f"accelerate sees {accelerator.num_processes} processes, the launcher started {self.ranks.world}"
            )
        return accelerator.prepare_model(objective)

    @property
    def wrapped(self) -> nn.Module:
        return self._wrapped

    def backward(self, micro_batches: Sequence[MicroBatch], scale: Tensor | float) -> tuple[Tensor, Tensor]:
        loss_sums, counts = [], []
        for number, micro_batch in enumerate(micro_batches, start=1):
            last = number == len(micro_batches)
            with nullcontext() if last or self.ranks.world == 1 else self._wrapped.no_sync():
                loss_sum, count = self._wrapped(*micro_batch)
                (loss_sum * scale * self.ranks.world).backward()  # DDP averages; the global count is in the scale
            loss_sums.append(loss_sum.detach())
            counts.append(count.detach())
        return torch.stack(loss_sums).sum(), torch.stack(counts).sum()

    def grad_square(self) -> Tensor:
        grads = [p.grad for p in self._params.values() if p.grad is not None]
        return square_sum(grads, self.device) / self.ranks.world  # every rank holds the whole gradient

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self.ranks.world == 1)  # under DDP gradients are views of its buckets

    def local_parameters(self) -> dict[str, Tensor]:
        return {name: p.data for name, p in self._params.items()}

    def frozen_parameters(self) -> dict[str, Tensor]:
        return {name: p.data for name, p in self.model.named_parameters() if name not in self._params}

    def gather(self, name: str, local: Tensor) -> Tensor:
        return local

    def shard(self, name: str, full: Tensor) -> Tensor:
        return full

    def state(self) -> Portable:
        states = self.optimizer.state
        updates = max((int(s["step"].item()) for s in states.values() if s), default=0)
        if not self.ranks.is_main:
            return Portable({}, {}, updates)
        model = {name: to_host(tensor) for name, tensor in self.model.state_dict().items()}
        moments = {
            key: {name: to_host(states[p][key]) for name, p in self._params.items() if states[p]}
            for key in self.optimizer.moments
        }
        return Portable(model, moments, updates)

    @torch.no_grad()
    def load_state(self, portable: Portable) -> None:
        self.model.load_state_dict(portable.model)
        for name, p in self._params.items():
            self.optimizer.state[p] = fresh_state(self.optimizer, p, portable.updates)
            for key, tensors in portable.moments.items():
                if name in tensors:
                    self.optimizer.state[p][key].copy_(tensors[name])
