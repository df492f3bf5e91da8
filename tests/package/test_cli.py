"""The command line parses, calls and reports; the work behind the verbs is replaced here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from crate_graph.cli import main
from crate_graph.errors import RunFailed, UserError

LONG = 300 * "a"  # bytes; a file system takes names of 255
VERBS = {
    "train": ["train"],
    "plan": ["plan"],
    "evaluate": ["evaluate"],
    "restore": ["restore"],
    "analyze": ["analyze"],
    "export": ["export"],
    "bench": ["bench"],
    "doctor": ["doctor"],
    "shards": ["shards"],
    "shards make": ["shards", "make"],
    "shards verify": ["shards", "verify"],
    "checkpoint": ["checkpoint"],
    "checkpoint list": ["checkpoint", "list"],
    "checkpoint verify": ["checkpoint", "verify"],
}


@pytest.fixture
def replace(monkeypatch):
    """Puts a recorder in the place of `module.function`; it returns `result`, or raises it."""

    def replace(module, function, result):
        calls = []

        def record(*args):
            calls.append(args)
            if isinstance(result, BaseException):
                raise result
            return result

        fake = ModuleType(module)
        setattr(fake, function, record)
        monkeypatch.setitem(sys.modules, module, fake)
        return calls

    return replace


@pytest.mark.parametrize(
    "words",
    [[], ["trian"], ["train"], ["train", "quickstart", "--foo"], ["shards", "make"], ["export", "x", "--format", "y"]],
    ids=" ".join,
)
def test_a_mistake_in_the_words_is_one_line(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert said.startswith("crate-graph: error: ") and said.endswith(" --help\n")


@pytest.mark.parametrize("words", VERBS.values(), ids=VERBS)
def test_help_has_an_example(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text and f"crate-graph {' '.join(words)}" in text.partition("example")[2]


def test_help_names_every_verb(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n    {verb}" in text for verb in {words.split()[0] for words in VERBS})


def test_train_calls_with_the_recipe_and_its_run_folder(replace, capsys):
    calls = replace("crate_graph.train.run", "train", {"finished": False, "metrics": {"top1": 0.5, "loss": 2.0}})
    assert main(["train", "quickstart"]) == 0
    ((recipe, run_dir, resume, max_seconds, _),) = calls
    assert (recipe.name, run_dir, resume, max_seconds) == ("quickstart", Path("runs/quickstart"), "auto", None)
    assert capsys.readouterr().out.splitlines() == ["finished  False", "metrics   top1 0.5, loss 2"]


def test_a_finished_run_says_what_to_try_and_json_stays_json(replace, capsys):
    replace("crate_graph.train.run", "train", {"finished": True, "run_dir": "runs/a"})
    assert main(["train", "quickstart"]) == 0
    assert "evaluate runs/a --data fashion_mnist" in capsys.readouterr().out
    assert main(["train", "quickstart", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"finished": True, "run_dir": "runs/a"}


@pytest.mark.parametrize("nothing", ["", " "])
def test_nothing_is_no_checkpoint_to_resume(nothing, replace, capsys):
    calls = replace("crate_graph.train.run", "train", {"finished": False})
    with pytest.raises(SystemExit, match="2"):
        main(["train", "quickstart", f"--resume={nothing}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "names no checkpoint; write auto, never, or a checkpoint's folder" in line and not calls


@pytest.mark.parametrize("share", ["0", "2", "nan"])
def test_a_share_is_at_most_one(share, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "quickstart", "--utilisation", share])
    assert "should be over 0 and at most 1" in capsys.readouterr().err


def test_overrides_may_stand_before_and_after_options(replace):
    calls = replace("crate_graph.train.run", "train", {"finished": False})
    words = ["seed=3", "--run-dir", "elsewhere", "schedule.epochs=2", "--resume", "never", "optimizer.lr=1e-3"]
    assert main(["train", "quickstart", *words, "--max-duration", "2h"]) == 0
    ((recipe, run_dir, resume, max_seconds, _),) = calls
    assert (recipe.seed, recipe.schedule.epochs, recipe.optimizer.lr) == (3, 2, 1e-3)
    assert (run_dir, resume) == (Path("elsewhere"), "never")
    assert 0 < max_seconds <= 7200  # what is left of two hours since the command began


def test_evaluate_export_and_bench_call_through(replace, capsys):
    calls = replace("crate_graph.evaluation.run", "evaluate", {"top1": 0.25})
    assert main(["evaluate", "runs/a", "--data", "fashion_mnist", "evaluation.batch_size=8", "--json"]) == 0
    assert main(["evaluate", "bicubic", "--data", "photos", "--tile", "256", "--json"]) == 0
    assert calls == [
        ("runs/a", "fashion_mnist", ["evaluation.batch_size=8"], None, None),
        ("bicubic", "photos", [], 256, None),
    ]
    assert capsys.readouterr().out.count('"top1": 0.25') == 2

    calls = replace("crate_graph.export", "export", {"output": Path("x.onnx")})
    assert main(["export", "runs/a", "--format", "onnx", "--output", "x.onnx", "--json"]) == 0
    assert calls == [("runs/a", "onnx", Path("x.onnx"))]
    assert json.loads(capsys.readouterr().out) == {"output": "x.onnx"}


def test_bench_prints_a_table(monkeypatch, capsys):
    from crate_graph.ops import bench

    rows = [{"operator": "ista", "ms": 1.23456}, {"operator": "mssa", "ms": 20.0}]
    monkeypatch.setattr(bench, "run", lambda: rows)
    assert main(["bench", "ops"]) == 0
    assert capsys.readouterr().out.splitlines() == ["operator  ms", "ista      1.235", "mssa      20"]
    assert main(["bench", "ops", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows


def test_a_users_mistake_is_one_line_and_code_2(replace, capsys):
    replace("crate_graph.train.run", "train", UserError("recipe.yaml: seed\nis odd"))
    assert main(["train", "quickstart"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "crate-graph: error: recipe.yaml: seed is odd\n")


def test_a_run_that_failed_is_one_line_and_code_1(replace, capsys):
    replace("crate_graph.train.run", "train", RunFailed("the loss\nis not finite"))
    assert main(["train", "quickstart"]) == 1
    assert capsys.readouterr().err == "crate-graph: failed: the loss is not finite\n"


def test_a_failure_is_not_hidden(replace):
    replace("crate_graph.train.run", "train", RuntimeError("the device is gone"))
    with pytest.raises(RuntimeError, match="device is gone"):
        main(["train", "quickstart"])


def test_an_interrupt_is_code_130(replace, capsys):
    replace("crate_graph.train.run", "train", KeyboardInterrupt())
    assert main(["train", "quickstart"]) == 130
    assert capsys.readouterr().err == "crate-graph: interrupted\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["trane"],
        ["train"],
        ["train", "quickstart", "--rundir", "x"],
        ["evaluate", "runs/a"],
        ["export", "runs/a", "--format", "gif", "--output", "x"],
        ["restore"],
        ["restore", "name", "photo.png"],
        ["restore", "name", "--output", "out"],
        ["restore", "name", "photo.png", "--output", "out", "--scale", "big"],
        ["restore", "name", "photo.png", "--output", "out", "--format", "gif"],
        ["bench", "everything"],
        ["bench", "ops", "more"],
    ],
)
def test_a_wrong_call_is_code_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.fixture
def second_of_two(monkeypatch):
    places = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in places.items():
        monkeypatch.setenv(name, value)


def test_only_the_first_process_prints_the_result(replace, capsys, second_of_two):
    replace("crate_graph.train.run", "train", {"finished": True, "run_dir": "runs/quickstart"})
    assert main(["train", "quickstart"]) == 0
    assert capsys.readouterr().out == ""


def test_each_process_names_itself_in_its_error(capsys, second_of_two):
    assert main(["train", "quickstart", "seed=-1"]) == 2
    assert capsys.readouterr().err.startswith("crate-graph: error: rank 1: command line: seed=-1")


ALONE = {
    "plan": ["plan", "quickstart"],
    "restore": ["restore", "ugtv_fast_demosaicking", "photo.png", "--output", "out"],
    "analyze": ["analyze", "nowhere", "--output", "out"],
    "export": ["export", "nowhere", "--format", "onnx", "--output", "out"],
    "shards": ["shards", "verify", "nowhere"],
    "checkpoint": ["checkpoint", "list", "nowhere"],
    "bench": ["bench", "ops"],
}


@pytest.mark.parametrize("words", ALONE.values(), ids=ALONE)
def test_what_one_process_does_is_refused_to_many(words, capsys, second_of_two):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"crate-graph: error: rank 1: {words[0]}: the work of one process, and 2 were started; ")


@pytest.mark.parametrize("step, said", [("3", "of one process"), ("4294967290", "nowhere"), (None, "nowhere")])
def test_a_shell_of_an_allocation_is_no_task_of_it(step, said, capsys, monkeypatch):
    """`salloc` gives its shell the variables of the job; only a step of srun is many processes."""
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    job |= {"SLURM_JOB_NODELIST": "localhost", **({"SLURM_STEP_ID": step} if step else {})}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert main(["checkpoint", "list", "nowhere"]) == 2
    assert said in capsys.readouterr().err


def test_a_process_ends_with_the_code():
    command = [sys.executable, "-m", "crate_graph", "train", "quikstart"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "quickstart" in done.stderr
    assert done.stdout == ""


def test_one_of_several_processes_ends_with_the_code_too():
    places = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    command = [sys.executable, "-m", "crate_graph", "train", "quikstart"]
    done = subprocess.run(command, env=os.environ | places, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("crate-graph: error: rank 1: ")


def test_a_reader_that_has_seen_enough():
    command = f"{sys.executable} -m crate_graph restore --list | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 141) and done.stderr == ""  # 0: what was printed fitted into the pipe


def test_a_name_that_is_no_text_is_printed_all_the_same(tmp_path):
    photo = os.fsencode(tmp_path) + b"/\xff.png"
    Image.new("RGB", (32, 32)).save(photo := os.fsdecode(photo))
    command = [sys.executable, "-m", "crate_graph", "restore", "ugtv_fast_demosaicking", photo]
    command += ["--degrade", "bayer:RGGB", "--output", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "\\udcff.png" in done.stdout, done.stderr


def test_a_home_of_nobody(capsys):
    assert main(["restore", "~nobody-of-that-name/x", "photo.png", "--output", "out"]) == 2
    assert "write it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["train", "quickstart", "--run-dir", LONG],
        ["train", "quickstart", f"name={LONG}"],
        ["train", LONG],
        ["train", "quickstart", f"data.dataset={LONG}"],
        ["evaluate", LONG, "--data", "fashion_mnist"],
        ["evaluate", "bilinear", "--data", LONG],
        ["restore", "ugtv_fast_demosaicking", LONG, "--output", "out"],
        ["export", LONG, "--format", "onnx", "--output", "out"],
        ["checkpoint", "verify", LONG],
        ["shards", "verify", LONG],
    ],
    ids=lambda words: " ".join(word.replace(LONG, "LONG") for word in words),
)
def test_a_name_that_no_file_can_have(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("crate-graph: error: ") and LONG in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("words", [["evaluate", "bilinear", "--data", " "], ["train", "quickstart", "data.dataset=''"]])
def test_data_without_a_name(words, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is empty" in line and "name a" in line


@pytest.mark.parametrize("words", [["checkpoint", "list", "nowhere"], ["checkpoint", "verify", "nowhere"]])
def test_a_verb_with_commands_reports_a_mistake_too(words, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("crate-graph: error: ") and "nowhere" in line
