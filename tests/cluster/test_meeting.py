"""Bad input at the start of a run of many processes: one line on every one of them, and no waiting.

Exit code 2; 1 where others have not come, since a scheduler may start these again.
"""

import json
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from crate_graph.cluster.meeting import Card, compare
from crate_graph.cluster.ranks import Ranks
from crate_graph.cluster.versions import code_digest

HERE = socket.gethostname()


def refused(group, processes):
    """The one line that each says; nothing is left behind."""
    pids = group.start(processes)
    lines = []
    for code, _, err in group.end():
        line, *more = err.splitlines()
        assert not more, err
        expected = (1, "failed") if "not come to" in line else (2, "error")
        assert code == expected[0] and line.startswith(f"crate-graph: {expected[1]}: rank "), err
        lines.append(line.split(": ", 3)[3])
    assert not (group.folder / "run").exists()
    return lines, pids


def test_they_meet_and_train(group, unused_port):
    """Two processes that no agent of torchrun started."""
    port, run_dir = unused_port(), group.folder / "pair"
    command = [
        "train",
        str(group.recipe),
        "schedule.max_steps=2",
        "evaluation.every_epochs=99",
        "--run-dir",
        str(run_dir),
    ]
    group.start([group.process(rank, 2, port) for rank in range(2)], command)
    assert [code for code, _, _ in group.end()] == [0, 0]
    assert json.loads((run_dir / "summary.json").read_text())["world_size"] == 2


def test_what_one_of_them_meets_all_raise(group, unused_port):
    """A rank that goes on alone would wait for the other in the next collective."""
    port = unused_port()
    group.start([group.process(rank, 2, port) for rank in range(2)], program=Path(__file__).with_name("agreeing.py"))
    (code, of_0, err_0), (other, of_1, err_1) = group.end()
    assert (code, other) == (0, 0), err_0 + err_1
    failed, mistake = "RunFailed: the disk of one is gone", "UserError: a file of zero is missing"
    assert of_0.splitlines() == ["agreed", failed, mistake, "UserError: zero", "agreed"]
    assert of_1.splitlines() == ["agreed", failed, mistake, "RunFailed: one", "agreed"]


def test_two_processes_of_one_rank(group, unused_port):
    port = unused_port()
    lines, pids = refused(group, [group.process(rank, 3, port) for rank in (0, 1, 1)])
    assert len(set(lines)) == 1 and "two processes are rank 1 of 3" in lines[0]
    assert all(f"pid {pid} on {HERE}" in lines[0] for pid in pids[1:])


def test_two_processes_of_rank_0(group, unused_port):
    """The second finds the door of the first in its place."""
    lines, pids = refused(group, [group.process(0, 2, port) for port in [unused_port()] * 2])
    assert len(set(lines)) == 1 and "two processes are rank 0 of 2" in lines[0]
    assert all(f"pid {pid} on {HERE}" in lines[0] for pid in pids)


def test_worlds_that_differ(group, unused_port):
    port = unused_port()
    processes = [group.process(0, 2, port, seconds=4), group.process(2, 3, port) | {"after": 1}]
    (of_0, of_2), (pid, _) = refused(group, processes)
    assert f"pid {pid} on {HERE}, is one of 2 processes, and this is one of 3" in of_2 and "rank 1 of 2" in of_0


def test_missing_ranks(group, unused_port):
    port = unused_port()
    lines, _ = refused(group, [group.process(rank, 5, port, seconds=2) for rank in (0, 2)])
    assert len(set(lines)) == 1
    assert "ranks 1, 3-4 of 5 have not come to 127.0.0.1:" in lines[0] and f"ranks 0, 2 ({HERE}) did" in lines[0]


@pytest.mark.parametrize("host, said", [("127.0.0.1", "Connection refused"), ("nowhere.invalid", "not known")])
def test_a_rendezvous_that_cannot_be_reached(group, unused_port, host, said):
    port = unused_port()
    (line,), _ = refused(group, [group.process(1, 2, port, seconds=1, host=host)])
    assert f"MASTER_ADDR={host}, MASTER_PORT={port}" in line and said in line


def test_a_port_that_another_program_has(group):
    """One that says nothing: a client of PyTorch's store would wait for ever."""
    with socket.create_server(("", 0)) as stranger:
        port = stranger.getsockname()[1]
        (of_0, of_1), _ = refused(group, [group.process(rank, 2, port, seconds=1) for rank in range(2)])
    assert f"port {port} of {HERE}, MASTER_PORT of this run, is taken by another program; set MASTER_PORT" in of_0
    assert f"at 127.0.0.1:{port}, where rank 0 should be, answers another program" in of_1


