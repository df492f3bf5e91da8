"""One training step on fake tensors: what it holds, computes and moves, without its memory and without its time.

The model, the loss, the optimizer and autocast are those of a real run; the tensors have shapes and no contents. The
order of what happens is that of `engine.accelerate` and `train.step`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from crate_graph.config.schema import ActivationCheckpointing, Recipe
from crate_graph.data import Dataset
from crate_graph.engine.objective import Objective
from crate_graph.engine.optimizers import fresh_state
from crate_graph.models import create_model
from crate_graph.models.checkpointing import set_activation_checkpointing
from crate_graph.models.heads import freeze_backbone
from crate_graph.ops.memory import saved_bytes
from crate_graph.ops.window import forget_masks
from crate_graph.planning.cuda_autocast import CudaAutocast
from crate_graph.planning.state import Layout
from crate_graph.planning.tally import Operation, Tally
from crate_graph.tasks import build_task
from crate_graph.tasks.build import image_shapes, model_arguments
from crate_graph.train.optimizer import build_optimizer

FORWARD, BACKWARD, UPDATE = PHASES = ("forward", "backward", "update")


@dataclass(frozen=True)
class Trace:
    """A step of one process that holds everything: no ZeRO. Bytes."""

    micro_batch: int
    checkpointing: ActivationCheckpointing
    kept: int  # for the backward pass of one micro batch; parameters are not counted
    layout: Layout
    shapes: dict[str, tuple[int, ...]]  # of the state dict
    trained: list[str]  # names of the parameters that the optimizer has
    moments: tuple[str, ...]  # names
    state: dict[str, int]  # weights, buffers, moments, ema
    peak: dict[str, int]  # while gradients are made, by kind
    peak_of_update: dict[str, int]  # while they are applied
    operations: list[Operation] = field(repr=False)  # of one micro batch, and of the update

    def flops(self, *phases: str) -> int:
        """Of matrix products, convolutions and attention, those that are recomputed too."""
        return sum(operation.flops for operation in self.operations if operation.phase in phases)


def tracing(recipe: Recipe) -> str:
    """What is said to who waits for a plan."""
    return f"tracing steps of {recipe.model.in_words()}; a large model takes a minute or two"


def trace_step(
    recipe: Recipe,
    dataset: Dataset,
    micro_batch: int,
    *,
    share: int | None = None,
    keeps_gradients: bool = False,
    checkpointing: ActivationCheckpointing | None = None,
    cuda: bool = True,
) -> Trace:
    """Trace a step of `recipe`.

    Args:
        micro_batch: samples of one forward pass.
        share: samples of the process in a global batch; they are on the device together. Default: one micro batch.
        keeps_gradients: their memory is there before, as under DDP, or after the first of several micro batches.
        checkpointing: in the place of the recipe's.
        cuda: autocast by the rules of CUDA, else by those of a CPU.

    Raises:
        UserError: the model cannot be built, or has no such activation checkpointing.
    """
    share = share or micro_batch
    checkpointing = checkpointing or recipe.activation_checkpointing
    with fake_tensors(cuda):
        model = fake_model(recipe, dataset)
        if checkpointing.mode != "none":
            set_activation_checkpointing(model, checkpointing.mode, checkpointing.k)
        objective = Objective(model, build_task(recipe, dataset.mean, dataset.std), recipe.precision).train()
        optimizer = build_optimizer(recipe.optimizer, model)
        params = [p for p in model.parameters() if p.requires_grad]
        for p in params:
            optimizer.state[p] = fresh_state(optimizer, p, 0)
            p.grad = torch.zeros_like(p) if keeps_gradients else None
        average = [p.detach().clone() for p in params] if recipe.ema.decay is not None else []
        batch = batch_of_training(recipe, dataset, share)
        kept = saved_bytes(lambda: objective(*(x[:micro_batch] for x in batch))[0], [*params, *batch])

        tally = Tally()
        tally.name("weights", model.parameters())
        tally.name("buffers", model.buffers())
        tally.name("moments", (x for state in optimizer.state.values() for x in state.values()))
        tally.name("ema", average)
        tally.name("gradients", (p.grad for p in params if p.grad is not None))
        tally.name("batch", batch)
        state = {kind: tally.live[kind] for kind in ("weights", "buffers", "moments", "ema")}
        with tally:
            peak = _gradients(objective, params, [x[:micro_batch] for x in batch], tally)
            _update(recipe, optimizer, params, average, tally)
        return Trace(
            micro_batch=micro_batch,
            checkpointing=checkpointing,
            kept=kept,
            layout=_layout(recipe, model, optimizer),
            shapes={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
            trained=[name for name, p in model.named_parameters() if p.requires_grad],
            moments=optimizer.moments,
            state=state,
            peak=peak,
            peak_of_update=tally.at_peak,
            operations=tally.operations,
        )


def trace_evaluation(recipe: Recipe, dataset: Dataset, *, cuda: bool = True) -> int:
    """Peak bytes of classifying one batch of `evaluation.batch_size`, beyond weights and what training keeps."""
    with fake_tensors(cuda):
        model = fake_model(recipe, dataset)
        objective = Objective(model, build_task(recipe, dataset.mean, dataset.std), recipe.precision).eval()
        shape = image_shapes(recipe, dataset)[0]
        batch = _batch_of(recipe, dataset, shape, recipe.evaluation.batch_size, mixed=False)
        tally = Tally()
        tally.name("weights", (*model.parameters(), *model.buffers()))
        with tally, torch.no_grad():
            objective(*batch)
        return sum(bytes for kind, bytes in tally.at_peak.items() if kind != "weights") + sum(x.nbytes for x in batch)


@contextmanager
def fake_tensors(cuda: bool) -> Iterator[None]:
    """In the block tensors have no contents; autocast works by the rules of the device that is planned for."""
    forget_masks()  # real ones would be taken for fake ones, and afterwards the other way round
    try:
        with ExitStack() as stack:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            if cuda:
                stack.enter_context(CudaAutocast())
            yield
    finally:
        forget_masks()


def fake_model(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """The recipe's model; to be called where tensors are fake."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily(), torch.device("meta"):
        model = create_model(recipe.model.name, **model_arguments(recipe, dataset))
        if recipe.model.freeze == "backbone":
            freeze_backbone(model)
    made: dict[int, Tensor] = {}  # by the tensor that it stands for, since modules may share one
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if id(p) not in made:
                made[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad)
            setattr(module, name, made[id(p)])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return model


