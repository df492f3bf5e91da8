"""Which curves a report shows, what it says of them, and by which names a reader knows the measures."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """One pair of axes: the measures whose name is `measure`, or `measure` and a projection of a ViT."""

    title: str
    measure: str
    unit: str
    says: str = ""  # of a panel of a graph network: what it shows, as a sentence


_DECODER = "Decoder"
_RATES = "arXiv 2306.01129, as its authors measure (eps² = 0.01, tokens of unit norm)"
SHARE = "share that is not zero"
COSINE = "cosine"
RANK = "effective rank, dimensions"
STEP = "η‖D‖² (sure to descend up to 1)"
CHOICE = "entropy, nats"
_BEFORE = "what attention takes in"
_HALF = "after attention"
_AFTER = "after the layer"
_COSINES = "cosines of principal angles: Björck and Golub, Math. Comp. 27, 1973"
_RANKS = "Roy and Vetterli, EUSIPCO 2007; Beck and Teboulle, SIAM J. Imaging Sci. 2(1), 2009"

# Name of the figure, title, what it says, source, panels.
CURVES = (
    (
        "rate_given_subspaces",
        "Compression: the rate of the tokens, given the subspaces",
        "Each layer's attention is to move the tokens towards a few learned subspaces, one for each head. Rᶜ counts "
        "the nats that it takes to write the tokens of one picture down once the subspaces are known: less is more "
        "compressed. In the published CRATE it falls with depth after training, and hardly does before. Other "
        "networks, small ones and autoencoders among them, need not do so, and random weights may lie lower: tokens "
        "that hardly differ take few nats, too.",
        _RATES,
        (
            Panel(_BEFORE, "rc_attention_input", "Rᶜ, nats"),
            Panel(_HALF, "rc_half_step", "Rᶜ, nats"),
            Panel(_AFTER, "rc_output", "Rᶜ, nats"),
        ),
    ),
    (
        "variational_rate",
        "Compression without pairs: the variational rate",
        "ToST compares no two tokens. Each token belongs to each head's subspace to some degree, and the rate is "
        "written with the second moments of each head's coordinates alone, which bounds the exact one from above. Its "
        "attention is one step down this rate, so less is more compressed.",
        "arXiv 2412.17810, measured with eps² = 0.01 on tokens of unit norm",
        (
            Panel(_BEFORE, "variational_rate_attention_input", "rate, nats"),
            Panel(_HALF, "variational_rate_half_step", "rate, nats"),
            Panel(_AFTER, "variational_rate_output", "rate, nats"),
        ),
    ),
    (
        "memberships",
        "Memberships: whether each token chooses a head",
        "The entropy of the degrees to which a token belongs to the heads, mean over the tokens: 0 says that each "
        "token belongs to one head alone, ln K that it belongs to all K alike.",
        "arXiv 2412.17810: softmax over the heads, in each token",
        (Panel("within attention", "membership_entropy", CHOICE),),
    ),
    (
        "coding_rate",
        "Expansion: the rate of the tokens without the subspaces",
        "R counts the nats that the tokens of one picture take with nothing known of them, so a large value says "
        "that they still tell different things apart. A good representation keeps R high while Rᶜ falls. A network "
        "with random weights may have the higher R, and that is no contradiction: it scatters tokens in all "
        "directions, whether or not these mean anything, while training gives up those that its task has no use for. "
        "So a high R by itself is not yet a good representation.",
        _RATES,
        (
            Panel(_HALF, "coding_rate_half_step", "R, nats"),
            Panel(_AFTER, "coding_rate_output", "R, nats"),
        ),
    ),
    (
        "sparse_rate_reduction",
        "The objective: sparse rate reduction",
        "R − Rᶜ − λ‖Z‖₀ is what the layers are derived to raise: what the tokens tell apart, less what they cost "
        "once the subspaces are known, less λ for each entry that is not zero. Each layer is one step of that climb; "
        "training itself only minimises its own loss, and may trade some of the climb away. So a network with random "
        "weights may score higher here, and that is no contradiction: the sum asks how far tokens are spread and how "
        "few entries they have, and random weights can be good at both. Whether what is spread tells the pictures "
        "apart it does not ask; the loss and the accuracy do. Compare layers of one network rather than two networks.",
        "arXiv 2306.01129; λ is that of ISTA, rates are of tokens of unit norm",
        (Panel(_AFTER, "sparse_rate_reduction", "R − Rᶜ − λ‖Z‖₀"),),
    ),
    (
        "sparsity",
        "Sparsity: how many entries of a token are not zero",
        "The second half of a layer is a step towards a code with few entries that are not zero; only exact zeros "
        "count here. Attention makes nothing sparse, so 1 is right there. CRATE puts the code out as its tokens, and "
        "in published networks fewer entries are left with depth, except in the last layer. CRATE-alpha keeps a code "
        "of four times the width inside the layer; a ViT and ToST make none. A network with random weights may be the "
        "sparser one, and that is no contradiction: tokens that were all zero would be the sparsest and say nothing. "
        "Training keeps the entries that its task needs, so few entries by themselves are not yet a good "
        "representation.",
        "arXiv 2306.01129: ‖Z‖₀ / (d N); 2405.20299 for the code inside the layer",
        (
            Panel(_HALF, "nonzero_half_step", SHARE),
            Panel("the code inside the layer", "nonzero_code", SHARE),
            Panel(_AFTER, "nonzero_output", SHARE),
        ),
    ),
    (
        "coherence",
        "Coherence: how near the subspaces of one layer are to each other",
        "0 says that two heads look at directions with nothing in common, 1 that they share a direction. The model "
        "is derived for subspaces that are nearly orthogonal, so lower is closer to the theory.",
        _COSINES,
        (
            Panel("smallest angle, mean over pairs", "coherence", COSINE),
            Panel("smallest angle, nearest pair", "coherence_largest", COSINE),
            Panel("all angles, root mean square", "overlap", COSINE),
        ),
    ),
    (
        "dictionary",
        "Dictionaries: how many directions they use, and how far a step goes",
        "The sparse codes are written in a learned dictionary; its effective rank says in how many directions it "
        "is rich. While η‖D‖² stays below 1 the sparsifying step is sure to lower its own objective; from 2 on, "
        "repeated steps would diverge. CRATE-alpha turns codes back into tokens by a second dictionary.",
        _RANKS,
        (
            Panel("dictionary", "dictionary_effective_rank", RANK),
            Panel("second dictionary", "decoding_effective_rank", RANK),
            Panel("length of the step", "ista_step_bound", STEP),
        ),
    ),
)
# Of a masked autoencoder; layers count from 1 again.
DECODER_CURVES = (
    (
        "decoder_rates",
        "Decoder: the rate of its tokens, given its subspaces",
        "The decoder undoes the encoder layer by layer: a linear map undoes the sparse coding, then attention is "
        "subtracted where the encoder adds it. By the derivation that spreads the tokens out again: Rᶜ would be "
        "larger after the layer than before attention is subtracted. Training does not ask for it.",
        "arXiv 2404.02446, measured as in 2306.01129",
        (
            Panel(_BEFORE, "decoder_rc_attention_input", "Rᶜ, nats"),
            Panel("before attention is subtracted", "decoder_rc_half_step", "Rᶜ, nats"),
            Panel(_AFTER, "decoder_rc_output", "Rᶜ, nats"),
        ),
    ),
    (
        "decoder_coding_rate",
        "Decoder: the rate of its tokens without the subspaces",
        "The same R as of the encoder: how much the tokens of one picture tell apart, with nothing known of them.",
        "arXiv 2404.02446, measured as in 2306.01129",
        (
            Panel("before attention is subtracted", "decoder_coding_rate_half_step", "R, nats"),
            Panel(_AFTER, "decoder_coding_rate_output", "R, nats"),
        ),
    ),
    (
        "decoder_matrices",
        "Decoder: its subspaces and its linear maps",
        "As of the encoder: how near the subspaces of one layer are to each other, and in how many directions the map "
        "that undoes the sparse coding is rich.",
        f"{_COSINES}; Roy and Vetterli, EUSIPCO 2007",
        (
            Panel("smallest angle, mean over pairs", "decoder_coherence", COSINE),
            Panel("all angles, root mean square", "decoder_overlap", COSINE),
            Panel("linear map", "decoder_dictionary_effective_rank", RANK),
        ),
    ),
)
_BENDS = (
    "Each line holds the singular values of one layer's matrix, dark for the first layer and light for the last. A "
    "line that falls steeply says that the layer has come to use few directions; random matrices fall evenly."
)
SPECTRA = {
    "dictionary_spectrum": ("Dictionaries: the spectra", _BENDS, "arXiv 2306.01129, on the dictionary D"),
    "decoding_spectrum": ("Second dictionaries: the spectra", _BENDS, "arXiv 2405.20299, on D', which decodes"),
    "decoder_dictionary_spectrum": (
        "Decoder: the spectra of its linear maps",
        _BENDS,
        "arXiv 2404.02446, on the map that undoes the sparse coding",
    ),
}

# Of graph networks.
LEFT = Panel(
    "what CG leaves over",
    "system_residual",
    "share",
    "each layer solves a linear system by a few CG steps; shown is the error left in its equations, as a share of the "
    "error before them: 0 is solved, 1 is no nearer",
)
_ROUGHNESS = (
    "how rough it still is after each layer of the solver; the first point of a block is where its solver starts"
)
DESCENT = (
    Panel("GLR: the objective", "glr", "per pixel", _ROUGHNESS),
    Panel("GTV: the objective", "gtv", "per pixel", _ROUGHNESS),
    Panel("data residual", "data_residual", "root mean square", "by how much known values are missed on the whole"),
    Panel("constraint violation", "constraint_violation", "largest error", "by how much the worst of them is missed"),
    LEFT,
)
ENTROPY = Panel("entropy of a pixel's edges", "edge_entropy", "nats")
LEARNED = (
    Panel("α: length of a CG step", "alpha", "", "how far each step goes along its direction"),
    Panel(
        "β: momentum of a CG step",
        "beta",
        "",
        "how much of the direction before is kept; the first step of a layer has none before it, so its β has no "
        "effect, never learns and is left out",
    ),
    Panel("γ: penalty of an ADMM layer", "gamma", "", "how strongly a layer's two halves are tied to each other"),
    Panel("threshold of an ADMM layer", "threshold", "", "weighted differences across an edge below it are set to 0"),
    Panel("skip: how far a layer goes", "skip", "", "1 takes the layer's result, 0 what it began with"),
    Panel("weight of a head", "mix", "", "what each graph's solution is multiplied by before all are added up"),
    Panel("trace of the metric M", "metric_trace", "", "how strongly unlike features of two pixels thin their edge"),
    Panel("trust in noisy values", "trust", "", "how strongly known values bind where they are noisy"),
)
GRAPH_CURVES = (
    ("The objective's descent", DESCENT),
    ("How choosy the graphs are", (ENTROPY,)),
    ("What was learned", LEARNED),
)
MISSING = {  # what `layers.undefined` names
    "rc_output": "the rate after the layer, given the subspaces",
    "sparse_rate_reduction": "the objective",
    "dictionary_*": "dictionaries",
    "ista_step_bound": "the length of a step",
    "decoder_nonzero_*": "the sparsity of its decoder",
    "decoder_sparse_rate_reduction": "the objective of its decoder",
    "decoder_ista_step_bound": "the length of a step of its decoder",
}
METRICS = {  # of an evaluation, by task
    "classification": {"loss": "loss", "top1": "right, %", "top5": "right among five, %"},
    "masked_autoencoding": {
        "loss": "loss",
        "psnr": "PSNR of hidden pixels, dB",
        "psnr_of_visible_mean": "PSNR of the plainest guess, dB",
    },
    "restoration": {
        "loss": "loss",
        "psnr": "PSNR, dB",
        "ssim": "SSIM",
        "psnr_pooled": "PSNR of all values pooled, unclipped, dB",
        "ssim_float": "SSIM, unclipped",
    },
}
_PROJECTIONS = {"": "", "_query": ", queries", "_key": ", keys", "_value": ", values"}  # of a ViT


def named(measures: Collection[str]) -> Iterator[Panel]:
    """Measures under the names by which a reader of the report meets them, and in that order; others are left out."""
    curves = [(title, panels) for _, title, _, _, panels in CURVES]
    for title, panels in (*curves, *((_DECODER, panels) for *_, panels in DECODER_CURVES), *GRAPH_CURVES):
        for panel in panels:
            for part, words in _PROJECTIONS.items():
                if panel.measure + part in measures:
                    yield Panel(f"{title.partition(':')[0]}: {panel.title}{words}", panel.measure + part, panel.unit)


WORDS = {
    "token": "the vector of numbers by which the network stands for one patch of the picture. A class token, which "
    "stands for no patch, may be one more.",
    "layer": "one step of the network on all tokens: first attention, in which tokens meet, then a step on each alone.",
    "head, subspace": "a layer's attention has several heads, each with a learned set of directions, its subspace, and "
    "each sees of the tokens only what lies along them.",
    "rate, nats": "how much information the tokens take, up to a small fixed error. A nat is 1.44 bits. R scales whole "
    "tokens to length 1, Rᶜ what each head sees of them, so Rᶜ may be above R: compare each with itself.",
    "points and bars": "a point is a mean over the pictures (of weights: over pairs of heads), its bar one standard "
    "deviation. Green is the trained network, grey and dashed the same one without training.",
}
GRAPH_WORDS = {
    "graph, edge": "every pixel is tied to the pixels around it by edges. A heavy edge says that the two should be "
    "alike; the network learns how to weigh edges by what it sees.",
    "block, ADMM layer, CG step": "a block makes a graph and then solves a minimisation on it. The solver alternates "
    "between the data and the smoothness (ADMM layers), and solves a linear system in a few CG steps.",
    "PSNR": "how near a picture is to the original, in decibels: more is better, and 6 dB more is half the error.",
    "points and bars": "a point is a mean over the pictures (of learned parameters: over the heads), its bar one "
    "standard deviation. Green is the trained network, grey and dashed the same one without training.",
}
