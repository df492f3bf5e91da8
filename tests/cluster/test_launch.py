"""launch/: rendered from one place, clean, and what each script would start is what the launchers understand."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from crate_graph.cluster.launch.networks import NETWORKS
from crate_graph.cluster.launch.render import SCRIPTS, render_all, write_all
from crate_graph.errors import UserError

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SETTINGS = ("SLURM_", "MASTER_", "NODE", "PROCS_", "RUN", "NETWORK", "PYTHON", "SSH_", "INTERFACE", "NCCL_", "GLOO_")


def run(script, *words, cwd=None, **settings):
    """One of the scripts, in an environment without settings but these."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(SETTINGS)}
    command = [str(LAUNCH / script), *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env={**environment, **settings}, capture_output=True, text=True, timeout=120
    )


def printed(script, *words, **settings):
    done = run(script, "--print", *words, **settings)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines == [line.strip() for line in lines]
    return [shlex.split(line) for line in lines]


def refused(done, *words):
    """Exit code 2 and one line with all the words."""
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.splitlines()
    for word in words:
        assert str(word) in line


def test_files_are_as_rendered():
    rendered = render_all()
    for file, text in rendered.items():
        assert (LAUNCH / file).read_text() == text, f"{file}: run tools/render_launch.py"
    own = {"local.sh", "README.md"}
    assert {str(path.relative_to(LAUNCH)) for path in LAUNCH.rglob("*") if path.is_file()} == {*rendered, *own}


def test_writing_renders_what_changed_only(tmp_path):
    assert len(write_all(tmp_path)) == len(render_all())
    (tmp_path / "env" / "tcp.sh").write_text("changed")
    with (tmp_path / "env" / "tcp.sh").open() as running:  # by a shell, say
        assert write_all(tmp_path) == [tmp_path / "env" / "tcp.sh"]
        assert running.read() == "changed"
    assert not list(tmp_path.rglob(".*"))
    assert all(os.access(tmp_path / name, os.X_OK) for name in SCRIPTS)
    with pytest.raises(UserError, match="cannot be written"):
        write_all(tmp_path / "torchrun.sh")


def test_scripts_inside_of_manifests_are_clean(tmp_path):
    scripts = []
    for number, pod in enumerate(pods()):
        scripts.append(tmp_path / f"{number}.sh")
        scripts[-1].write_text(f"#!/bin/bash\n{pod['containers'][0]['args'][0]}")
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, timeout=120)
    assert len(scripts) == 3 and done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_words_the_usage_is_shown(script):
    done = run(script)
    assert done.returncode == 2
    assert f"launch/{script}" in done.stderr and "#SBATCH" not in done.stderr and "set -euo" not in done.stderr


