"""Rank discovery, on environments as the launchers make them: the variables here were taken from real ones."""

import pytest

from crate_graph.cluster.ranks import Ranks, first_node, read_ranks
from crate_graph.errors import UserError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "7-0",
}
# What a batch script sees, of Slurm 22.05: it has a SLURM_PROCID too, but no step.
BATCH = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "localhost,other[1-3]",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
}
STEP = {
    **BATCH,
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "localhost,other1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
MPIRUN = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_MCA_ess_base_jobid": "1994063873",
    "OMPI_MCA_orte_launch": "1",
}
BY_HAND = {key: value for key, value in TORCHRUN.items() if key != "TORCHELASTIC_RUN_ID"}


def test_alone():
    assert read_ranks({}) == Ranks(0, 1, 0, None)


def test_torchrun():
    assert read_ranks(TORCHRUN) == Ranks(5, 8, 1, ("node1", 29500))


def test_an_srun_step():
    ranks = read_ranks(STEP)
    assert (ranks.rank, ranks.world, ranks.local_rank) == (3, 4, 1)
    assert ranks.master[0] == "localhost" and 20_000 <= ranks.master[1] < 30_000


def test_steps_meet_at_ports_of_their_own():
    ports = {read_ranks({**STEP, "SLURM_STEP_ID": step}).master[1] for step in ("0", "1", "2")}
    assert len(ports) == 3


def test_a_given_meeting_place_stays():
    assert read_ranks({**STEP, "MASTER_ADDR": "node7", "MASTER_PORT": "1234"}).master == ("node7", 1234)
    for wrong in ("x", "0", "-1", "99999", "1e3", "²"):
        with pytest.raises(UserError, match=f"MASTER_PORT={wrong} is not a port"):
            read_ranks({**STEP, "MASTER_PORT": wrong})


def test_an_srun_step_of_one_task_is_alone():
    assert read_ranks({**STEP, "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}) == Ranks()


@pytest.mark.parametrize(
    "environment",
    [
        {key: value for key, value in BATCH.items() if key != "SLURM_PROCID"},  # salloc
        BATCH,
        {**BATCH, "SLURM_STEP_ID": "4294967290"},  # the interactive step of salloc
        {**BATCH, "SLURM_STEP_ID": "4294967291"},  # the batch script, of newer versions
    ],
)
def test_a_job_without_a_step_starts_nothing(environment):
    assert read_ranks(environment) == Ranks()


def test_torchrun_is_nearer_than_srun():
    """One task per node runs torchrun: the world is larger than the step."""
    assert read_ranks({**STEP, **TORCHRUN}) == Ranks(5, 8, 1, ("node1", 29500))


def test_torchrun_is_nearer_than_mpirun():
    assert read_ranks({**MPIRUN, **TORCHRUN}).rank == 5


def test_the_deepspeed_launcher_is_nearer_than_srun():
    assert read_ranks({**STEP, **BY_HAND, "CROSS_RANK": "1", "CROSS_SIZE": "2", "LOCAL_SIZE": "4"}).rank == 5


def test_mpirun_on_one_host():
    ranks = read_ranks(MPIRUN)
    assert (ranks.rank, ranks.world, ranks.local_rank) == (1, 2, 1)
    assert ranks.master[0] == "127.0.0.1"
    assert ranks.master[1] != read_ranks({**MPIRUN, "OMPI_MCA_ess_base_jobid": "1994063874"}).master[1]


def test_mpirun_on_many_hosts_needs_a_meeting_place():
    environment = {**MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    with pytest.raises(UserError, match="mpirun -x MASTER_ADDR=HOST"):
        read_ranks(environment)
    assert read_ranks({**environment, "MASTER_ADDR": "node1"}).master[0] == "node1"


def test_mpirun_in_an_allocation_makes_a_step_of_daemons():
    """Its tasks are not the ranks: two daemons, four ranks."""
    daemons = {**STEP, "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    ranks = read_ranks({**daemons, **MPIRUN, "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"})
    assert (ranks.rank, ranks.world) == (2, 4) and ranks.master[0] == "localhost"


def test_variables_set_by_hand_that_agree_with_srun():
    by_hand = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "1"}
    assert read_ranks({**STEP, **by_hand}) == Ranks(3, 4, 1, ("node1", 1))


@pytest.mark.parametrize(
    "environment, words",
    [
        ({**STEP, **BY_HAND}, ["RANK=5", "WORLD_SIZE=8", "SLURM_PROCID=3", "SLURM_NTASKS=4"]),
        ({**MPIRUN, **BY_HAND}, ["RANK=5", "WORLD_SIZE=8", "OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2"]),
        (
            {**STEP, **{key: value for key, value in MPIRUN.items() if "MCA" not in key}},
            ["SLURM_PROCID=3", "SLURM_NTASKS=4", "OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2"],
        ),
        ({**TORCHRUN, "RANK": "8"}, ["RANK=8", "WORLD_SIZE=8"]),
        ({**STEP, "SLURM_PROCID": "4"}, ["SLURM_PROCID=4", "SLURM_NTASKS=4"]),
        ({**TORCHRUN, "LOCAL_RANK": "one"}, ["LOCAL_RANK", "one"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["LOCAL_RANK, MASTER_ADDR, MASTER_PORT", "torchrun"]),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, ["OMPI_COMM_WORLD_RANK", "mpirun"]),
    ],
)
def test_a_contradiction_shows_both(environment, words):
    with pytest.raises(UserError) as refused:
        read_ranks(environment)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu9", "gpu7"),
        ("gpu[007-012,020],login", "gpu007"),
        ("rack[2-3]node[11,15-18]", "rack2node11"),
        ("a-b.c[1]", "a-b.c1"),
    ],
)
def test_the_first_of_slurms_nodes(nodes, first):
    assert first_node(nodes) == first


def test_a_node_without_a_name_or_an_address(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"nowhere\.invalid does not resolve.*MASTER_ADDR"):
        read_ranks({**STEP, "SLURM_STEP_NODELIST": "nowhere.invalid"})