def batch_of_training(recipe: Recipe, dataset: Dataset, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, targets and weights as the loader gives them to training."""
    view = recipe.data.train_transform
    shape = image_shapes(recipe, dataset)[-1]
    return _batch_of(recipe, dataset, shape, samples, mixed=bool(view.mixup or view.cutmix))


def _batch_of(recipe, dataset, shape, samples, *, mixed) -> tuple[Tensor, Tensor, Tensor]:
    channels, height, width = shape
    weights = torch.ones(samples)
    if recipe.task.kind == "restoration":
        observed = torch.zeros(samples, 2 * channels + 1, height, width)
        return observed, torch.zeros(samples, channels, height, width), weights
    images = torch.zeros(samples, channels, height, width)
    targets = torch.zeros(samples, dataset.num_classes) if mixed else torch.zeros(samples, dtype=torch.long)
    return images, targets, weights


def _layout(recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer) -> Layout:
    return Layout(
        groups=tuple(tuple(p.numel() for p in group["params"]) for group in optimizer.param_groups),
        frozen=tuple(p.numel() for p in model.parameters() if not p.requires_grad),
        buffers=sum(buffer.nbytes for buffer in model.buffers()),
        moments=len(optimizer.moments),
        average=recipe.ema.decay is not None,
    )


def _gradients(objective: Objective, params: list[Tensor], batch: Sequence[Tensor], tally: Tally) -> dict[str, int]:
    """Forward and backward of one micro batch. Returns the peak by kind."""
    hooks = [p.register_post_accumulate_grad_hook(lambda p: tally.name("gradients", [p.grad])) for p in params]
    tally.restart_peak()
    tally.phase = FORWARD
    loss, _ = objective(*batch)
    tally.phase = BACKWARD
    # `torch.autograd.backward` would suspend CudaAutocast, which recomputing needs
    torch.autograd.Variable._execution_engine.run_backward(
        (loss * torch.ones(()),), (torch.ones(()),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )
    for hook in hooks:
        hook.remove()
    return tally.at_peak


def _update(recipe: Recipe, optimizer, params: list[Tensor], average: list[Tensor], tally: Tally) -> None:
    tally.phase = UPDATE
    tally.restart_peak()
    torch.stack(torch._foreach_norm([p.grad for p in params if p.grad is not None])).square().sum()
    optimizer.found_inf = torch.zeros(())
    scaled = recipe.optimizer.clip_norm is not None or recipe.precision == "fp16"
    optimizer.grad_scale = torch.ones(()) if scaled else None
    optimizer.step()
    if average:
        torch._foreach_lerp_(average, [p.detach() for p in params], 0.1)
