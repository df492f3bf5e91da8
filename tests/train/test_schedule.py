import math

import pytest

from crate_graph.config.schema import Schedule
from crate_graph.train.schedule import lr_factor


def test_cosine_warms_up_and_ends_at_the_floor():
    schedule = Schedule(epochs=10, warmup_epochs=2, min_factor=0.1)
    factors = [lr_factor(schedule, step, 5) for step in range(51)]
    assert factors[0] == pytest.approx(1 / 10)
    assert factors[9] == pytest.approx(1.0) and factors[10] == pytest.approx(1.0)
    assert factors[30] == pytest.approx(0.1 + 0.9 * 0.5)  # half-way between epochs 2 and 10
    assert factors[50] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(factors[10:], factors[11:], strict=False))


def test_capped_cosine_is_the_published_form():
    schedule = Schedule(epochs=200, warmup_epochs=20, shape="cosine_capped", per="epoch")
    for epoch in (0, 1, 10, 19, 20, 50, 100, 199):
        published = min((epoch + 1) / 20, 0.5 * (math.cos(math.pi * epoch / 200) + 1))
        for step in (epoch * 7, epoch * 7 + 6):  # the rate is held for the epoch
            assert lr_factor(schedule, step, 7) == pytest.approx(published)


def test_constant_without_warmup():
    schedule = Schedule(epochs=3, warmup_epochs=0, shape="constant")
    assert {lr_factor(schedule, step, 4) for step in range(12)} == {1.0}
