"""What every restoration network does with its input: a first estimate, features of it, and the known values kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crate_graph.errors import UserError

WINDOW = 5  # pixels: side of the neighbourhood on the graph, and the smallest side of a picture


def interpolate_known(observed: Tensor, mask: Tensor) -> Tensor:
    """Linear interpolation of the known values of each channel: the start of every restoration.

    A missing value becomes the mean of the known ones among its eight neighbours, the diagonal ones with half weight:
    on a Bayer mosaic and on x2 decimation this is bilinear interpolation, borders included. Where no neighbour is
    known, the same on averages over 4x4 pixels; where those are unknown too, the mean of the channel.

    Args:
        observed, mask: (B, C, H, W); observed is zero where mask is.

    Returns:
        (B, C, H, W); known values are kept.
    """
    near, weight = _tent_sums(observed, mask)
    pooled = [F.avg_pool2d(x, 4, ceil_mode=True, count_include_pad=False) for x in (observed, mask)]
    far, far_weight = _tent_sums(*pooled)  # (B, C, H/4, W/4)
    mean = observed.sum(dim=(2, 3), keepdim=True) / mask.sum(dim=(2, 3), keepdim=True).clamp(min=1)  # (B, C, 1, 1)
    coarse = torch.where(far_weight > 0, far / far_weight.clamp(min=1e-6), mean)
    coarse = F.interpolate(coarse, observed.shape[-2:], mode="bilinear")  # (B, C, H, W)
    estimate = torch.where(weight > 0, near / weight.clamp(min=1e-6), coarse)
    return torch.where(mask > 0, observed, estimate)


def _tent_sums(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over 3x3 neighbours with weights 1, 1/2, 1/4. (B, C, H, W) each."""
    line = values.new_tensor([0.5, 1.0, 0.5])
    channels = values.shape[1]
    kernel = torch.outer(line, line).expand(channels, 1, 3, 3)
    return tuple(F.conv2d(x, kernel, padding=1, groups=channels) for x in (values, weights))


def keep_observed(estimate: Tensor, observed: Tensor, mask: Tensor, sigma: Tensor | None) -> Tensor:
    """Put the known values back where they carry no noise. All (B, C, H, W); sigma (B,) or None for no noise."""
    exact = mask > 0
    if sigma is not None:
        exact = exact & (sigma == 0).view(-1, 1, 1, 1)
    return torch.where(exact, observed, estimate)


def check_observation(observed: Tensor, mask: Tensor, in_chans: int, sigma: Tensor | None = None) -> Tensor:
    """The known values, zero elsewhere, whatever stands in `observed` where nothing is known.

    Args:
        observed, mask: (B, C, H, W).
        in_chans: channels that the network takes.
        sigma: (B,) or None.

    Raises:
        UserError: other than float32, another shape, a picture smaller than the window; and, looked at on a CPU only,
            where that does not wait for a device, a mask that is not of 0 and 1, a sigma that is negative or no number.
    """
    if not (isinstance(observed, Tensor) and isinstance(mask, Tensor)):
        raise UserError(
            f"a picture of {type(observed).__name__} and a mask of {type(mask).__name__}; pass two tensors of shape "
            f"(batch, {in_chans}, height, width)"
        )
    if observed.dtype != torch.float32 or mask.dtype != torch.float32:
        raise UserError(
            f"a picture of {observed.dtype} and a mask of {mask.dtype}: restoration networks take torch.float32, also "
            f"under autocast; call .float() on both"
        )
    if observed.ndim != 4 or observed.shape != mask.shape or observed.shape[1] != in_chans:
        raise UserError(
            f"a picture of shape {tuple(observed.shape)} and a mask of shape {tuple(mask.shape)}: both should be "
            f"(batch, {in_chans}, height, width); bring them to that shape"
        )
    if sigma is not None and (not isinstance(sigma, Tensor) or sigma.shape != observed.shape[:1]):
        raise UserError(
            f"sigma={sigma!r}: the noise level should be a tensor of shape ({len(observed)},), one for each picture"
        )
    eager = type(mask) is Tensor and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    if eager and mask.device.type == "cpu" and not ((mask == 0) | (mask == 1)).all():
        raise UserError("a mask holds other values than 0 and 1; it should be 1 where a value is known, else 0")
    if eager and sigma is not None and sigma.device.type == "cpu" and not ((sigma >= 0) & sigma.isfinite()).all():
        raise UserError(f"sigma={sigma.tolist()}: a noise level should be a number, 0 or more, where white is 1")
    height, width = observed.shape[-2:]
    if min(height, width) < WINDOW:
        raise UserError(
            f"a picture of {width} x {height} pixels is smaller than the window of {WINDOW} x {WINDOW}; "
            f"use a larger picture"
        )
    return torch.where(mask > 0, observed, 0)


class PackedInput(nn.Module):
    """A first estimate at full resolution, and features of estimate, mask and noise at half of it.

    2x2 pixels become channels: each phase of a mosaic keeps its own channel, and convolutions cost a quarter.
    """

    def __init__(self, in_chans: int, dim: int):
        super().__init__()
        self.in_chans = in_chans
        self.conv = nn.Conv2d(4 * (2 * in_chans + 1), dim, 3, padding=1)

    def forward(self, observed: Tensor, mask: Tensor, sigma: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) twice, checked; (B,) or None -> (B, C, H, W) and (B, dim, ceil(H/2), ceil(W/2))."""
        start = interpolate_known(observed, mask)  # (B, C, H, W)
        noise = observed.new_zeros(len(observed)) if sigma is None else sigma
        plane = noise.view(-1, 1, 1, 1).expand(-1, 1, *observed.shape[-2:])  # (B, 1, H, W)
        return start, self.conv(pack(torch.cat((start, mask, plane), dim=1)))


def pack(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 4C, ceil(H/2), ceil(W/2)), channels last in memory.

    An odd side is continued by its mirror image, which repeats no pixel and so keeps the phase of a mosaic: what lies
    beyond the border looks like what networks were trained on. Convolutions keep the memory format, and in bfloat16 on
    a CPU they take two thirds of the time in this one.
    """
    height, width = x.shape[-2:]
    packed = F.pixel_unshuffle(F.pad(x, (0, width % 2, 0, height % 2), mode="reflect"), 2)
    return packed.contiguous(memory_format=torch.channels_last)
