"""pipe:COMMAND."""

import time
from pathlib import Path

import pytest

from crate_graph.data.dataset import open_dataset
from crate_graph.data.remote.address import join
from crate_graph.data.remote.file import RemoteFile
from crate_graph.data.stream import SampleReader
from crate_graph.errors import RunFailed, UserError
from crate_graph.redaction import redact


@pytest.mark.parametrize("command", ["cat {root}", "cat '{root}/{{}}'", "tee < {root}/{{}}"])
def test_the_output_of_a_command_is_the_file(dataset, cache, command):
    remote = open_dataset("pipe:" + command.format(root=dataset.root), cache=cache())
    readers = [SampleReader(one, one.split("train")) for one in (dataset, remote)]
    for number in (0, 24, 11):
        local, piped = (reader.read(number) for reader in readers)
        assert local[0].tobytes() == piped[0].tobytes() and local[1] == piped[1]
    for reader in readers:
        reader.close()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("cat /nowhere/{}", "the command ended with exit code 1"),
        ("no-such-command", "the command ended with exit code 127"),
        ("sleep 1000; cat {}", "nothing came for 0.3 s"),
    ],
)
def test_a_command_that_fails(cache, command, words):
    with pytest.raises(RunFailed, match=rf"pipe:\*\*\* dataset\.yaml: {words}.*\(2 tries\)"):
        open_dataset(f"pipe:{command}", cache=cache(retries=1, timeout=0.3))


@pytest.mark.parametrize(
    "command", [": {{}}; sleep 1000 & echo $! > {pid}", "(sleep 1000; echo {{}}) & echo $! > {pid}; wait"]
)
def test_a_command_that_hangs_is_ended_with_all_that_it_started(cache, tmp_path, command):
    """Also where the shell itself has ended, and only what it left behind holds the output open."""
    with pytest.raises(RunFailed, match="nothing came"):
        open_dataset("pipe:" + command.format(pid=tmp_path / "pid"), cache=cache(retries=0, timeout=0.5))
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 60
    while (stat := Path(f"/proc/{pid}/stat")).exists() and "Z" not in stat.read_text().rpartition(")")[2][:3]:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_shard_that_a_command_cuts_off(dataset, cache):
    cut = f"pipe:case {{}} in *2.tar) head -c 5000 {dataset.root}/{{}};; *) cat {dataset.root}/{{}};; esac"
    shard = open_dataset(cut, cache=cache()).split("train").shards[2]
    with pytest.raises(RunFailed, match=r"pipe:\*\*\* train-000002\.tar: it ended after 5000 of \d+ bytes"):
        shard.path.hold(shard.bytes, shard.sha256)


@pytest.mark.parametrize("name", ["a;reboot", "a b", "$(id)", "`id`", "a'b", "-rf", "a\nb", "é"])
def test_a_name_cannot_become_a_command(cache, name):
    with pytest.raises(UserError, match="letters, digits") as raised:
        join("pipe:cat {}", name)
    assert redact(str(raised.value)) == str(raised.value)
    with pytest.raises(UserError, match="letters, digits"):
        (RemoteFile("pipe:cat", cache=cache()) / name).read_bytes()
