"""`crate-graph doctor`: alone and on two processes, and each check where it fails."""

import json
import resource
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from crate_graph.cli import main
from crate_graph.cluster.interfaces import fitting
from crate_graph.config import load_recipe
from crate_graph.doctor import host, network, recipe, together
from crate_graph.doctor.check import Check, amount, failing
from crate_graph.doctor.report import as_table
from crate_graph.shipped import shipped_folder

HERE = socket.gethostname()


def by_name(text):
    return {check["name"]: check for check in json.loads(text)["checks"]}


def test_alone(tmp_path, capsys):
    assert main(["doctor", "quickstart", "--run-dir", str(tmp_path / "run"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    checks = by_name(out)
    names = ["versions", "run folder", "shared memory", "memory", "open files", "batches"]
    for name in [*names, "shards of train", "shards of test"]:
        assert checks[name]["status"] in ("ok", "warning"), checks[name]
    assert "torch " in checks["versions"]["found"] and "images/s" in checks["shards of train"]["found"]
    assert {check["host"] for check in checks.values()} == {HERE, ""}
    assert all(check["remedy"] for check in checks.values() if check["status"] != "ok")
    assert not list(tmp_path.iterdir())


def test_a_failed_check_is_exit_code_1_and_shows_its_remedy(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["doctor", "--run-dir", str(tmp_path / "file" / "run")]) == 1
    shown, said = capsys.readouterr()
    assert said.startswith("examining this host: versions, devices, run folder") and said.count("\n") == 1
    assert "failed   run folder" in shown and "-> choose another --run-dir" in shown and "1 failed" in shown


@pytest.mark.parametrize("words", [["no_such_recipe"], ["quickstart", "data.slotz=1"]])
def test_a_mistake_is_exit_code_2(words, capsys):
    assert main(["doctor", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_two_processes_give_one_table(group, unused_port):
    port = unused_port()
    command = [
        "doctor",
        str(group.recipe),
        "batch.micro_batch=4",
        "--json",
        "--run-dir",
        str(group.folder / "examined"),
    ]
    group.start([group.process(rank, 2, port) for rank in range(2)], command)
    (code, out, err), (other, nothing, _) = group.end()
    assert (code, other, nothing) == (0, 0, ""), err
    checks = by_name(out)
    assert f"2 on {HERE}" in checks["meeting"]["found"]
    assert checks["clocks"]["status"] == "ok" and "gloo, 2 processes: 4 KiB" in checks["all-reduce"]["found"]
    assert "16 = 4 x accumulation 2 x 2 processes" in checks["batches"]["found"]


def test_a_process_that_does_not_come_is_named(group, unused_port):
    port = unused_port()
    group.start([group.process(rank, 3, port, seconds=2) for rank in range(2)], ["doctor"])
    (code, out, _), (other, nothing, err) = group.end()
    assert (code, other, nothing) == (1, 1, "")
    assert "failed   meeting" in out and "rank 2 of 3 has not come" in out.replace("\n", " ")
    assert "rank 2 of 3 has not come" in err and "Traceback" not in err


def test_versions_that_do_not_suffice(monkeypatch):
    monkeypatch.setattr(
        host, "installed", lambda name: "0.1" if name == "timm" else "none" if name == "torch" else "99"
    )
    (check,) = host.check_versions()
    assert check.status == "failed" and "timm 0.1 (needs " in check.found and "torch none" in check.found


def test_gpus_that_pytorch_cannot_use(monkeypatch, tmp_path):
    """Seen where the driver is too old."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100, 470.57.02'\n")
    program.chmod(0o755)
    monkeypatch.setattr(host.torch.cuda, "is_available", lambda: False)
    assert "no GPU" in host.check_devices(1)[0].found
    monkeypatch.setenv("PATH", str(tmp_path))
    (check,) = host.check_devices(1)
    assert check.status == "failed" and "the driver knows 1 GPUs (NVIDIA H100, 470.57.02)" in check.found


@pytest.fixture
def small_tmpfs(tmp_path):
    """A file system of one megabyte and a few files, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=64", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_and_small_shared_memory(small_tmpfs):
    (small_tmpfs / "half").write_bytes(bytes(500_000))
    (check,) = host.check_folder(small_tmpfs / "run")
    assert check.status == "failed" and "No space left" in check.found
    assert host.check_shared_memory(small_tmpfs, None)[0].status == "warning"
    (check,) = host.check_shared_memory(small_tmpfs, 2e6)
    assert check.status == "failed" and "loader workers need 2 MB" in check.found
    assert host.check_shared_memory(small_tmpfs / "none", None)[0].status == "failed"


def test_little_room_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "FREE_BYTES", 1e18)
    (check,) = host.check_folder(tmp_path)
    assert check.status == "warning" and "make room" in check.remedy


def test_too_little_memory():
    (check,) = host.check_memory(1_000_000)
    assert check.status == "warning" and "1000000 processes want about" in check.remedy


def test_too_few_open_files():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    try:
        (check,) = host.check_open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert check.status == "failed" and "512 for a process" in check.found and "ulimit -n" in check.remedy


def test_an_interface_that_is_not_there(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere7")
    (check,) = network.check_network("127.0.0.1", 1)
    assert check.status == "failed" and "GLOO_SOCKET_IFNAME=nowhere7" in check.found and "lo 127.0.0.1" in check.found


def test_loopback_does_not_lead_to_other_hosts(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    (check,) = network.check_network("127.0.0.1", 2)
    assert check.status == "failed" and "127.0.0.1 is reached by lo" in check.found
    assert network.check_network("nowhere.invalid", 2)[0].status == "failed"


def test_loopback_is_no_matter_on_one_host(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(network.socket, "gethostbyname", lambda name: "127.0.1.1")  # as Debian's /etc/hosts has it
    monkeypatch.setattr(network.socket, "gethostname", lambda: "localhost")
    (check,) = network.check_network(None, 1)
    assert (check.status, check.remedy) == ("ok", "") and "localhost is reached by lo" in check.found
    assert network.check_network("127.0.0.1", 1)[0].status == "ok"


@pytest.mark.parametrize(
    "variable, value, meant",
    [
        ("GLOO_SOCKET_IFNAME", "eth0", ["eth0"]),
        ("GLOO_SOCKET_IFNAME", "eth", []),
        ("NCCL_SOCKET_IFNAME", "eth", ["eth0", "eth1"]),
        ("NCCL_SOCKET_IFNAME", "=eth", []),
        ("NCCL_SOCKET_IFNAME", "=eth1", ["eth1"]),
        ("NCCL_SOCKET_IFNAME", "^lo,docker", ["eth0", "eth1", "ib0"]),
        ("NCCL_SOCKET_IFNAME", "^=eth0", ["lo", "docker0", "eth1", "ib0"]),
    ],
)
def test_interfaces_that_a_variable_means(variable, value, meant):
    assert fitting(variable, value, ["lo", "docker0", "eth0", "eth1", "ib0"]) == meant


def test_clocks_that_differ():
    check = together.judge_clocks({"a": 0.0, "b": 0.01, "c": -75.0})
    assert check.status == "warning" and check.found == "c is 75.0 s behind"
    assert together.judge_clocks({"a": 0.0, "b": 0.01}).status == "ok"


def test_a_slow_network():
    times = {4 << 10: 1e-3, 1 << 20: 1e-2, 32 << 20: 4.0}
    check = together.judge_all_reduce(times, 4, "gloo")
    assert (
        check.status == "warning"
        and "4 KiB 1 ms (6.14 MB/s)" in check.found
        and "32 MiB 4 s (12.6 MB/s)" in check.found
    )
    assert together.judge_all_reduce({**times, 32 << 20: 0.1}, 4, "gloo").status == "ok"


def test_batches_that_do_not_divide():
    (check,) = failing("batches", recipe.check_batches, load_recipe("quickstart"), 3)
    assert check.status == "failed" and "batch.global_batch=128" in check.found and check.remedy
    (check,) = recipe.check_batches(load_recipe("quickstart", ["data.workers=3"]), 1)
    assert check.status == "failed" and "64 slots for 3 readers" in check.found


def test_shards_that_are_damaged_or_missing(tmp_path):
    data = shutil.copytree(shipped_folder("datasets") / "fashion_mnist", tmp_path / "data")
    asked = load_recipe("quickstart", [f"data.dataset={data}"])
    shard = data / "train-000000.tar"
    spoiled = bytearray(shard.read_bytes())
    spoiled[600:2_000] = bytes(1_400)
    shard.write_bytes(spoiled)
    train, test = recipe.check_shards(asked)
    assert (train.status, test.status) == ("warning", "ok") and "of them damaged" in train.found
    shard.unlink()
    (check,) = failing("shards", recipe.check_shards, asked)
    assert check.status == "failed" and "train-000000.tar" in check.found


def test_no_credentials_are_shown(tmp_path):
    shutil.copytree(shipped_folder("datasets") / "fashion_mnist", tmp_path / "data")
    remote = [f"data.dataset=pipe:PASSWORD=geheim cat {tmp_path}/data", f"data.cache.folder={tmp_path}/cache"]
    train, _ = recipe.check_shards(load_recipe("quickstart", remote))
    assert train.status == "ok" and "geheim" not in train.found and "pipe:***" in train.found
    (tmp_path / "data" / "train-000000.tar").unlink()
    shutil.rmtree(tmp_path / "cache")
    remote.append("data.remote={retries: 0}")
    (check,) = failing("shards", recipe.check_shards, load_recipe("quickstart", remote))
    assert check.status == "failed" and "geheim" not in check.found + check.remedy


def test_what_hosts_have_alike_is_one_line():
    checks = [Check("memory", "ok", "much", "", name) for name in ("a", "b")]
    lines = as_table([*checks, Check("memory", "warning", "little", "add some", "c")]).splitlines()
    assert lines[:3] == ["ok       memory  a, b: much", "warning  memory  c: little", " " * 17 + "-> add some"]
    assert lines[-1] == "2 ok, 1 warning, 0 failed"
    assert as_table(checks).splitlines()[-1] == "2 ok, 0 warnings, 0 failed"


@pytest.mark.parametrize(
    "count, shown", [(512, "0.512 kB"), (3.61e6, "3.61 MB"), (9.999e8, "1 GB"), (8e10, "80 GB"), (1.234e13, "12.3 TB")]
)
def test_bytes_have_the_unit_that_shows_them(count, shown):
    assert amount(count) == shown


def test_a_run_folder_that_is_to_be(tmp_path, monkeypatch):
    """Nothing is left of the examination."""
    monkeypatch.chdir(tmp_path)
    (check,) = host.check_folder(Path("runs/new"))
    assert check.status in ("ok", "warning") and not Path("runs").exists()
