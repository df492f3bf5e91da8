"""From a recipe's optimizer section to parameter groups and an optimizer."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from crate_graph.config.schema import Optimizer as OptimizerConfig
from crate_graph.engine.optimizers import AdamW, Lion


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW or Lion over the groups of `param_groups`."""
    groups = param_groups(config, model)
    if config.name == "lion":
        return Lion(groups, config.lr, config.betas, config.weight_decay)
    return AdamW(groups, config.lr, config.betas, config.eps, config.weight_decay)


def param_groups(config: OptimizerConfig, model: nn.Module) -> list[dict[str, Any]]:
    """Groups of parameters that share `weight_decay` and `lr_scale` (their learning rate over the recipe's).

    `decay: all` decays every parameter, as the published CRATE code does; `matrices` spares vectors (biases, norms) and
    what the model itself names in `no_weight_decay`. `layer_decay` d gives layer l of L the scale d^(L - l).
    """
    decays = _decaying(config, model)
    scales = _lr_scales(config, model)
    grouped: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, param in model.named_parameters():
        if param.requires_grad:
            grouped[config.weight_decay if name in decays else 0.0, scales.get(param, 1.0)].append(param)
    return [
        {"params": params, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), params in sorted(grouped.items(), key=lambda g: g[0])
    ]


def _decaying(config: OptimizerConfig, model: nn.Module) -> set[str]:
    names = {name: param.ndim for name, param in model.named_parameters()}
    if config.decay == "all":
        return set(names)
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    return {name for name, ndim in names.items() if ndim > 1 and name not in spared}


def _lr_scales(config: OptimizerConfig, model: nn.Module) -> dict[nn.Parameter, float]:
    if config.layer_decay == 1.0:
        return {}
    groups = param_groups_layer_decay(model, layer_decay=config.layer_decay)
    return {param: group["lr_scale"] for group in groups for param in group["params"]}
