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
    CRATE-alpha: as CRATE but for the last; its Z^(l+1) is no code, and so dense
    nonzero_code            (l,)              fraction   entries of the code A, 4 d for each token, that are not 0
    CRATE-MAE: its encoder as CRATE, and its decoder, where Y^(l+1/2) = E LN(Y^l) and Y^(l+1) = Y^(l+1/2) - MSSA(LN(.))
    decoder_rc_attention_input, decoder_rc_half_step, decoder_rc_output         (l,)   as above, l of the decoder
    decoder_coding_rate_half_step, decoder_coding_rate_output                   (l,)
    ToST: rc_*, coding_rate_*, nonzero_* as CRATE (the bias of U_k is in the attention's input only), and
    variational_rate_attention_input, variational_rate_half_step, variational_rate_output   (l,)   nats
                                                         R^var: what the layer descends (2412.17810), with the
                                                         memberships pi that its rule gives those tokens; at most
                                                         p/2 ln 101
    membership_entropy      (l,)              nats       mean over the tokens of -sum_k pi_k ln pi_k; exp of it is a
                                                         number of heads
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
    CRATE-alpha: as CRATE, D of (d, 4d); and D', which decodes
    decoding_largest_singular_value, decoding_smallest_singular_value, decoding_effective_rank   (l,)   one
    CRATE-MAE: its encoder as CRATE, and of its decoder the same but for the step bound, with E for D
    decoder_coherence, decoder_coherence_largest, decoder_overlap, decoder_dictionary_*
    ToST: coherence, coherence_largest, overlap
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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from crate_graph.analysis.graph_networks import Handle, measure_graph_weights, watch_graph_network
from crate_graph.analysis.measured import Gathered, Measured
from crate_graph.analysis.transformers import (
    DECODER,
    VIT_PARTS,
    attention_of,
    bases_of,
    dictionaries_of,
    is_pre_norm,
    measure_vit_weights,
    measure_white_box_weights,
    watch_alpha,
    watch_crate,
    watch_decoder,
    watch_tost,
    watch_vit,
)
from crate_graph.errors import UserError
from crate_graph.measures.matrices import coherence, singular_values
from crate_graph.models.crate import CRATE
from crate_graph.models.crate_alpha import CRATEAlpha
from crate_graph.models.crate_mae import CRATEMAE
from crate_graph.models.factory import architecture
from crate_graph.models.graph_networks import UnrolledGraphNetwork, UntrainedGraphNetwork
from crate_graph.models.tost import ToST
from crate_graph.models.ugtv_fast import UGTVFast
from crate_graph.models.vit_restorer import ViTRestorer

MEASURED = "CRATE, CRATE-alpha, CRATE-MAE, ToST, a ViT of timm, uglr, ugtv, iglr, igtv and ugtv_fast"


def activations(model: nn.Module, *inputs: Tensor | None, cg_steps: bool = False) -> list[Measured]:
    """What the layers of `model` do with a probe batch, model(*inputs); see the table above.

    The model, its mode, its gradients and the random numbers are afterwards as they were before; it runs in float32, in
    evaluation mode, without autograd.

    Args:
        inputs: images (B, C, H, W), for a masked autoencoder then the mask (B, N) or None; or for a restoration network
            observed, mask and sigma or None.
        cg_steps: measure a graph network after each CG step, too.

    Raises:
        UserError: a model whose layers have no such measures.
    """
    stacks = _stacks_of(model)
    gathered = Gathered()
    with as_found(model), torch.autocast(inputs[0].device.type, enabled=False):
        handles = []
        try:
            for family, layers in stacks:
                steps = {"cg_steps": cg_steps} if family is _GRAPH else {}
                handles.extend(family.watch(layers, gathered, **steps))
            model(*inputs)
        finally:
            for handle in handles:
                handle.remove()
    return gathered.measured()


@torch.no_grad()
def weights(model: nn.Module) -> list[Measured]:
    """What the parameters of the layers of `model` are like; see the table above. Raises UserError as `activations`."""
    gathered = Gathered()
    for family, layers in _stacks_of(model):
        family.measure_weights(layers, gathered)
    return gathered.measured()


@dataclass(frozen=True)
class Matrix:
    """dictionary_spectrum (d,), largest first; coherence (K, K), of ViT coherence_P; metric (heads, D, D).

    CRATE-alpha has decoding_spectrum (d,), too; what a decoder has begins with "decoder_".
    """

    name: str
    layer: tuple[int, ...]
    values: Tensor  # on the CPU


@torch.no_grad()
def matrices(model: nn.Module) -> list[Matrix]:
    """What the scalars of `weights` are taken from. Raises UserError as `activations`."""
    return [
        Matrix(name, (number,), values.detach().float().cpu())
        for family, layers in _stacks_of(model)
        for number, layer in enumerate(layers, start=1)
        for name, values in family.matrices(layer)
    ]


def undefined(model: nn.Module) -> dict[str, str]:
    """Measures of the white box that `model` has none of, and why. Raises UserError as `activations`."""
    return {measures: why for family, _ in _stacks_of(model) for measures, why in family.undefined.items()}


def has_measures(model: nn.Module) -> bool:
    return unmeasured(model) is None


def unmeasured(model: nn.Module) -> str | None:
    """Why the layers of `model` have no measures; None where they have."""
    try:
        _stacks_of(model)
    except UserError as error:
        return str(error)
    return None


def _white_box_matrices(block: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, dictionary in dictionaries_of(block).items():
        yield f"{prefix}{name}_spectrum", singular_values(dictionary)
    attention = attention_of(block)
    yield f"{prefix}coherence", coherence(bases_of(attention.subspaces.weight, attention.num_heads))


def _vit_matrices(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, weight in zip(VIT_PARTS, block.attn.qkv.weight.chunk(3), strict=True):
        yield f"coherence_{name}", coherence(bases_of(weight, block.attn.num_heads))


def _graph_matrices(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield "metric", part.graphs.root.mT @ part.graphs.root


@dataclass(frozen=True)
class _Family:
    """Layers of one kind: how they are watched, what their weights tell, and what they do not have."""

    watch: Callable[..., Iterator[Handle]]
    measure_weights: Callable[[list[nn.Module], Gathered], None]
    matrices: Callable[[nn.Module], Iterator[tuple[str, Tensor]]]
    undefined: dict[str, str] = field(default_factory=dict)


_CRATE = _Family(watch_crate, measure_white_box_weights, _white_box_matrices)
_ALPHA = _Family(
    watch_alpha,
    measure_white_box_weights,
    _white_box_matrices,
    {"sparse_rate_reduction": "its layers add their decoded codes to the tokens, so no tokens are a sparse code"},
)
_DECODER = _Family(
    watch_decoder,
    partial(measure_white_box_weights, prefix=DECODER),
    partial(_white_box_matrices, prefix=DECODER),
    {
        "decoder_nonzero_*, decoder_sparse_rate_reduction, decoder_ista_step_bound": "its decoder undoes the sparse "
        "coding by a linear map, which is no step of ISTA, and no token there is sparse"
    },
)
_TOST = _Family(
    watch_tost,
    measure_white_box_weights,
    _white_box_matrices,
    {
        "sparse_rate_reduction": "its layers have no step towards a sparse code, and so no lambda",
        "dictionary_*, ista_step_bound": "its MLP is no step of an optimisation with a dictionary",
    },
)
_VIT = _Family(
    watch_vit,
    measure_vit_weights,
    _vit_matrices,
    {
        "rc_output, sparse_rate_reduction": "a ViT has three projections per head and no subspaces U_k, and no lambda",
        "dictionary_*, ista_step_bound": "its MLP is no step of an optimisation with a dictionary",
    },
)
_GRAPH = _Family(watch_graph_network, measure_graph_weights, _graph_matrices)


def _stacks_of(model: nn.Module) -> list[tuple[_Family, list[nn.Module]]]:
    """The layers or blocks of the model, in stacks of one kind each: a masked autoencoder has two."""
    for kind, family in ((CRATE, _CRATE), (CRATEAlpha, _ALPHA), (ToST, _TOST)):
        if isinstance(model, kind):
            return [(family, list(model.blocks))]
    if isinstance(model, CRATEMAE):
        return [(_CRATE, list(model.blocks)), (_DECODER, list(model.decoder_blocks))]
    trunk = model.trunk if isinstance(model, ViTRestorer) else model
    if isinstance(trunk, VisionTransformer) and all(map(is_pre_norm, trunk.blocks)):
        return [(_VIT, list(trunk.blocks))]
    if isinstance(model, UntrainedGraphNetwork):
        return [(_GRAPH, [model])]
    if isinstance(model, UnrolledGraphNetwork | UGTVFast):
        if any(getattr(block, "plain", False) for block in model.blocks):
            raise UserError(f"{architecture(model)}: the plain form is not measured; leave model.kwargs.plain out")
        return [(_GRAPH, list(model.blocks))]
    raise UserError(f"{architecture(model)}: its layers have no measures; they are defined for {MEASURED}")


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
