"""A frozen backbone: nothing of it learns, drops out or counts."""

import pytest
import timm
import torch

from crate_graph import create_model
from crate_graph.engine.objective import Objective
from crate_graph.errors import UserError
from crate_graph.models.heads import freeze_backbone, trained_parameters
from crate_graph.tasks.classification import ClassificationTask

SMALL = {"img_size": 16, "patch_size": 4, "in_chans": 3, "num_classes": 5}
WHITE = {**SMALL, "embed_dim": 32, "depth": 2, "num_heads": 2, "drop_rate": 0.5, "drop_path_rate": 0.5}
MODELS = {
    "crate_tiny_patch16_224": WHITE,
    "crate_alpha_tiny_patch16_224": WHITE,
    "tost_tiny_patch16_224": WHITE,
    "vit_tiny_patch16_224": {**WHITE, "pos_drop_rate": 0.5},
    "resnet10t": {"num_classes": 5, "drop_rate": 0.5},  # drops out in a function, not in a module
}


@pytest.mark.parametrize("name", MODELS)
def test_only_the_head_learns_and_the_rest_is_as_in_evaluation(name):
    torch.manual_seed(0)
    model = create_model(name, **MODELS[name])
    freeze_backbone(model)
    objective = Objective(model, ClassificationTask(), "fp32").train()
    head = model.get_classifier()
    assert head.training and trained_parameters(model) == sum(p.numel() for p in head.parameters())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    images, targets = torch.randn(4, 3, 32, 32)[..., : 16 if "img_size" in MODELS[name] else 32, :], torch.arange(4)
    images = images[..., : images.shape[-2]]
    first, again = (objective(images, targets, torch.ones(4))[0] for _ in range(2))
    assert torch.equal(first, again)  # nothing is random
    first.backward()
    assert {key for key, p in model.named_parameters() if p.grad is not None} == {
        key for key, p in model.named_parameters() if any(p is q for q in head.parameters())
    }
    assert all(
        torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items()
    )  # batch norms did not count
    objective.eval()
    assert not head.training
    objective.train()
    assert head.training and not model.training


def test_a_model_that_is_not_frozen_trains_as_a_whole():
    objective = (
        Objective(timm.create_model("vit_tiny_patch16_224", depth=1), ClassificationTask(), "fp32").eval().train()
    )
    assert all(module.training for module in objective.modules())


def test_a_model_without_a_head_is_refused():
    with pytest.raises(UserError, match="no head of its own"):
        freeze_backbone(create_model("crate_tiny_patch16_224", **{**WHITE, "num_classes": 0}))
