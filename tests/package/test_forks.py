"""A forked program is like one that an interpreter starts: its place, its variables, its words and its end."""

import json
import subprocess
import sys
from signal import SIGKILL

import pytest

ENDS = {
    "at the bottom": "print('done')",
    "by a code": "import sys; sys.exit(75)",
    "in words": "import sys; sys.exit('in words')",
    "by an error": "raise ValueError('by an error')",
    "after what was put off": "import atexit, threading, time; atexit.register(print, 'last')\n"
    "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()",
    "killed": "import os; os.kill(os.getpid(), 9)",
}


@pytest.fixture
def program(tmp_path):
    """A program of Python with this text."""

    def write(text):
        path = tmp_path / "a_program.py"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("text", ENDS.values(), ids=ENDS)
def test_it_ends_like_a_process_of_its_own(forks, program, text):
    file = program(text)
    forked = forks.run_program(file)
    started = subprocess.run([sys.executable, file], capture_output=True, text=True)
    assert (forked.returncode, forked.stdout) == (started.returncode, started.stdout)
    assert forked.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def test_it_has_a_place_and_variables_of_its_own(forks, program, tmp_path, monkeypatch):
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "only_here.py").write_text("")
    file = program(
        "import json, os, sys, only_here\n"
        "print(json.dumps([os.getcwd(), sys.argv[1:], os.environ.get('BEFORE'), os.environ['OWN'], sys.stdin.read()]))"
    )
    monkeypatch.setenv("BEFORE", "set since the server began")
    ended = forks.run_program(file, "a", 1, folder=tmp_path, OWN="mine", PYTHONPATH=str(tmp_path / "apart"))
    assert json.loads(ended.stdout) == [str(tmp_path), ["a", "1"], "set since the server began", "mine", ""], ended
    monkeypatch.delenv("BEFORE")
    assert json.loads(forks.run_program(file, OWN="", PYTHONPATH=str(tmp_path / "apart")).stdout)[2] is None


def test_ranks_know_their_place_and_one_failure_is_that_of_all(forks, program):
    file = program(
        "import os, sys; rank = os.environ['RANK']; print(rank, flush=True); sys.exit(int(sys.argv[1]) * int(rank))"
    )
    codes = []
    for fault in (0, 1):
        ended = forks.run_program(file, fault, world=2)
        assert sorted(ended.stdout.split()) == ["0", "1"]
        codes.append(ended.returncode)
    assert codes == [0, 1]


def test_several_run_at_once_and_what_does_not_end_is_ended(forks, program, tmp_path):
    file = program("import sys, time; time.sleep(float(sys.argv[1]))")
    slow, quick = (forks.start([file, seconds]) for seconds in (600, 0))
    assert quick.wait(60) == 0 and slow.wait(0) is None and slow.alive
    slow.kill()
    assert slow.wait(60) == -SIGKILL and not slow.alive
    assert forks.run_program(program("print('the next')")).stdout == "the next\n"
