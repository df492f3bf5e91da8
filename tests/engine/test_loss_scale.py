import torch

from crate_graph.engine.loss_scale import LossScale


def test_grows_and_backs_off_like_a_grad_scaler_and_its_state_travels():
    scale = LossScale("fp16", torch.device("cpu"))
    scale.update(torch.tensor(1.0))
    assert scale.value.item() == 2.0**15
    for _ in range(1999):
        scale.update(torch.tensor(0.0))
    resumed = LossScale("fp16", torch.device("cpu"))
    resumed.load_state_dict(scale.state_dict())
    resumed.update(torch.tensor(0.0))  # the 2000th good step in a row
    assert resumed.value.item() == 2.0**16


def test_is_one_without_fp16():
    scale = LossScale("bf16", torch.device("cpu"))
    scale.update(torch.tensor(1.0))
    assert scale.value.item() == 1.0
    fresh = LossScale("fp16", torch.device("cpu"))
    fresh.load_state_dict(scale.state_dict())
    assert fresh.value.item() == 2.0**16