def test_a_port_that_another_run_has(group, unused_port):
    def of_job(job, rank, seconds):
        step = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": 0, "SLURM_PROCID": rank, "SLURM_NTASKS": 2, "SLURM_LOCALID": rank}
        step |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CRATE_GRAPH_MEETING_SECONDS": seconds}
        return {"environment": step, "after": 0.5 * (job - 7)}

    port = unused_port()
    (first, *others), (pid, *_) = refused(group, [of_job(7, 0, 6), of_job(8, 0, 2), of_job(8, 1, 2)])
    assert "rank 1 of 2 has not come" in first
    assert all(f"another run (job 7.0), pid {pid} on {HERE}" in line for line in others)


@pytest.mark.parametrize("package", ["deepspeed", "crate-graph"])
def test_mixed_versions(group, unused_port, tmp_path, package):
    (tmp_path / f"{package.replace('-', '_')}-9.9.dist-info").mkdir()
    (tmp_path / f"{package.replace('-', '_')}-9.9.dist-info" / "METADATA").write_text(
        f"Name: {package}\nVersion: 9.9\n"
    )
    port = unused_port()
    lines, _ = refused(group, [group.process(0, 2, port), group.process(1, 2, port, PYTHONPATH=tmp_path)])
    assert len(set(lines)) == 1 and f"{package.replace('-', '_')} differs: " in lines[0]
    assert f"on rank 0 ({HERE}), 9.9 on rank 1 ({HERE}); install the same" in lines[0]


def test_a_time_that_is_none(group, unused_port):
    (line,), _ = refused(group, [group.process(0, 2, unused_port(), seconds="soon")])
    assert "CRATE_GRAPH_MEETING_SECONDS=soon" in line


def test_the_store_of_an_agent_outlives_restarts(group):
    """As torchrun has it: all processes start anew, meet in the same store, and hosts disagree about how often."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))

    def ranks(count_0, count_1):
        agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "x"}
        counts = enumerate((count_0, count_1))
        return [
            group.process(rank, 2, server.port, TORCHELASTIC_RESTART_COUNT=count, **agent) for rank, count in counts
        ]

    for number, counts in enumerate([(0, 0), (1, 0), (1, 1)]):
        group.start(ranks(*counts), ["evaluate", "runs/none", "--data", "fashion_mnist"])
        for code, _, err in group.end():
            assert code == 2 and "runs/none" in err and "two processes" not in err
        assert server.check([f"meeting/2/{number}/verdict"])


def card(rank, host="node1", mistake=None, **made_of):
    made_of = {"torch": "2.15.0", "code of crate_graph": "abc", "device": "cuda"} | made_of
    return Card(rank, 4, host, 100 + rank, "", made_of, mistake)


@pytest.mark.parametrize(
    "cards, said",
    [
        ([card(rank) for rank in range(4)], ""),
        (
            [*(card(rank) for rank in range(3)), card(3, "node2", torch="2.14.0")],
            "torch differs: 2.15.0 on ranks 0-2 (node1), 2.14.0 on rank 3 (node2); install the same",
        ),
        (
            [card(0), card(1), card(2, "node2", device="cpu"), card(3, "node2", device="cpu")],
            "device differs: cuda on ranks 0-1 (node1), cpu on ranks 2-3 (node2); see nvidia-smi",
        ),
        ([card(0), card(1, mistake="no GPU is left")], "rank 1 on node1 cannot take part: no GPU is left"),
        (
            [card(0), card(2, "node2")],
            "ranks 1, 3 of 4 have not come to node1:1 in 40 s (rank 0 (node1), rank 2 (node2) did)",
        ),
    ],
)
def test_what_is_said_of_those_that_came(cards, said):
    error = compare(cards, Ranks(0, 4, 0, ("node1", 1)), 40)
    assert said in error if said else error == ""


def test_a_changed_file_changes_the_digest(tmp_path):
    (tmp_path / "a.py").write_text("a = 1\n")
    before = code_digest(tmp_path)
    code_digest.cache_clear()
    (tmp_path / "a.py").write_text("a = 2\n")
    assert len(before) == 12 and code_digest(tmp_path) != before
