import pytest
import torch

from crate_graph import create_model
from crate_graph.config.schema import Optimizer
from crate_graph.train.optimizer import build_optimizer, param_groups


@pytest.fixture(params=["crate_tiny_patch16_224", "vit_tiny_patch16_224"])
def model(request):
    with torch.device("meta"):
        return create_model(request.param, embed_dim=48, depth=3, num_heads=3, num_classes=5)


def names_by_group(config, model):
    names = {p: name for name, p in model.named_parameters()}
    return [
        ({names[p] for p in group["params"]}, group["weight_decay"], group["lr_scale"])
        for group in param_groups(config, model)
    ]


def test_every_parameter_once(model):
    for config in (Optimizer(), Optimizer(decay="all"), Optimizer(layer_decay=0.5)):
        grouped = [name for names, *_ in names_by_group(config, model) for name in names]
        assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())


def test_decay_all_and_matrices(model):
    ((names, decay, _),) = names_by_group(Optimizer(decay="all", weight_decay=0.3), model)
    assert decay == 0.3 and len(names) == len(list(model.parameters()))
    decays = {name: d for names, d, _ in names_by_group(Optimizer(weight_decay=0.3), model) for name in names}
    spared = {name for name, d in decays.items() if d == 0.0}
    assert model.no_weight_decay() & decays.keys() <= spared
    assert all(p.ndim <= 1 or name in model.no_weight_decay() for name, p in model.named_parameters() if name in spared)
    assert any(d == 0.3 for d in decays.values())


def test_layer_decay_falls_towards_the_input(model):
    scales = {name: s for names, _, s in names_by_group(Optimizer(layer_decay=0.5), model) for name in names}
    head = next(name for name in scales if name.startswith("head"))
    assert scales[head] == 1.0
    first, last = (next(s for name, s in scales.items() if name.startswith(f"blocks.{i}.")) for i in (0, 2))
    assert first == last * 0.25
    embedding = next(s for name, s in scales.items() if name.startswith("patch_embed"))
    assert embedding < first


def test_lion_is_built_with_its_own_betas(model):
    assert build_optimizer(Optimizer(name="lion"), model).param_groups[0]["betas"] == (0.9, 0.99)
