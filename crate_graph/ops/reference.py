"""The graph operators and solvers written straight from the equations, to hold the fast ones against.

Nothing is shared, fused or eliminated. Signals are (B, G, C, H, W): G graphs over each picture, C channels that share a
graph. Directed edges are (B, G, K, H, W), edge signals (B, G, C, K, H, W), where k counts the K = (2 radius + 1)^2 - 1
neighbours of a pixel in reading order. Autograd does every backward pass. Source: arXiv 2406.04090, sections 3 and 4.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crate_graph.ops.gtv_admm import MULTIPLIER


def offsets(radius: int = 2) -> list[tuple[int, int]]:
    """(dy, dx) of the neighbours, in reading order."""
    reach = range(-radius, radius + 1)
    return [(dy, dx) for dy in reach for dx in reach if (dy, dx) != (0, 0)]


def neighbours(x: Tensor, radius: int = 2) -> Tensor:
    """The values of each pixel's neighbours, zero outside the picture: (..., H, W) -> (..., K, H, W)."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (radius,) * 4)
    return torch.stack(
        [padded[..., radius + dy :, radius + dx :][..., :height, :width] for dy, dx in offsets(radius)], dim=-3
    )


def from_neighbours(e: Tensor, radius: int = 2) -> Tensor:
    """The adjoint of `neighbours`: each value is added to the pixel it came from. (..., K, H, W) -> (..., H, W)."""
    height, width = e.shape[-2:]
    total = e.new_zeros(*e.shape[:-3], height + 2 * radius, width + 2 * radius)
    for k, (dy, dx) in enumerate(offsets(radius)):
        total[..., radius + dy : radius + dy + height, radius + dx : radius + dx + width] += e[..., k, :, :]
    return total[..., radius : radius + height, radius : radius + width]


def distances(features: Tensor, radius: int = 2) -> Tensor:
    """||f_i - f_j||^2: (B, G, D, H, W) -> (B, G, K, H, W)."""
    return (features.unsqueeze(-3) - neighbours(features, radius)).square().sum(dim=2)


def edge_weights(distances: Tensor, radius: int = 2) -> Tensor:
    """w_ij = exp(-d_ij), zero where j is outside the picture. (B, G, K, H, W)."""
    inside = neighbours(torch.ones_like(distances[0, 0, 0]), radius)  # (K, H, W)
    return torch.exp(-distances) * inside


def incidence(weights: Tensor, x: Tensor, radius: int = 2) -> Tensor:
    """Cx: w_ij (x_i - x_j) on every directed edge. (B, G, K, H, W), (B, G, C, H, W) -> (B, G, C, K, H, W)."""
    return weights.unsqueeze(2) * (x.unsqueeze(-3) - neighbours(x, radius))


def incidence_adjoint(weights: Tensor, e: Tensor, radius: int = 2) -> Tensor:
    """C'e: (B, G, K, H, W), (B, G, C, K, H, W) -> (B, G, C, H, W)."""
    weighted = weights.unsqueeze(2) * e
    return weighted.sum(dim=-3) - from_neighbours(weighted, radius)


def laplacian(weights: Tensor, x: Tensor, radius: int = 2) -> Tensor:
    """(D - W) x for symmetric weights."""
    degrees = weights.sum(dim=2, keepdim=True)  # (B, G, 1, H, W)
    return degrees * x - (weights.unsqueeze(2) * neighbours(x, radius)).sum(dim=-3)


def normalized_laplacian(weights: Tensor, x: Tensor, radius: int = 2) -> Tensor:
    """D^-1/2 (D - W) D^-1/2 x for symmetric weights."""
    scale = weights.sum(dim=2, keepdim=True).rsqrt()
    return scale * laplacian(weights, scale * x, radius)


def unrolled_cg(apply, b: Tensor, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Conjugate gradients with given steps. `apply(v)` is A v; alpha, beta (T, G)."""
    shape = (1, -1, 1, 1, 1)
    g = apply(x) - b
    v = g
    for t in range(len(alpha)):
        if t:
            v = g + beta[t].view(shape) * v
        x = x - alpha[t].view(shape) * v
        g = g - alpha[t].view(shape) * apply(v)
    return x


def glr(x: Tensor, mask: Tensor, weights: Tensor, alpha: Tensor, beta: Tensor, skip: Tensor, radius: int = 2) -> Tensor:
    """min x'Lx with x fixed where mask is 1, L the normalised Laplacian. alpha, beta (layers, T, G), skip (layers,)."""
    free = 1 - mask

    def apply(v: Tensor) -> Tensor:
        return free * normalized_laplacian(weights, v, radius)

    for layer in range(len(skip)):
        solution = unrolled_cg(apply, torch.zeros_like(x), x, alpha[layer], beta[layer])
        x = x + skip[layer] * (solution - x)
    return x


def gtv(
    x: Tensor,
    y: Tensor,
    mask: Tensor,
    weights: Tensor,
    gamma: Tensor,
    alpha: Tensor,
    beta: Tensor,
    skip: Tensor,
    radius: int = 2,
) -> Tensor:
    """The paper's ADMM for min ||Cx||_1 with Hx = y: nine edge arrays, one equation a line.

    `weights` are row-normalised, w_ij. Everything else as in `crate_graph.ops.gtv_admm.gtv_admm`.
    """

    def C(v: Tensor) -> Tensor:
        return incidence(weights, v, radius)

    def Ct(e: Tensor) -> Tensor:
        return incidence_adjoint(weights, e, radius)

    def A(v: Tensor) -> Tensor:
        return Ct(C(v)) + mask * v

    a = b = d = e = torch.full_like(C(x), MULTIPLIER)
    c = MULTIPLIER * mask
    t1, t2 = C(x).abs() - C(x), C(x).abs() + C(x)
    for layer in range(len(gamma)):
        g = gamma[layer]
        z = -1 / g - (a + b + d + e) / (2 * g) + (t1 + t2) / 2
        right = Ct(a - b + d - e) / (2 * g) - mask * c / g - Ct(t1 - t2) / 2 + mask * y
        x = x + skip[layer] * (unrolled_cg(A, right, x, alpha[layer], beta[layer]) - x)
        q1 = (z - C(x)) / 2 + (a - d + g * t1) / (2 * g)
        q2 = (z + C(x)) / 2 + (b - e + g * t2) / (2 * g)
        t1 = torch.relu(q1 + d / g)
        t2 = torch.relu(q2 + e / g)
        a = a + g * (z - C(x) - q1)
        b = b + g * (z + C(x) - q2)
        c = c + g * (mask * x - y)
        d = d + g * (q1 - t1)
        e = e + g * (q2 - t2)
    return x
