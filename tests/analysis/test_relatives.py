"""CRATE-alpha, CRATE-MAE and ToST: each measure against its formula in float64, telemetry, and whole reports."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from crate_graph import create_model
from crate_graph.analysis.layers import activations, matrices, undefined, weights
from crate_graph.analysis.panels import CURVES, DECODER_CURVES, MISSING, named
from crate_graph.analysis.pictures import View, samples_of
from crate_graph.analysis.reconstruction import hidden_patches
from crate_graph.analysis.subject import open_subject
from crate_graph.analysis.tokens import choose_layer, heads_at, resized
from crate_graph.checkpoint import CheckpointStore
from crate_graph.checkpoint.contents import Contents
from crate_graph.cli import main
from crate_graph.cluster.ranks import discover
from crate_graph.config.load import dump_recipe
from crate_graph.config.schema import Recipe
from crate_graph.data import open_dataset
from crate_graph.engine.base import Portable
from crate_graph.errors import UserError
from crate_graph.measures.rate import coding_rate_reference, rate_given_subspaces_reference
from crate_graph.models.crate_mae import from_patches
from crate_graph.models.published import load_published
from crate_graph.models.published_names import to_published
from crate_graph.models.published_sizes import published_configuration
from crate_graph.ops import mssa_reference, tssa_reference
from crate_graph.ops.overcomplete import overcomplete_code_reference
from crate_graph.train.white_box import Probe, build_probe, measure, shell_of

SIZE = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3)
NAMES = {
    "alpha": "crate_alpha_base_patch16_224",
    "mae": "crate_mae_tiny_patch16_224",
    "tost": "tost_tiny_patch16_224",
}
GOLDEN = Path(__file__).parents[1] / "golden"


def make(kind, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classes = {} if kind == "mae" else {"num_classes": 4}
        model = create_model(NAMES[kind], **{**SIZE, **classes, **kwargs})
        for name, p in model.named_parameters():  # biases, norms and temperatures as after training
            if p.ndim == 1 or name.endswith("temperature"):
                torch.nn.init.uniform_(p, 0.5, 1.5)
    return model.double().eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def mask():
    return (torch.rand(3, 16, generator=torch.Generator().manual_seed(0)) < 0.75).float()


def table(measured):
    return {(m.name, m.layer): m for m in measured}


def check(measured, expected):
    assert measured.mean == pytest.approx(expected.mean().item(), rel=1e-6)
    assert measured.std == pytest.approx(expected.std().item(), rel=1e-3, abs=1e-6)


def unit(w):
    return w / w.norm(dim=-1, keepdim=True)


def projected(weight, z):
    """(K, p, D) and (B, N, D) -> (B, K, N, p)."""
    return torch.einsum("kpd,bnd->bknp", weight.unflatten(0, (3, 8)), z)


def back(attention, w):
    return attention.proj(w.transpose(1, 2).flatten(2))


def check_rates(found, layer, attention, norm, z, half, after, prefix="", attended=None):
    weight = attention.subspaces.weight
    bias = 0 if attention.subspaces.bias is None else attention.subspaces.bias.view(3, 1, 8)
    ways = {
        "attention_input": projected(weight, norm(z if attended is None else attended)) + bias,
        "half_step": projected(weight, half),
        "output": projected(weight, after),
    }
    for name, w in ways.items():
        check(found[f"{prefix}rc_{name}", (layer,)], rate_given_subspaces_reference(unit(w)))
    for name, tokens in (("half_step", half), ("output", after)):
        check(found[f"{prefix}coding_rate_{name}", (layer,)], coding_rate_reference(unit(tokens)))
    return ways


@torch.no_grad()
def test_alpha_measures_its_code_and_its_tokens(images):
    model = make("alpha")
    found = table(activations(model, images))
    z = model.embed(images)
    for layer, block in enumerate(model.blocks, start=1):
        w = projected(block.mssa.subspaces.weight, block.norm1(z))
        half = z + back(block.mssa, mssa_reference(w))
        code = overcomplete_code_reference(block.norm2(half), block.ista.dictionary, 0.1, 0.1)  # (B, N, 4 D)
        after = half + code @ block.ista.decoder.T
        check_rates(found, layer, block.mssa, block.norm1, z, half, after)
        check(found["nonzero_code", (layer,)], (code != 0).double().mean(dim=(1, 2)))
        assert 0 < found["nonzero_code", (layer,)].mean < 1
        assert found["nonzero_output", (layer,)].mean == 1 == found["nonzero_half_step", (layer,)].mean
        z = after
    assert len(found) == 2 * 8 and "sparse_rate_reduction" in undefined(model)


@torch.no_grad()
def test_both_halves_of_the_autoencoder_are_measured(images, mask):
    model = make("mae")
    found = table(activations(model, images, mask))
    z = model.embed(images, mask)
    for layer, block in enumerate(model.blocks, start=1):
        half = block.compress(z)
        x, dictionary = block.norm2(half), block.ista.dictionary
        after = F.relu(x + 0.1 * (x - x @ dictionary.T) @ dictionary - 0.1 * 0.5)
        w = check_rates(found, layer, block.mssa, block.norm1, z, half, after)["output"]
        check(found["nonzero_output", (layer,)], (after != 0).double().mean(dim=(1, 2)))
        reduction = coding_rate_reference(unit(after)) - rate_given_subspaces_reference(unit(w))
        check(found["sparse_rate_reduction", (layer,)], reduction - 0.5 * (after != 0).sum(dim=(1, 2)))
        z = after
    y = model.norm(z)
    for layer, block in enumerate(model.decoder_blocks, start=1):
        half = block.norm1(y) @ block.dictionary.T
        w = projected(block.mssa.subspaces.weight, block.norm2(half))
        after = half - back(block.mssa, mssa_reference(w))
        check_rates(found, layer, block.mssa, block.norm2, y, half, after, prefix="decoder_", attended=half)
        y = after
    assert len(found) == 2 * (8 + 5) and any("decoder_nonzero" in names for names in undefined(model))


@torch.no_grad()
def test_tost_measures_the_rate_that_it_descends(images):
    model = make("tost")
    found = table(activations(model, images))
    z = model.embed(images)
    for layer, block in enumerate(model.blocks, start=1):
        bias = block.tssa.subspaces.bias.view(3, 1, 8)
        w = projected(block.tssa.subspaces.weight, block.norm1(z)) + bias
        half = z + block.gamma1 * back(block.tssa, tssa_reference(w, block.tssa.temperature))
        after = half + block.gamma2 * block.mlp(block.norm2(half))
        for name, w in check_rates(found, layer, block.tssa, block.norm1, z, half, after).items():
            rates, entropies = zip(*(variational(each, block.tssa.temperature) for each in w), strict=True)
            check(found[f"variational_rate_{name}", (layer,)], torch.stack(rates))
            if name == "attention_input":
                check(found["membership_entropy", (layer,)], torch.stack(entropies))
        z = after
    assert len(found) == 2 * (7 + 4)
    assert {"sparse_rate_reduction", "dictionary_*, ista_step_bound"} == set(undefined(model))


def variational(w, temperature):
    """The rate of one picture, w (K, N, p), and the entropy of its memberships: sum by sum."""
    heads, n, p = w.shape
    shares = w**2 / (w**2).sum(dim=1, keepdim=True)
    membership = torch.softmax(shares.sum(dim=-1) * temperature, dim=0)  # (K, N)
    tokens, rate = unit(w), 0
    for k in range(heads):
        mass = membership[k].sum()
        for i in range(p):
            moment = (membership[k] * tokens[k, :, i] ** 2).sum() / mass
            rate = rate + mass / n * torch.log(1 + p / 0.01 * moment) / 2
    return rate, -(membership * membership.log()).sum(dim=0).mean()


def test_weights_of_the_relatives():
    alpha, mae, tost = make("alpha"), make("mae"), make("tost")
    with torch.no_grad():
        alpha.blocks[0].ista.dictionary.copy_(torch.cat((3 * torch.eye(24), torch.zeros(24, 72)), dim=1))
        alpha.blocks[1].ista.decoder.copy_(torch.eye(24, 96))
        mae.decoder_blocks[1].dictionary.copy_(2 * torch.eye(24))
        tost.blocks[0].tssa.subspaces.weight.copy_(torch.eye(24))
    found = table(weights(alpha))
    assert found["ista_step_bound", (1,)].mean == pytest.approx(0.9)
    assert found["dictionary_effective_rank", (1,)].mean == pytest.approx(24, rel=1e-6)
    assert found["decoding_effective_rank", (2,)].mean == pytest.approx(24, rel=1e-6)
    assert found["decoding_largest_singular_value", (2,)].mean == pytest.approx(1)
    assert {"coherence", "overlap"} <= {name for name, _ in found}
    found = table(weights(mae))
    assert found["decoder_dictionary_smallest_singular_value", (2,)].mean == pytest.approx(2)
    assert ("ista_step_bound", (2,)) in found and not any("decoder_ista" in name for name, _ in found)
    found = table(weights(tost))
    assert found["coherence", (1,)].mean == pytest.approx(0, abs=1e-6) and len(found) == 2 * 3
    names = [{m.name for m in matrices(model)} for model in (alpha, mae, tost)]
    assert names[0] == {"dictionary_spectrum", "decoding_spectrum", "coherence"} and names[2] == {"coherence"}
    assert names[1] == {"dictionary_spectrum", "coherence", "decoder_dictionary_spectrum", "decoder_coherence"}


def test_a_report_has_words_for_what_is_missing_and_for_each_curve():
    for model in (*map(make, NAMES), create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, depth=1)):
        assert all(name in MISSING for names in undefined(model) for name in names.split(", "))
    measures = [panel.measure for *_, panels in (*CURVES, *DECODER_CURVES) for panel in panels]
    assert [panel.measure for panel in named(measures)] == measures
    (key,) = named({"rc_half_step_key", "rc_nothing"})
    assert (key.title, key.unit) == ("Compression: after attention, keys", "Rᶜ, nats")


@pytest.mark.parametrize("kind", NAMES)
def test_telemetry_measures_through_an_empty_shell_and_leaves_the_model(kind, images, mask):
    model = make(kind).train()
    inputs = (images, mask) if kind == "mae" else (images,)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = activations(model, *inputs)
    shell = shell_of(model)
    values = {name: p.data for name, p in model.named_parameters()} | dict(model.named_buffers())
    assert measure(Probe(shell, inputs), values) == expected
    assert all(p.is_meta for p in shell.parameters()) and all(m.training for m in model.modules())
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def mae_recipe():
    kwargs = {**SIZE, "img_size": 28, "in_chans": 1}
    return Recipe(
        name="toy",
        seed=3,
        task={"kind": "masked_autoencoding", "mask_ratio": 0.6},
        model={"name": NAMES["mae"], "kwargs": kwargs},
        data={
            "dataset": "fashion_mnist",
            "train_transform": {"size": 28},
            "eval_transform": {"size": 28, "resize": None},
        },
        telemetry={"whitebox": {"every": 1, "samples": 4}},
    )


def test_telemetry_of_an_autoencoder_hides_what_training_hides():
    recipe = mae_recipe()
    model = create_model(NAMES["mae"], **recipe.model.kwargs)
    probe = build_probe(recipe, open_dataset("fashion_mnist"), model, discover())
    seen, hidden = probe.inputs
    assert seen.shape == (4, 1, 28, 28) and hidden.shape == (4, 49)
    assert hidden.sum(dim=1).tolist() == [30] * 4 and not hidden[0].equal(hidden[1])
    assert {m.name for m in activations(model, *probe.inputs)} >= {"rc_output", "decoder_rc_output"}


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A checkpoint of an autoencoder, as training writes it."""
    recipe = mae_recipe()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model(NAMES["mae"], **recipe.model.kwargs)
    facts = {
        "task": {"kind": "masked_autoencoding", "mask_ratio": 0.6, "normalize_patches": False},
        "model": {"name": NAMES["mae"], "kwargs": recipe.model.kwargs, "num_classes": None},
        "dataset": {"name": "fashion_mnist", "classes": [], "mean": [0.286], "std": [0.353]},
        "metrics": {"psnr": 12.5},
    }
    contents = Contents(Portable(model.state_dict(), {}, 30), None, {"step": 30}, dump_recipe(recipe))
    return CheckpointStore(tmp_path_factory.mktemp("mae")).write(30, contents.to_files(), facts)


