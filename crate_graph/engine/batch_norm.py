"""Batch norms whose statistics are those of all processes together, on a CPU as on a GPU.

PyTorch's SyncBatchNorm refuses a CPU. Without either, each process would normalise by its own share of a batch, and a
recipe's numbers would depend on the number of processes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn


def share_batch_norms(model: nn.Module) -> None:
    """Let the 2d batch norms of `model` (PyTorch's and timm's) share their statistics while they train, in place.

    Names, parameters and buffers stay. Statistics are of one micro batch over all processes, which must hold equally
    many samples; so equal numbers on more processes need an equal micro batch x processes.
    """
    shared = {nn.BatchNorm2d: SharedBatchNorm2d, BatchNormAct2d: SharedBatchNormAct2d}
    for module in model.modules():
        if type(module) in shared:
            module.__class__ = shared[type(module)]  # the subclass has another forward pass, and nothing else


class SharedBatchNorm2d(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return _normalize(self, x) if self.training else super().forward(x)


class SharedBatchNormAct2d(BatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(_normalize(self, x))) if self.training else super().forward(x)


def _normalize(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """As `F.batch_norm` in training, in float32: x (B, C, H, W) -> (B, C, H, W)."""
    wide = x.float()
    mean = _Mean.apply(wide.mean(dim=(0, 2, 3), keepdim=True))  # (1, C, 1, 1)
    centred = wide - mean
    variance = _Mean.apply(centred.square().mean(dim=(0, 2, 3), keepdim=True))  # (1, C, 1, 1)
    if norm.track_running_stats:
        count = dist.get_world_size() * x.numel() // x.shape[1]
        _track(norm, mean.flatten(), variance.flatten() * (count / max(count - 1, 1)))
    y = centred * (variance + norm.eps).rsqrt()
    if norm.affine:
        y = y * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    return y.to(x.dtype)


@torch.no_grad()
def _track(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    norm.num_batches_tracked.add_(1)
    momentum = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance, momentum)


class _Mean(torch.autograd.Function):
    """The mean over all processes. So is its gradient: what each adds to the loss depends on the one mean."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return _mean(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _mean(gradient)


def _mean(x: Tensor) -> Tensor:
    x = x.contiguous().clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()
