"""AdamW and Lion that can skip a step without asking the host.

Both read two attributes before each step, the protocol of `torch.amp.GradScaler` for fused optimizers:
`grad_scale` (gradients are divided by it; None is 1) and `found_inf` (1.0: leave weights and moments as they are). Both
are tensors on the device, so the decision to skip costs no synchronisation, and it is the same under DDP and under
every ZeRO stage, because DeepSpeed steps the optimizer that it is given.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW (arXiv 1711.05101)."""

    moments = ("exp_avg", "exp_avg_sq")

    def __init__(self, params: Iterable, lr: float, betas: tuple[float, float] | None, eps: float, weight_decay: float):
        super().__init__(params, lr=lr, betas=betas or (0.9, 0.999), eps=eps, weight_decay=weight_decay, fused=True)
        self.grad_scale: Tensor | None = None
        self.found_inf: Tensor | None = None


class Lion(torch.optim.Optimizer):
    """Lion (arXiv 2302.06675, Algorithm 2): the sign of an interpolated momentum.

    c = b1 m + (1 - b1) g;  w <- w - lr (sign(c) + weight_decay w);  m <- b2 m + (1 - b2) g
    """

    moments = ("exp_avg",)

    def __init__(self, params: Iterable, lr: float, betas: tuple[float, float] | None, weight_decay: float):
        super().__init__(params, {"lr": lr, "betas": betas or (0.9, 0.99), "weight_decay": weight_decay})
        self.grad_scale: Tensor | None = None
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(params, group["lr"], *group["betas"], group["weight_decay"])

    def _step_group(self, params: list[Tensor], lr: float, beta1: float, beta2: float, weight_decay: float) -> None:
        momenta, steps = [], []
        for p in params:
            if not self.state[p]:
                self.state[p] = {"exp_avg": torch.zeros_like(p), "step": torch.zeros((), device=p.device)}
            momenta.append(self.state[p]["exp_avg"])
            steps.append(self.state[p]["step"])
        grads = [p.grad for p in params]
        if self.grad_scale is not None:
            grads = torch._foreach_div(grads, self.grad_scale)
        go = torch.ones((), device=params[0].device) if self.found_inf is None else 1.0 - self.found_inf
        if self.found_inf is not None:  # 0 x inf is NaN: gradients of a skipped step must not be multiplied
            grads = [torch.where(go > 0, g, torch.zeros_like(g)) for g in grads]

        updates = torch._foreach_lerp(momenta, grads, 1.0 - beta1)
        torch._foreach_sign_(updates)
        torch._foreach_add_(updates, params, alpha=weight_decay)
        torch._foreach_mul_(updates, go * -lr)
        torch._foreach_add_(params, updates)

        changes = torch._foreach_sub(grads, momenta)
        torch._foreach_mul_(changes, go * (1.0 - beta2))
        torch._foreach_add_(momenta, changes)
        for step in steps:
            step.add_(go)


def fresh_state(optimizer: torch.optim.Optimizer, param: Tensor, updates: int) -> dict[str, Tensor]:
    """State of `param` with zero moments after `updates` steps, as `optimizer` makes it at its first step."""
    state = {name: torch.zeros_like(param, dtype=torch.float32) for name in optimizer.moments}
    return {"step": torch.tensor(float(updates), device=param.device), **state}
