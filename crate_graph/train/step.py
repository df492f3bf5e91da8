"""One step of training."""

from __future__ import annotations

import torch

from crate_graph.config.schema import Recipe
from crate_graph.data import Batch
from crate_graph.engine.base import Engine
from crate_graph.engine.loss_scale import LossScale
from crate_graph.engine.word import Word
from crate_graph.train.ema import Ema
from crate_graph.train.schedule import lr_factor


class TrainStep:
    """Batch -> gradients -> the word -> clip -> step or skip -> EMA. The host waits for nothing here."""

    def __init__(self, recipe: Recipe, engine: Engine, accumulation: int, steps_per_epoch: int, ema: Ema | None):
        self.recipe = recipe
        self.engine = engine
        self.accumulation = accumulation
        self.steps_per_epoch = steps_per_epoch
        self.ema = ema
        self.loss_scale = LossScale(recipe.precision, engine.device)

    def __call__(
        self, step: int, batch: Batch, *, save: bool = False, stop: bool = False, data_wait: float = 0.0
    ) -> Word:
        """Train on this rank's share of global batch `step`.

        `save` and `stop` are what this rank was asked to do, `data_wait` the seconds for which it waited for the batch.
        """
        self.engine.set_lr(self.lr(step))
        seed_step(self.recipe.seed, step, self.engine.ranks.rank)
        damaged = len(batch.damaged)
        batch = batch.to(self.engine.device, non_blocking=True)
        micro_batches = [(b.images, b.targets, b.weights) for b in batch.split(self.accumulation)]

        scale = self.loss_scale.value / self.recipe.batch.global_batch  # the loss is the mean over the global batch
        loss_sum, count = self.engine.backward(micro_batches, scale)
        word = Word(
            loss_sum,
            count,
            self.engine.grad_square(),
            damaged=damaged,
            save=save,
            stop=stop,
            loss_scale=self.loss_scale.value,
            busy=(data_wait, self.engine.objective.forward_clock.take()),
        )
        self.engine.apply(self._grad_scale(word), word.found_inf)
        self.loss_scale.update(word.found_inf)
        if self.ema is not None:
            self.ema.update()
        return word

    def lr(self, step: int) -> float:
        return self.recipe.optimizer.lr * lr_factor(self.recipe.schedule, step, self.steps_per_epoch)

    def _grad_scale(self, word: Word) -> torch.Tensor | None:
        """What gradients are divided by: the loss scale, and how far their norm is above the limit."""
        limit = self.recipe.optimizer.clip_norm
        if limit is None:
            return self.loss_scale.value if self.loss_scale.dynamic else None
        return self.loss_scale.value * torch.clamp(word.grad_norm / limit, min=1.0)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Key the model's randomness (dropout, drop path) to its place in the run: a resumed run draws the same numbers."""
    torch.manual_seed((seed * 1_000_003 + step) * 4_099 + rank)