def rows_of(output, figure):
    with (output / "figures" / f"{figure}.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_report_of_an_autoencoder_shows_completed_pictures(autoencoder, tmp_path, capsys):
    output = tmp_path / "report"
    assert main(["analyze", str(autoencoder), "--output", str(output), "--samples", "3", "--show", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"reconstruction", "attention", "pca", "maskcut", "decoder_rates"} <= set(result["figures"])
    assert result["last_layer"]["decoder_rc_output"]["layer"] == [2]
    rows = rows_of(output, "reconstruction")
    assert len(rows) == 3
    subject = open_subject(str(autoencoder))
    samples = samples_of(subject, None, 3)
    hidden, seen = hidden_patches(subject, 3), View(subject).images(samples)
    with torch.no_grad():
        pixels = from_patches(subject.model(seen, hidden), (4, 4), (28, 28))
    where = from_patches(hidden.unsqueeze(-1).expand(-1, -1, 16), (4, 4), (28, 28)) > 0
    for number, row in enumerate(rows):
        images = [(t[number] * 0.353 + 0.286).clamp(0, 1).mul(255).round() / 255 for t in (pixels, seen)]
        error = (images[0] - images[1])[where[number]].square().mean()
        assert float(row["PSNR of the hidden pixels"]) == pytest.approx(-10 * error.log10().item(), abs=0.02)
    page = (output / "report.html").read_text()
    assert "On the hidden pixels of these 3 pictures it has" in page and "PSNR of hidden pixels, dB" in page
    assert "of the hidden pixels of each, of the evaluation of toy (fashion_mnist, split test)" in page
    assert "From the first to the last layer (after the layer; Rᶜ, nats). " in page
    assert page.count("so what is derived is ") == 2
    assert "60% of the patches are hidden" in page and "the sparsity of its decoder" in page


def test_maps_of_the_relatives(autoencoder, images):
    subject = open_subject(str(autoencoder))
    assert choose_layer(subject, None) == 1
    larger = torch.randn(2, 1, 56, 56, generator=torch.Generator().manual_seed(0))
    maps = heads_at(subject, 1, larger).attention()
    assert maps.shape == (2, 3, 14, 14) and maps.sum(dim=(2, 3)).allclose(torch.ones(2, 3))
    with torch.no_grad():
        positions = subject.model.pos_embed.clone()
    assert positions.shape[1] == 50, "the subject keeps its own size"


def test_the_map_of_tost_is_the_weight_of_a_patch_in_a_head(published):
    subject = open_subject(str(published["tost"]))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    heads = heads_at(subject, 1, images)
    block = subject.model.blocks[0]
    w = block.tssa.subspaces(block.norm1(resized(subject, 32).embed(images))).unflatten(-1, (3, 16)).transpose(1, 2)
    shares = (w**2 / (w**2).sum(dim=2, keepdim=True)).sum(-1) * block.tssa.temperature
    pi = torch.softmax(shares, dim=1)
    assert choose_layer(subject, None) == 2 and heads.grid == (4, 4)
    torch.testing.assert_close(heads.memberships, pi.detach())
    torch.testing.assert_close(heads.attention().flatten(2), (pi / pi.sum(-1, keepdim=True)).detach())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Published weights as files, by family: safetensors with the heads in the metadata."""
    folder, files = tmp_path_factory.mktemp("published"), {}
    for family in ("crate", "crate_alpha", "crate_mae", "tost"):
        with safe_open(GOLDEN / f"{family}.safetensors", "pt") as file:
            state = {
                key.removeprefix("state."): file.get_tensor(key)
                for key in file.keys()  # noqa: SIM118 (no mapping)
                if key.startswith("state.")
            }
            files[family] = folder / f"{family}.safetensors"
            save_file(state, files[family], metadata={"heads": file.metadata()["heads"]})
    return files


@pytest.mark.parametrize("family", ["crate", "crate_alpha", "crate_mae", "tost"])
def test_published_weights_are_opened_by_their_shapes(published, family):
    subject = open_subject(str(published[family]))
    with safe_open(GOLDEN / f"{family}.safetensors", "pt") as file:
        config = file.metadata()
        state = {k[6:]: file.get_tensor(k) for k in file.keys() if k.startswith("state.")}  # noqa: SIM118
    expected = load_published(family, state, **config).state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in subject.model.state_dict().items())
    assert subject.view.size == (224 if family == "tost" else 32) and subject.architecture == family
    assert not subject.initial.state_dict()["cls_token"].equal(expected["cls_token"])


def test_heads_of_published_weights_are_those_of_the_published_size():
    name = "crate_mae_tiny_patch16_224"
    weights = to_published(create_model(name, img_size=32, depth=12, decoder_depth=1).state_dict())
    assert published_configuration(weights, {}) == (
        "crate_mae",
        {"dim": 384, "depth": 12, "patch_size": 16, "image_size": 32, "decoder_depth": 1, "heads": 6},
    )
    with pytest.raises(UserError, match="no published size of crate_mae"):
        published_configuration(to_published(create_model(name, img_size=32, depth=1).state_dict()), {})


def test_a_report_of_published_weights_from_a_pickle(published, tmp_path, capsys):
    """torch.save, as the authors write them; heads of ToST are in its weights."""
    (tmp_path / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (90, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "pictures" / "tall.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "pictures" / "grey.jpg")
    state = {f"module.{name}": tensor for name, tensor in load_file(published["tost"]).items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "weights.pth")
    words = ["analyze", str(tmp_path / "weights.pth"), "--output", str(tmp_path / "report")]
    assert main([*words]) == 2
    assert "name pictures with --images" in capsys.readouterr().err
    assert main([*words, "--images", str(tmp_path / "pictures"), "--json", "--size", "64"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"variational_rate", "memberships", "attention"} <= set(result["figures"])
    page = (tmp_path / "report" / "report.html").read_text()
    assert "dictionaries, the length of a step; its MLP" in page and "how pictures were normalised" in page
