"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from crate_graph.config.schema import Schedule


def lr_factor(schedule: Schedule, step: int, steps_per_epoch: int) -> float:
    """Share of the base learning rate that `step` (counted from 0 over the run) uses.

    cosine: (e + s) / warmup while e < warmup, then from 1 down to `min_factor` along half a cosine, with e in epochs
    and s the length of one step (or of one epoch where the rate is held for epochs), so that the first step already
    moves.
    cosine_capped: min((e + s) / warmup, (1 + cos(pi e / epochs)) / 2), as the published CRATE code does per epoch.
    """
    grain = 1.0 if schedule.per == "epoch" else 1.0 / steps_per_epoch
    epoch = float(step // steps_per_epoch) if schedule.per == "epoch" else step / steps_per_epoch
    warmup = schedule.warmup_epochs
    ramp = min((epoch + grain) / warmup, 1.0) if warmup > 0 else 1.0
    if schedule.shape == "constant":
        return ramp
    if schedule.shape == "cosine_capped":
        return max(min(ramp, _half_cosine(epoch / schedule.epochs)), schedule.min_factor)
    if epoch < warmup:
        return ramp
    progress = (epoch - warmup) / max(schedule.epochs - warmup, grain)
    return schedule.min_factor + (1.0 - schedule.min_factor) * _half_cosine(progress)


def _half_cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