@pytest.mark.parametrize("script", ["torchrun.sh", "accelerate.sh", "deepspeed_hostfile.sh"])
def test_a_python_without_the_package_is_one_line(script, tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=1\n")
    words = [tmp_path / "hosts"] if script == "deepspeed_hostfile.sh" else []
    refused(run(script, *words, "train", "quickstart", PYTHON="/bin/false"), "/bin/false has no crate-graph")


def test_torchrun_understands_what_is_printed():
    from torch.distributed.run import get_args_parser

    (one,) = printed("torchrun.sh", "train", "quickstart", "name=a b", PROCS_PER_NODE="2")
    assert one[:2] == ["env", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"]
    args = get_args_parser().parse_args(one[5:])
    assert (args.nnodes, args.nproc_per_node, args.standalone, args.max_restarts) == ("1", "2", True, 0)
    assert [args.training_script, *args.training_script_args] == ["crate_graph", "train", "quickstart", "name=a b"]

    (many,) = printed("torchrun.sh", "train", "x", NODES="2:4", MASTER_ADDR="node1", RUN_ID="7-1", MAX_RESTARTS="3")
    args = get_args_parser().parse_args(many[5:])
    assert (args.nnodes, args.rdzv_backend, args.rdzv_endpoint) == ("2:4", "c10d", "node1:29500")
    assert (args.rdzv_id, args.max_restarts, args.signals_to_handle) == ("7-1", 3, "SIGINT")


def test_accelerate_understands_what_is_printed():
    from accelerate.commands.launch import launch_command_parser

    settings = {"NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node1", "PROCS_PER_NODE": "4"}
    (words,) = printed("accelerate.sh", "train", "quickstart", **settings)
    args = launch_command_parser().parse_args(words[words.index("launch") + 1 :])
    assert (args.num_machines, args.num_processes, args.machine_rank, args.main_process_ip) == (2, 8, 1, "node1")
    assert args.multi_gpu and args.module and args.training_script_args == ["train", "quickstart"]
    assert yaml.safe_load(Path(args.config_file).read_text())["mixed_precision"] == "no"


def test_deepspeed_understands_what_is_printed(tmp_path):
    from deepspeed.launcher.runner import fetch_hostfile, parse_args

    hosts = tmp_path / "hosts"
    hosts.write_text("# ours\nnode1 slots=4\nnode2 slots=4\n")
    (words,) = printed("deepspeed_hostfile.sh", hosts, "train", "quickstart", MASTER_ADDR="10.0.0.1")
    args = parse_args(words[3:])
    assert fetch_hostfile(args.hostfile) == {"node1": 4, "node2": 4}
    assert (args.master_addr, args.force_multi, args.no_local_rank, args.module) == ("10.0.0.1", True, True, True)
    assert [args.user_script, *args.user_args] == ["crate_graph", "train", "quickstart"]


def test_a_rendezvous_host_that_is_not_known_is_named():
    settings = {"NODES": "2", "MASTER_ADDR": "nowhere.invalid", "PYTHON": sys.executable}
    refused(run("torchrun.sh", "train", "x", **settings), "MASTER_ADDR=nowhere.invalid", "knows no host of that name")


def test_preflight_prints_what_examines_each_host():
    doctor = ["-m", "crate_graph", "doctor", "quickstart"]
    (words,) = printed("preflight.sh", "quickstart", PROCS_PER_NODE="1", PYTHON="python")
    assert words == ["python", *doctor]
    (words,) = printed("preflight.sh", "quickstart", PROCS_PER_NODE="2", PYTHON="python")
    assert words[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] and words[5:] == doctor
    allocation = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "PYTHON": "python"}
    (words,) = printed("preflight.sh", "quickstart", **allocation)
    assert words[:4] == ["srun", "--nodes=2", "--ntasks=8", "--ntasks-per-node=4"] and words[-4:] == doctor


def test_slurm_prints_the_step_of_the_job():
    (words,) = printed("slurm.sbatch", "train", "quickstart")
    assert words[:3] == ["srun", "--nodes=2", "--ntasks=2"]
    assert words[-3:] == ["crate_graph", "train", "quickstart"]


def test_a_sweep_prints_a_step_for_each_line(tmp_path):
    sweep = tmp_path / "rates.txt"
    sweep.write_text("# rates\noptimizer.lr=1e-3 name='a b'\n\n  optimizer.lr=2e-3\n")
    first, second = printed("slurm_array.sbatch", sweep, "train", "quickstart", "seed=3")
    assert first[-6:] == ["quickstart", "seed=3", "optimizer.lr=1e-3", "name=a b", "--run-dir", "runs/rates/0"]
    assert second[-4:] == ["seed=3", "optimizer.lr=2e-3", "--run-dir", "runs/rates/1"]
    settings = {"PYTHON": sys.executable, "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_ARRAY_TASK_ID": "2"}
    done = run("slurm_array.sbatch", sweep, "train", "quickstart", cwd=tmp_path, **settings)
    refused(done, "rates.txt: has no line for task 2, the last is 1")


@pytest.mark.parametrize(
    "script, words, settings, said",
    [
        ("torchrun.sh", ["train", "x"], {"NODES": "2"}, "MASTER_ADDR"),
        ("torchrun.sh", ["train", "x"], {"NODES": "0"}, "NODES=0: write a number of hosts"),
        ("torchrun.sh", ["train", "x"], {"PROCS_PER_NODE": "a"}, "PROCS_PER_NODE=a: write a number of processes"),
        ("torchrun.sh", ["train", "x"], {"NETWORK": "token-ring"}, "one of infiniband, efa, tcp, gloo"),
        ("accelerate.sh", ["train", "x"], {"NODES": "2", "MASTER_ADDR": "a"}, "NODE_RANK"),
        ("slurm.sbatch", ["train", "x"], {}, "sbatch launch/slurm.sbatch"),
        ("slurm_array.sbatch", ["sweep.txt", "train", "x"], {}, "sbatch --array=0-N"),
        ("deepspeed_hostfile.sh", ["/nowhere/hosts", "train", "x"], {}, "/nowhere/hosts: no such file"),
        ("deepspeed_hostfile.sh", ["/dev/null", "train", "x"], {}, "no such file"),
    ],
)
def test_a_mistake_is_one_line(script, words, settings, said):
    refused(run(script, *words, PYTHON=sys.executable, **settings), said)


@pytest.mark.skipif(not (shutil.which("ssh") and shutil.which("pdsh")), reason="ssh and pdsh are not installed")
def test_an_unknown_host_is_named(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("nowhere.invalid slots=1\nnobody.invalid slots=1\n")
    done = run("deepspeed_hostfile.sh", hosts, "train", "x", PYTHON=sys.executable)
    refused(done, hosts, "host nowhere.invalid (", "host nobody.invalid (")


@pytest.mark.skipif(not shutil.which("pdsh"), reason="pdsh is not installed")
def test_a_host_that_does_not_answer_is_named(tmp_path):
    """One that takes the connection and says nothing, as a host does whose disk is gone."""
    (tmp_path / "ssh").write_text("#!/bin/bash\n[[ $* == *good* ]] && echo 10.0.0.1 || exec sleep 600\n")
    (tmp_path / "ssh").chmod(0o755)
    hosts = tmp_path / "hosts"
    hosts.write_text("good slots=1\nmute slots=1\n")
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run("deepspeed_hostfile.sh", hosts, "train", "x", PYTHON=sys.executable, PATH=path)
    refused(done, hosts, "host mute (no answer in 15 s)")
    assert "good" not in done.stderr


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_sets_what_is_not_set(network):
    source = f"source {LAUNCH}/env/{network}.sh; env"
    for settings in ({"INTERFACE": "eth7"}, {"INTERFACE": "eth7", "GLOO_SOCKET_IFNAME": "ib0"}):
        environment = {"PATH": os.environ["PATH"], **settings}
        done = subprocess.run(["bash", "-euc", source], env=environment, capture_output=True, text=True, timeout=60)
        seen = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        assert seen["GLOO_SOCKET_IFNAME"] == settings.get("GLOO_SOCKET_IFNAME", "eth7")
        assert {variable.name for variable in NETWORKS[network].variables} <= set(seen)


def manifests():
    return [each for file in sorted(LAUNCH.glob("kubernetes/*.yaml")) for each in yaml.safe_load_all(file.read_text())]


def pods():
    """Pod specifications of the manifests."""
    _, job, pytorchjob = manifests()
    replicas = pytorchjob["spec"]["pytorchReplicaSpecs"].values()
    return [job["spec"]["template"]["spec"], *(each["template"]["spec"] for each in replicas)]


def test_manifests_of_kubernetes_are_valid():
    import kubernetes_validate

    service, job, pytorchjob = manifests()
    kubernetes_validate.validate(service, "1.31", strict=True)
    kubernetes_validate.validate(job, "1.31", strict=True)
    for replicas in pytorchjob["spec"]["pytorchReplicaSpecs"].values():
        template = {**replicas["template"], "spec": {**replicas["template"]["spec"], "restartPolicy": "Never"}}
        inner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": {"template": template}}
        kubernetes_validate.validate(inner, "1.31", strict=True)
    job["spec"]["completionsMode"] = "Indexed"
    with pytest.raises(kubernetes_validate.ValidationError, match="completionsMode"):
        kubernetes_validate.validate(job, "1.31", strict=True)


def test_the_pytorchjob_is_what_kubeflow_knows():
    """Its model drops what it does not know, so what comes back must be what went in."""
    import json
    from types import SimpleNamespace

    from kubeflow.training.api_client import ApiClient

    (job,) = [each for each in manifests() if each["kind"] == "PyTorchJob"]

    def read(manifest):
        client = ApiClient()
        model = client.deserialize(SimpleNamespace(data=json.dumps(manifest)), "KubeflowOrgV1PyTorchJob")
        return client.sanitize_for_serialization(model)

    assert read(job) == job
    job["spec"]["runPolicy"]["backoffLimits"] = 3
    assert read(job) != job


def test_pods_fit_their_job():
    """Names that one part of a manifest takes from another."""
    service, job, pytorchjob = manifests()
    pod = job["spec"]["template"]["spec"]
    name = job["metadata"]["name"]
    assert pod["subdomain"] == service["metadata"]["name"] and service["spec"]["selector"] == {"job-name": name}
    assert (
        f"host={name}-0.{pod['subdomain']} port={service['spec']['ports'][0]['port']}"
        in pod["containers"][0]["args"][0]
    )
    assert {pod["containers"][0]["name"]} == {
        rule["onExitCodes"]["containerName"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    for replicas in pytorchjob["spec"]["pytorchReplicaSpecs"].values():
        assert replicas["template"]["spec"]["containers"][0]["name"] == "pytorch"  # the operator looks for it


# Plays torchrun: what the run says stands in SAYS, and CODE is what torchrun makes of it.
FAKE_PYTHON = """#!/bin/bash
[[ $1 == -c ]] && exit 0
for line in $SAYS; do echo "${line/_/ }" >> "$CRATE_GRAPH_JOURNAL"; done
if [[ -n ${WAIT:-} ]]; then
  trap 'exit 1' INT
  for _ in {1..600}; do sleep 0.1; done
fi
exit "$CODE"
"""


@pytest.fixture
def fake(tmp_path):
    path = tmp_path / "python"
    path.write_text(FAKE_PYTHON)
    path.chmod(0o755)
    return {"PYTHON": str(path)}


@pytest.mark.parametrize(
    "says, code, expected",
    [
        ("start_0 finished", 0, 0),
        ("start_0 stopped", 0, 0),
        ("start_0 preempted", 0, 75),
        ("start_0 mistake", 1, 2),
        ("start_0 failed", 1, 1),
        ("start_0", 1, 1),
        ("", 0, 0),
        ("", 1, 1),
    ],
)
@pytest.mark.parametrize("script", ["torchrun.sh", "accelerate.sh"])
def test_the_exit_code_says_what_torchrun_does_not(script, fake, says, code, expected):
    assert run(script, "train", "x", SAYS=says, CODE=str(code), **fake).returncode == expected


@pytest.mark.parametrize("says, code, expected", [("", 0, 0), ("", 1, 1), ("mistake", 1, 2)])
def test_preflight_tells_a_mistake_from_a_failure(fake, says, code, expected):
    assert run("preflight.sh", "x", PROCS_PER_NODE="2", SAYS=says, CODE=str(code), **fake).returncode == expected


def heed_ctrl_c():
    """Where the tests run in the background it is ignored, by all that they start, and cannot be trapped."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_signal_before_the_run_starts(fake):
    """Nothing is trained yet: it ends at once, and is to be started again."""
    environment = {**os.environ, **fake, "SAYS": "", "CODE": "0", "WAIT": "1"}
    process = subprocess.Popen([LAUNCH / "torchrun.sh", "train", "x"], env=environment, preexec_fn=heed_ctrl_c)
    time.sleep(1)
    while process.poll() is None:
        process.terminate()
        time.sleep(0.5)
    assert process.returncode == 75
