"""The deepspeed engine: `deepspeed.initialize` used directly, ZeRO stages 0 to 3.

DeepSpeed sees an fp32 model and a client optimizer. Autocast lives in the objective, clipping and the skip in the
optimizer, so the numbers are those of the accelerate engine; DeepSpeed partitions and communicates.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crate_graph.cluster.ranks import Ranks
from crate_graph.engine.base import Engine, MicroBatch, OptimizerFactory, Portable, square_sum, to_host
from crate_graph.engine.objective import Objective
from crate_graph.engine.optimizers import fresh_state

_LARGEST_BUCKET = 500_000_000  # elements: DeepSpeed's own size, which it reserves for the smallest model too


def reduce_bucket(elements: int) -> int:
    """Elements of the bucket in which ZeRO stages 1 to 3 gather gradients of a model that trains so many."""
    return max(1, min(elements, _LARGEST_BUCKET))


def deepspeed_config(stage: int, *, elements: int, micro_batch: int, accumulation: int, world: int) -> dict[str, Any]:
    """The JSON that DeepSpeed reads; everything else of the recipe is applied outside of it.

    Args:
        elements: of the parameters that are trained.
    """
    return {
        "train_batch_size": micro_batch * accumulation * world,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": reduce_bucket(elements),
            "stage3_param_persistence_threshold": 0,  # every parameter is partitioned, small ones too
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.0,  # the default is 1.0
        "steps_per_print": None,
    }


class DeepSpeedEngine(Engine):
    def __init__(
        self,
        objective: Objective,
        make_optimizer: OptimizerFactory,
        ranks: Ranks,
        *,
        stage: int,
        micro_batch: int,
        accumulation: int,
    ):
        deepspeed = _import_deepspeed()
        self.ranks, self.objective, self.stage = ranks, objective, stage
        objective.to(ranks.device)
        names = {p: name for name, p in objective.model.named_parameters() if p.requires_grad}
        self.optimizer = make_optimizer(objective.model)
        self._linear = nn.functional.linear  # ZeRO-3 puts its own there, for the whole process and for good
        self._engine, *_ = deepspeed.initialize(
            model=objective,
            optimizer=self.optimizer,
            config=deepspeed_config(
                stage,
                elements=sum(p.numel() for p in names),
                micro_batch=micro_batch,
                accumulation=accumulation,
                world=ranks.world,
            ),
            dist_init_required=False,
        )
        self._zero = self._engine.optimizer if stage else None
        self._params = {name: p for p, name in names.items()}
        self._frozen = {name: p for name, p in objective.model.named_parameters() if name not in self._params}
        self._create_optimizer_state()
        self._engine.train()

    @property
    def wrapped(self) -> nn.Module:
        return self._engine

    def backward(self, micro_batches: Sequence[MicroBatch], scale: Tensor | float) -> tuple[Tensor, Tensor]:
        loss_sums, counts = [], []
        for number, micro_batch in enumerate(micro_batches, start=1):
            loss_sum, count = self._engine(*micro_batch)
            self._engine.backward(
                loss_sum * scale * self.ranks.world, scale_wrt_gas=False
            )  # DeepSpeed averages over ranks
            if number < len(micro_batches):
                self._engine.step()  # only counts the micro step; the last one is left to `step`
            loss_sums.append(loss_sum.detach())
            counts.append(count.detach())
        return torch.stack(loss_sums).sum(), torch.stack(counts).sum()

    def grad_square(self) -> Tensor:
        if self._zero is None:
            grads = [p.grad for p in self._params.values() if p.grad is not None]
            return square_sum(grads, self.device) / self.ranks.world
        return square_sum(self._gradient_shards(), self.device)

    def gradients(self) -> list[Tensor]:
        return [*super().gradients(), *self._gradient_shards()]

    def masters(self) -> list[Tensor]:
        if self._zero is None:
            return []
        return (
            self._zero.fp32_partitioned_groups_flat if self.stage == 3 else self._zero.single_partition_of_fp32_groups
        )

    def step(self) -> None:
        self._engine.step()

    def local_parameters(self) -> dict[str, Tensor]:
        return self._held(self._params)

    def frozen_parameters(self) -> dict[str, Tensor]:
        return self._held(self._frozen)

    def _held(self, params: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        return {name: p.ds_tensor.data if self.stage == 3 else p.data for name, p in params.items()}

    def gather(self, name: str, local: Tensor) -> Tensor:
        if self.stage < 3:
            return local
        param = self._params.get(name, self._frozen.get(name))
        whole = local.new_empty(local.numel() * self.ranks.world)
        dist.all_gather_into_tensor(whole, local.contiguous())
        return whole[: param.ds_numel].view(param.ds_shape)

    def shard(self, name: str, full: Tensor) -> Tensor:
        if self.stage < 3:
            return full
        part = self._params.get(name, self._frozen.get(name)).ds_tensor
        padded = full.new_zeros(part.numel() * self.ranks.world)
        padded[: full.numel()] = full.flatten()
        return padded[self.ranks.rank * part.numel() :][: part.numel()]

    def state(self) -> Portable:
        updates = max(int(s["step"].item()) for s in self.optimizer.state.values())
        portable = Portable({}, {key: {} for key in self.optimizer.moments}, updates)
        for name in self._params:
            for key in (None, *self.optimizer.moments):
                full = self._get(name, key)  # collective: every rank takes part
                if self.ranks.is_main:
                    (portable.model if key is None else portable.moments[key])[name] = to_host(full).view(full.shape)
        for name, weight in self.frozen_parameters().items():
            full = self.gather(name, weight)
            if self.ranks.is_main:
                portable.model[name] = to_host(full)
        if self.ranks.is_main:
            portable.model.update({name: to_host(buffer) for name, buffer in self.model.named_buffers()})
        return portable

    @torch.no_grad()
    def load_state(self, portable: Portable) -> None:
        for state in self.optimizer.state.values():
            state["step"].fill_(portable.updates)
        held = self.local_parameters()
        for name in self._params:
            weight = portable.model[name].to(self.device)
            self._put(name, None, weight)
            held[name].copy_(self.shard(name, weight))
            for key, tensors in portable.moments.items():
                if name in tensors:
                    self._put(name, key, tensors[name].to(self.device))
        for name, weight in self.frozen_parameters().items():
            weight.copy_(self.shard(name, portable.model[name].to(self.device)))
        for name, buffer in self.model.named_buffers():
            buffer.copy_(portable.model[name])

    def close(self) -> None:
        self._engine.destroy()
        nn.functional.linear = self._linear

    def _create_optimizer_state(self) -> None:
        """Give DeepSpeed's flat partitions their moments before the first step, so that they can be read and set.

        Left to itself, DeepSpeed links parameters to moments after the first step of the first parameter group, when
        the other groups have none yet.
        """
        for partition in self.masters() or self._params.values():
            self.optimizer.state[partition] = fresh_state(self.optimizer, partition, 0)
        if self.stage in (1, 2):
            self._zero._lazy_init_hp_params_optimizer_state()

    def _gradient_shards(self) -> list[Tensor]:
        if self._zero is None:
            return []
        return [g for group in self._zero.averaged_gradients.values() for g in group or ()]

    def _get(self, name: str, key: str | None) -> Tensor:
        """Full fp32 value of a parameter (key None) or of one of its moments. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        param = self._params[name]
        if self._zero is None:
            return param if key is None else self.optimizer.state[param][key]
        return safe_get_full_fp32_param(param) if key is None else safe_get_full_optimizer_state(param, key)

    def _put(self, name: str, key: str | None, full: Tensor) -> None:
        """Set what `_get` reads."""
        from deepspeed import utils

        param = self._params[name]
        if self._zero is None:
            (param if key is None else self.optimizer.state[param][key]).copy_(full)
        elif self.stage == 3:  # `safe_set_full_*` fails where a parameter does not divide among the ranks
            part = self.shard(name, full)
            if key is None:
                utils.safe_set_local_fp32_param(param, part)
            else:
                utils.safe_set_local_optimizer_state(param, part, key)
        elif key is None:
            utils.safe_set_full_fp32_param(param, full)
        else:
            utils.safe_set_full_optimizer_state(param, full, key)


def _import_deepspeed():
    """DeepSpeed without its chatter, and without the CPU operator that it would compile at the first start."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with redirect_stdout(sys.stderr):  # standard output belongs to the result
        import deepspeed
        import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo", auto_mpi_discovery=False, dist_init_required=False
    )
    return deepspeed
