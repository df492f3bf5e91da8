"""launch/torchrun.sh on two hosts made of namespaces, and a link between them that is cut.

tools/two_hosts_proof.py takes away more.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def why_not():
    specification = importlib.util.spec_from_file_location("two_hosts", TOOLS / "two_hosts.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.missing()


@pytest.mark.skipif(why_not() is not None, reason=f"no two hosts: {why_not()}")
@pytest.mark.timeout(900)
def test_a_cut_link_ends_both_ranks_and_the_run_goes_on_with_one_host_and_with_two():
    """Each rank is ended by its watchdog with its stacks and collectives on disk, each launcher with exit code 1; the
    losses are those of two processes of one host that nobody disturbs."""
    command = [sys.executable, str(TOOLS / "two_hosts_proof.py"), "--only", "cut_link", "--steps", "80"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-8000:]}"
    assert (
        "the watchdogs ended both ranks" in done.stdout
        and "one host went on at step 20, both at step 60" in done.stdout
    )
