import pytest
import torch
from timm.optim import Lion as TimmLion

from crate_graph.engine.optimizers import AdamW, Lion


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (7,))]


def give_gradients(params, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * scale


PAIRS = [
    pytest.param(
        lambda p: AdamW(p, 1e-2, (0.9, 0.98), 1e-8, 0.1),
        lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, fused=False),
        id="adamw",
    ),
    pytest.param(
        lambda p: Lion(p, 1e-2, (0.9, 0.99), 0.1),
        lambda p: TimmLion(p, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1),
        id="lion",
    ),
]


@pytest.mark.parametrize("make, make_reference", PAIRS)
def test_equals_the_reference(make, make_reference):
    ours, theirs = weights(), weights()
    optimizer, reference = make(ours), make_reference(theirs)
    for step in range(10):
        give_gradients(ours, step, scale=4.0)
        give_gradients(theirs, step)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
        optimizer.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make, make_reference", PAIRS)
def test_a_skipped_step_leaves_no_trace(make, make_reference):
    """Gradients that are not finite change neither weights nor moments nor the count of updates."""
    with_fault, without = weights(), weights()
    faulty, clean = make(with_fault), make(without)
    for step in range(6):
        if step == 3:
            for p in with_fault:
                p.grad = torch.full_like(p, float("nan"))
            faulty.grad_scale, faulty.found_inf = torch.tensor(float("nan")), torch.tensor(1.0)
            faulty.step()
        for params, optimizer in ((with_fault, faulty), (without, clean)):
            give_gradients(params, step)
            optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(0.0)
            optimizer.step()
    for a, b in zip(with_fault, without, strict=True):
        assert a.equal(b)
        assert faulty.state[a]["step"].item() == clean.state[b]["step"].item() == 6
        for moment in clean.moments:
            assert faulty.state[a][moment].equal(clean.state[b][moment])
