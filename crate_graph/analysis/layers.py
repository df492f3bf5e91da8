"""Every measure of a model, layer by layer: `activations` on a probe batch, `weights` of the parameters.

Both give a list of `Measured`: name, layer, mean, std, unit, and what mean and std run over. Layers count from 1. The
formulas are in `crate_graph.measures`; rates are of tokens of unit norm and eps^2 = 0.01, class token included, as in
the published measurements, and so at most d/2 ln 101 nats.

    activations (over samples)
    name                    layer             unit       what
    CRATE
    rc_attention_input      (l,)              nats       R^c of U_k'LN(Z^l): where the published code measures it
    rc_half_step            (l,)              nats       R^c(Z^(l+1/2) | U^l): what the caption of its figure says
    rc_output               (l,)              nats       R^c(Z^(l+1) | U^l)
    coding_rate_half_step   (l,)              nats       R(Z^(l+1/2)), after MSSA
    coding_rate_output      (l,)              nats       R(Z^(l+1)), after ISTA
    nonzero_half_step       (l,)              fraction   entries of Z^(l+1/2) that are not exactly 0
    nonzero_output          (l,)              fraction   the same of Z^(l+1), the output of ISTA: ||Z||_0 / (d N)
    sparse_rate_reduction   (l,)              nats       R - R^c - lambda ||.||_0 of Z^(l+1), lambda that of ISTA
    ViT
    rc_attention_input_P    (l,)              nats       as above with P = query, key, value for U, its bias included
    rc_half_step_P          (l,)              nats       as above with the weight of P for U
    coding_rate_*, nonzero_*                             as above
    uGLR, uGTV, iGLR, iGTV, ugtv_fast (mean over the heads)
    edge_entropy            (block,)          nats       exp of it is a number of neighbours
    glr, gtv                (block, n)        per pixel  x'Lx, ||Cx||_1 after ADMM layer n; 0 is the start. ugtv_fast:
                                                         of picture - guide
    data_residual           (block, n)        intensity  root mean square of Hx - y
    constraint_violation    (block, n)        intensity  largest |Hx - y|
    system_residual         (block, n)        of the first   ||A x - b|| after the CG steps over that before them
    the last four           (block, n, t)                after CG step t, with cg_steps

    weights                                              (over)
    CRATE
    coherence               (l,)              cosine     pairs: ||Q_k'Q_l||_2, of the smallest principal angle
    coherence_largest       (l,)              cosine     one: of the nearest pair
    overlap                 (l,)              cosine     pairs: root mean square over all principal angles
    dictionary_largest_singular_value, dictionary_smallest_singular_value   (l,)   one
    dictionary_effective_rank   (l,)          dimensions one
    ista_step_bound         (l,)              1          one: eta ||D||_2^2; an ISTA step descends for sure up to 1
    ViT
    coherence_P, coherence_largest_P, overlap_P          as above for P = query, key, value
    graph networks
    alpha, beta             (block, n, t)     1          heads: as the solver uses them, clamped
    gamma (uGTV), skip      (block, n)        1          one; skip of (block,) is the block's own
    threshold (ugtv_fast)   (block, n)        1          heads
    mix                     (block,)          1          heads
    trust                   (block,)          1          one: of ugtv_fast that is noise aware
    metric_trace, metric_largest_eigenvalue, metric_smallest_eigenvalue   (block,)   heads: of M = R'R

`matrices` gives what has no place in a scalar: spectra, coherence of all pairs, M.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from crate_graph.analysis.graph_networks import Part, measure_graph_weights, watch_graph_network
from crate_graph.analysis.measured import Gathered, Measured
from crate_graph.analysis.transformers import (
    VIT_PARTS,
    bases_of,
    is_pre_norm,
    measure_crate_weights,
    measure_vit_weights,
    watch_crate,
    watch_vit,
)
from crate_graph.errors import UserError
from crate_graph.measures.matrices import coherence, singular_values
from crate_graph.models.crate import CRATE
from crate_graph.models.factory import architecture
from crate_graph.models.graph_networks import UnrolledGraphNetwork, UntrainedGraphNetwork
from crate_graph.models.ugtv_fast import UGTVFast
from crate_graph.models.vit_restorer import ViTRestorer


def activations(model: nn.Module, *inputs: Tensor | None, cg_steps: bool = False) -> list[Measured]:
    """What the layers of `model` do with a probe batch, model(*inputs); see the table above.

    The model, its mode, its gradients and the random numbers are afterwards as they were before; it runs in float32, in
    evaluation mode, without autograd.

    Args:
        inputs: images (B, C, H, W), or for a restoration network observed, mask and sigma or None.
        cg_steps: measure a graph network after each CG step, too.

    Raises:
        UserError: a model whose layers have no such measures.
    """
    kind, parts = _layers_of(model)
    gathered = Gathered()
    with as_found(model), torch.autocast(inputs[0].device.type, enabled=False):
        handles = []
        try:
            if kind == "crate":
                handles.extend(watch_crate(parts, gathered))
            elif kind == "vit":
                handles.extend(watch_vit(parts, gathered))
            else:
                handles.extend(watch_graph_network(parts, gathered, cg_steps))
            model(*inputs)
        finally:
            for handle in handles:
                handle.remove()
    return gathered.measured()


@torch.no_grad()
def weights(model: nn.Module) -> list[Measured]:
    """What the parameters of the layers of `model` are like; see the table above. Raises UserError as `activations`."""
    kind, parts = _layers_of(model)
    gathered = Gathered()
    measure = {"crate": measure_crate_weights, "vit": measure_vit_weights, "graph": measure_graph_weights}[kind]
    measure(parts, gathered)
    return gathered.measured()


@dataclass(frozen=True)
class Matrix:
    """dictionary_spectrum (d,), largest first; coherence (K, K), of ViT coherence_P; metric (heads, D, D)."""

    name: str
    layer: tuple[int, ...]
    values: Tensor  # on the CPU


@torch.no_grad()
def matrices(model: nn.Module) -> list[Matrix]:
    """What the scalars of `weights` are taken from. Raises UserError as `activations`."""
    kind, parts = _layers_of(model)
    found = []
    for layer, part in enumerate(parts, start=1):
        if kind == "crate":
            bases = bases_of(part.mssa.subspaces.weight, part.mssa.num_heads)
            found.append(("dictionary_spectrum", layer, singular_values(part.ista.dictionary)))
            found.append(("coherence", layer, coherence(bases)))
        elif kind == "vit":
            for name, weight in zip(VIT_PARTS, part.attn.qkv.weight.chunk(3), strict=True):
                found.append((f"coherence_{name}", layer, coherence(bases_of(weight, part.attn.num_heads))))
        else:
            found.append(("metric", layer, part.graphs.root.mT @ part.graphs.root))
    return [Matrix(name, (layer,), values.detach().float().cpu()) for name, layer, values in found]


def undefined(model: nn.Module) -> dict[str, str]:
    """Measures of the white box that `model` has none of, and why. Raises UserError as `activations`."""
    kind, _ = _layers_of(model)
    if kind != "vit":
        return {}
    return {
        "rc_output, sparse_rate_reduction": "a ViT has three projections per head and no subspaces U_k, and no lambda",
        "dictionary_*, ista_step_bound": "its MLP is no step of an optimisation with a dictionary",
    }


def has_measures(model: nn.Module) -> bool:
    return unmeasured(model) is None


def unmeasured(model: nn.Module) -> str | None:
    """Why the layers of `model` have no measures; None where they have."""
    try:
        _layers_of(model)
    except UserError as error:
        return str(error)
    return None


def _layers_of(model: nn.Module) -> tuple[str, list[nn.Module] | list[Part]]:
    """("crate", "vit" or "graph", the layers or blocks)."""
    if isinstance(model, CRATE):
        return "crate", list(model.blocks)
    trunk = model.trunk if isinstance(model, ViTRestorer) else model
    if isinstance(trunk, VisionTransformer) and all(map(is_pre_norm, trunk.blocks)):
        return "vit", list(trunk.blocks)
    if isinstance(model, UntrainedGraphNetwork):
        return "graph", [model]
    if isinstance(model, UnrolledGraphNetwork | UGTVFast):
        if any(getattr(block, "plain", False) for block in model.blocks):
            raise UserError(f"{architecture(model)}: the plain form is not measured; leave model.kwargs.plain out")
        return "graph", list(model.blocks)
    raise UserError(
        f"{architecture(model)}: its layers have no measures; they are defined for CRATE, a ViT of timm, uglr, ugtv, "
        f"iglr, igtv and ugtv_fast"
    )


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without autograd; afterwards each module's mode and all random numbers are as before."""
    training = [module for module in model.modules() if module.training]
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(sorted(devices, key=str)), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
