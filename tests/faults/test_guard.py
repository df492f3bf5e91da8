"""Numbers that are not finite: skipped alike on all ranks, then rolled back, then given up."""

from pathlib import Path

import pytest

from crate_graph.resilience.guard import FiniteGuard, Verdict

FAULTY = Path(__file__).with_name("not_finite.py")


def train_with_fault(runner, run, first, last, *overrides, rank=0, world=1):
    """Like `Runner.train`, with NaN losses on one rank in a window of steps."""
    return runner.train(run, *overrides, world=world, program=[FAULTY, first, last, rank])


@pytest.mark.parametrize(
    "world, overrides",
    [
        (1, []),
        (2, []),
        *((2, ["engine.name=deepspeed", f"engine.zero_stage={stage}"]) for stage in range(4)),
    ],
)
def test_a_nan_on_one_rank_is_skipped_on_all(runner, world, overrides, request):
    run = train_with_fault(runner, request.node.callspec.id, 8, 9, *overrides, rank=world - 1, world=world)
    assert run.code == 0, run.err
    skipped = [record["step"] for record in run.records if record.get("skipped")]
    assert skipped == [8, 9]
    losses = run.losses
    assert losses[8] is None and losses[9] is None
    assert losses[20] < losses[1]
    assert run.summary["skipped_steps"] == 2 and run.summary["rollbacks"] == 0


def test_a_skipped_step_leaves_the_weights_alone(runner, request):
    """After a skip the losses are those of a run that never had the fault, evaluated with the same weights."""
    fault = train_with_fault(runner, "last-step", 20, 20)
    clean = runner.trained("nineteen", "schedule.max_steps=19")
    assert fault.summary["metrics"] == clean.summary["metrics"]


def test_rolls_back_and_steps_over_the_window(runner):
    run = train_with_fault(
        runner,
        "rollback",
        12,
        14,
        "guard.max_consecutive_skips=3",
        "checkpoint.every_steps=5",
        "checkpoint.keep_last=9",
    )
    assert run.code == 0, run.err
    assert [record for record in run.records if record.get("event") == "rollback"] == [
        {"step": 15, "event": "rollback", "to_step": 10}
    ]
    assert run.summary["rollbacks"] == 1 and run.summary["skipped_steps"] == 3
    assert set(run.losses) == set(range(1, 21))  # the run goes on with the data after the window


def test_gives_up_in_one_line_and_keeps_the_last_good_checkpoint(runner):
    run = train_with_fault(
        runner, "hopeless", 7, 999, "guard.max_consecutive_skips=2", "guard.max_rollbacks=1", "checkpoint.every_steps=5"
    )
    assert run.code == 1
    assert "crate-graph: failed:" in run.err and "after 1 rollbacks" in run.err and "Traceback" not in run.err
    assert [path.name for path in (run.run_dir / "checkpoints").iterdir()] == ["step-00000005"]
    assert not (run.run_dir / "summary.json").exists()


def test_guard_counts_and_its_state_travels():
    guard = FiniteGuard(max_consecutive_skips=3, max_rollbacks=1)
    assert [guard.judge(finite) for finite in (False, False, True, False, False)] == [Verdict.GO_ON] * 5
    resumed = FiniteGuard(max_consecutive_skips=3, max_rollbacks=1)
    resumed.load_state_dict(guard.state_dict())
    assert resumed.judge(False) is Verdict.ROLL_BACK
    resumed.judge(True)
    assert [resumed.judge(False) for _ in range(3)] == [Verdict.GO_ON, Verdict.GO_ON, Verdict.GIVE_UP]


def test_guard_lets_an_fp16_scale_find_its_place():
    guard = FiniteGuard(max_consecutive_skips=3, max_rollbacks=0, precision="fp16")
    assert [guard.judge(False) for _ in range(19)] == [Verdict.GO_ON] * 19
    assert guard.judge(False) is Verdict.GIVE_UP
