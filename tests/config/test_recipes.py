"""Every shipped recipe can be trained as far as its text goes, and its header says what is true."""

import re
from functools import cache

import pytest
import torch

from crate_graph.config import load_recipe
from crate_graph.config.load import find_recipe, shipped_recipes
from crate_graph.data import open_dataset
from crate_graph.models import create_model
from crate_graph.models.crate_mae import from_patches
from crate_graph.models.weights import load_pretrained

SHIPPED = shipped_recipes()
RECIPES = sorted(SHIPPED)
load = cache(load_recipe)  # each is asked for by ten tests


def header(name):
    lines = SHIPPED[name].read_text().splitlines()
    return "\n".join(line for line in lines[: lines.index("")] if line.startswith("#"))


def meta_model(recipe):
    kwargs = dict(recipe.model.kwargs)
    dataset = open_dataset(recipe.data.dataset)
    if recipe.task.kind == "classification":
        kwargs["num_classes"] = dataset.num_classes
    if recipe.task.kind == "masked_autoencoding":
        kwargs["in_chans"] = dataset.channels
    with torch.device("meta"):
        return create_model(recipe.model.name, **kwargs)


def parameters(name):
    return sum(parameter.numel() for parameter in meta_model(load(name)).parameters())


def test_the_recipes_that_the_readme_and_the_tests_name_are_shipped():
    assert {"quickstart", "fashion_mnist/crate", "cifar10/scratch_vit", "crate/imagenet1k_base_readme"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_the_model_takes_the_images_of_the_data_set(name):
    recipe = load(name)
    dataset = open_dataset(recipe.data.dataset)
    assert {recipe.data.train_split, recipe.data.eval_split} <= set(dataset.description.splits)
    if recipe.task.kind == "restoration":
        channels = 1 if recipe.data.color == "y" else 3
        observed = torch.zeros(2, channels, recipe.data.patch, recipe.data.patch, device="meta")
        assert meta_model(recipe)(observed, observed).shape == observed.shape
        return
    view = recipe.data.train_transform
    assert view.size == recipe.data.eval_transform.size
    images = torch.empty(2, dataset.channels, view.size, view.size, device="meta")
    model = meta_model(recipe)
    if recipe.task.kind == "masked_autoencoding":
        assert from_patches(model(images), model.patch_embed.patch_size, images.shape[-2:]).shape == images.shape
        return
    assert model(images).shape == (2, dataset.num_classes)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("world", [1, 2, 4, 8, 16, 32])
def test_the_recipe_runs_on_many_world_sizes(name, world):
    recipe = load(name)
    if "two CPU cores" in header(name) and world > 8:
        return  # small on purpose
    assert recipe.batch.global_batch % world == 0
    assert recipe.data.slots % (world * max(recipe.data.workers, 1)) == 0


@pytest.mark.parametrize("name", RECIPES)
def test_the_header_says_how_to_run_it_and_what_came_out(name):
    text = header(name)
    for field in ("Run:", "Hardware:", "Published:", "Ours:"):
        assert re.search(rf"^# {field} +\S", text, re.MULTILINE), field
    command = re.search(r"# Run: +(.*)", text).group(1)
    named = re.search(r"(?:train|local\.sh) (\S+)", command).group(1).replace("-quickstart", "_quickstart")
    assert find_recipe(named) == SHIPPED[name]


@pytest.mark.parametrize("name", [name for name in RECIPES if "imagenet1k" in name])
def test_the_published_size_is_the_models(name):
    stated = float(re.search(r"([\d.]+) million parameters", header(name)).group(1))
    assert round(parameters(name) / 1e6, 2) == pytest.approx(stated)


@pytest.mark.parametrize("name", [name for name in RECIPES if "probe" in name or "fashion_mnist_crate_mae" in name])
def test_what_starts_from_an_autoencoder_fits_its_encoder(name):
    recipe = load(name)
    assert ("probe" in name) == (recipe.model.freeze == "backbone") == recipe.model.new_head
    if not name.endswith("_mae"):
        return
    source = load("mae_quickstart" if "fashion" in name else "crate_mae/imagenet1k_base")
    assert recipe.model.init_from == f"runs/{source.name}"
    mae, model = meta_model(source), meta_model(recipe)
    assert model.blocks[0].ista.lambd == mae.blocks[0].ista.lambd
    assert model.blocks[0].mssa.num_heads == mae.blocks[0].mssa.num_heads
    transfer = load_pretrained(model, mae.state_dict())
    assert set(transfer.initial) == {"head.weight", "head.bias"} and "pos_embed" in transfer.loaded


@pytest.mark.parametrize(
    "pair", [("fashion_mnist/crate", "fashion_mnist/vit"), ("cifar10/scratch_crate", "cifar10/scratch_vit")]
)
def test_compared_models_have_one_size_and_one_recipe(pair):
    crate, vit = map(parameters, pair)
    assert crate == pytest.approx(vit, rel=0.01)
    for name, here, there in ((pair[0], crate, vit), (pair[1], vit, crate)):
        assert f"{here:,} parameters here, {there:,} there" in header(name)
    one, other = (load(name).model_dump(exclude={"name", "model"}) for name in pair)
    assert one == other


def test_restorers_of_one_table_are_of_one_size():
    sizes = {
        model: parameters(f"restoration/demosaicking_{model}") for model in ("uglr", "ugtv", "ugtv_fast", "conv", "vit")
    }
    assert max(sizes.values()) < 1.25 * min(sizes.values()), sizes
    assert sizes["ugtv_fast"] <= 931_763 / 3, "a third of RSTCANet-B"
