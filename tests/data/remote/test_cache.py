"""The cache: one copy for all processes of a host, whole or not there, capped, and never taken from who uses it."""

import multiprocessing
import os
import resource
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from crate_graph.data.dataset import open_dataset
from crate_graph.data.remote.answer import Stopped
from crate_graph.data.remote.cache import release
from crate_graph.data.remote.locks import locked
from crate_graph.errors import RunFailed, UserError

DEADLINE = 60  # seconds


class Holder:
    """A process of its own that opens the data set, holds a shard, says so, and then lives on."""

    def __init__(self, address, cache, number, prepare):
        context = multiprocessing.get_context("fork")  # no imports: a moment
        self._said, said = context.Pipe(duplex=False)
        self.process = context.Process(target=self._run, args=(address, cache, number, prepare, said), daemon=True)
        self.process.start()
        said.close()

    def _run(self, address, cache, number, prepare, said):
        try:
            prepare()
            hold(open_dataset(address, cache=cache).split("train").shards[number])
            said.send("held")
            time.sleep(1000)
        except (UserError, RunFailed) as error:
            said.send(f"{type(error).__name__}: {error}")

    def says(self):
        assert self._said.poll(DEADLINE), "nothing"
        return self._said.recv()

    def kill(self):
        self.process.kill()
        self.process.join(DEADLINE)


@pytest.fixture
def start(server, cache):
    """Starts such processes: start(number of the shard)."""
    started = []

    def run(number, prepare=lambda: None):
        started.append(Holder(server.url, cache(timeout=30.0), number, prepare))
        return started[-1]

    yield run
    for holder in started:
        holder.kill()


def hold(shard, **options):
    return shard.path.hold(shard.bytes, shard.sha256, **options)


def shards_in(cache):
    return sorted(cache().folder.glob("*/*.tar"))


def bytes_in(cache):
    total = 0
    for entry in cache().folder.iterdir():
        with suppress(FileNotFoundError, NotADirectoryError):
            for path in os.scandir(entry):
                with suppress(FileNotFoundError):
                    total += path.stat().st_size
    return total


def wait_for(condition):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_addresses_with_one_name_are_two_entries(make_dataset, serve, cache, tmp_path):
    first = make_dataset((3,))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for path in [*tmp_path.glob("*.tar*"), first.file]:
        path.rename(tmp_path / "a" / path.name)
    make_dataset((3,), change=lambda n, members: {**members, "cls": b"4"})
    for path in [*tmp_path.glob("*.tar*"), first.file]:
        path.rename(tmp_path / "b" / path.name)
    server = serve(tmp_path)
    for name in ("a", "b"):
        shard = open_dataset(f"{server.url}/{name}", cache=cache()).split("train").shards[0]
        release(hold(shard))
        content = (tmp_path / name / shard.name).read_bytes()
        assert shard.path.local_path(shard.sha256).read_bytes() == content
    assert len({path.parent for path in shards_in(cache)}) == len(shards_in(cache)) == 2


def test_another_signature_is_the_same_file(server, cache):
    for query in ("?sv=1&sig=abc&part=7", "?sv=2&sig=def&part=7"):
        shard = open_dataset(f"{server.url}{query}", cache=cache()).split("train").shards[0]
        release(hold(shard))
    assert len(server.answered("/train-000000.tar")) == 1
    assert server.answered("/train-000000.tar.index.json", 304)


def test_processes_that_start_together_ask_for_an_index_once(server, cache):
    together = [cache() for _ in range(3)]
    for one in together:
        open_dataset(server.url, cache=one).split("train")
    assert len(server.answered("*.json")) == 4 and len(server.answered("/dataset.yaml")) == 1


def test_a_replaced_data_set_is_seen_at_the_next_start(make_dataset, serve, cache):
    dataset = make_dataset((3,))
    server = serve(dataset.root)
    old = open_dataset(server.url, cache=cache()).split("train").shards[0]
    release(hold(old))
    make_dataset((3,), change=lambda n, members: {**members, "cls": b"4"})
    new = open_dataset(server.url, cache=cache()).split("train").shards[0]
    release(hold(new))
    assert new.sha256 != old.sha256 and len(shards_in(cache)) == 2
    assert new.path.local_path(new.sha256).read_bytes() == (dataset.root / new.name).read_bytes()


def test_the_least_recently_used_go_first(remote, cache):
    shards = remote.split("train").shards
    for number in (0, 1, 2, 0):
        release(hold(shards[number]))
        time.sleep(0.02)
    small = cache(gigabytes=(bytes_in(cache) + 1000) / 1e9)  # room for these three
    last = open_dataset(remote.root.root, cache=small).split("train").shards[3]
    release(hold(last))
    assert shards[0].path.local_path(shards[0].sha256) in shards_in(cache)
    assert shards[1].path.local_path(shards[1].sha256) not in shards_in(cache)


def test_the_cap_is_kept_while_many_shards_pass(make_dataset, serve, cache):
    dataset = make_dataset((2,) * 30, size=(64, 64))
    server = serve(dataset.root)
    size = (dataset.root / "train-000000.tar").stat().st_size
    documents = sum(path.stat().st_size + 200 for path in dataset.root.glob("*.json")) + 2000
    cap = 5 * size + documents
    shards = open_dataset(server.url, cache=cache(gigabytes=cap / 1e9)).split("train").shards
    most, watching = 0, threading.Event()

    def watch():
        nonlocal most
        while not watching.is_set():
            most = max(most, bytes_in(cache))
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for shard in shards:
            release(hold(shard))
            assert bytes_in(cache) <= cap
    finally:
        watching.set()
        watcher.join()
    assert 3 * size < most <= cap and 3 <= len(shards_in(cache)) <= 6
    entries = [path for path in cache().folder.iterdir() if path.is_dir()]
    assert all(any(file.name != "lock" for file in entry.iterdir()) for entry in entries)  # no empty entry stays


def test_what_others_keep_in_the_folder_is_theirs(remote, cache):
    """Somebody names a folder of shards as the cache."""
    folder = cache().folder
    theirs = [folder / "flowers" / name for name in ("train-000000.tar", "notes.part", "lock")]
    theirs[0].parent.mkdir(parents=True)
    for path in theirs:
        path.write_bytes(b"x" * 100000)
    none = cache(gigabytes=1e-9)
    release(hold(open_dataset(remote.root.root, cache=none).split("train").shards[0]))
    assert all(path.exists() for path in theirs)


def test_what_is_in_use_stays(remote, cache, caplog):
    none = cache(gigabytes=1e-9)
    shards = open_dataset(remote.root.root, cache=none).split("train").shards
    used = hold(shards[0])
    assert hold(shards[1], ahead=True) is None  # not for the sake of what is only wanted ahead
    other = hold(shards[1])
    assert "raise it" in caplog.text and len(shards_in(cache)) == 2
    assert os.pread(used, shards[0].bytes, 0) == (Path(remote.root.cache.folder).parent / shards[0].name).read_bytes()
    release(used)
    third = hold(shards[2])
    assert len(shards_in(cache)) == 2
    release(other)
    release(third)


def test_a_process_that_uses_a_shard_keeps_it_until_it_ends(start, remote, cache):
    holder = start(0)
    assert holder.says() == "held"
    shards = open_dataset(remote.root.root, cache=cache(gigabytes=1e-9)).split("train").shards
    release(hold(shards[1]))
    used = shards[0].path.local_path(shards[0].sha256)
    assert used in shards_in(cache)
    holder.kill()
    release(hold(shards[2]))
    assert used not in shards_in(cache)


def test_processes_that_need_one_shard_fetch_it_once(start, server):
    server.chunk_pause = 0.05
    holders = [start(2) for _ in range(3)]
    assert [holder.says() for holder in holders] == ["held"] * 3
    assert len(server.answered("/train-000002.tar")) == 1
    assert len(server.answered("/train-000001.tar.index.json", 200)) == 1  # the others learn that it is still so


def test_what_a_killed_process_left_is_used(start, server, remote, cache):
    server.chunk_pause = 0.1
    holder = start(2)
    wait_for(lambda: any(path.stat().st_size > 30000 for path in cache().folder.glob("*/*.part")))
    holder.kill()
    server.chunk_pause = 0
    assert not shards_in(cache)
    shard = remote.split("train").shards[2]
    release(hold(shard))
    first, second = server.answered("/train-000002.tar")
    start_of_second = int(second.headers["Range"][6:-1])
    assert second.status == 206 and start_of_second >= 30000 and second.sent == shard.bytes - start_of_second
    assert shard.path.local_path(shard.sha256).read_bytes() == (server.folder / shard.name).read_bytes()
    assert not list(cache().folder.glob("*/*.part")) and not list(cache().folder.glob("*/*.tag"))


@pytest.mark.parametrize("left", ["whole", "changed", "too long", "no tag"])
def test_what_lies_in_the_cache_is_not_believed(server, remote, cache, left):
    """Files as a crash may leave them, or a disk."""
    shard = remote.split("train").shards[2]
    good = (server.folder / shard.name).read_bytes()
    path = shard.path.local_path(shard.sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{shard.bytes}.part")
    part.write_bytes({"whole": good, "changed": b"?" + good[1:], "too long": good + b"?", "no tag": good[:99]}[left])
    release(hold(shard))
    assert path.read_bytes() == good
    assert len(server.answered("/train-000002.tar")) == (0 if left == "whole" else 1)
    path.write_bytes(good[:-1])  # and a shard that somebody cut off
    release(hold(shard))
    assert path.read_bytes() == good


def test_a_holder_that_does_nothing_is_not_waited_for_for_ever(remote, cache):
    fast = cache(timeout=0.1, retries=0)
    shard = open_dataset(remote.root.root, cache=fast).split("train").shards[0]
    path = shard.path.local_path(shard.sha256).with_name("lock")
    with (
        locked(path, patience=1),
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(RunFailed, match=r"another process has held.*without any progress.*data\.cache\.folder"),
    ):
        patch.setattr("crate_graph.data.remote.fetch.LONGEST_PAUSE", 0.1)
        hold(shard)


def test_a_wait_ends_when_nobody_wants_the_shard_any_more(remote):
    shard = remote.split("train").shards[0]
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with locked(shard.path.local_path(shard.sha256).with_name("lock"), patience=1), pytest.raises(Stopped):
        hold(shard, stop=stop)


def a_small_disk():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))


def test_a_full_disk_names_the_folder(start, server, remote, cache):
    said = start(0, prepare=a_small_disk).says()
    assert said.startswith(f"UserError: {cache().folder}: no room for {server.url}/train-000000.tar")
    shard = remote.split("train").shards[0]
    release(hold(shard))  # with room again it goes on
    assert server.answered("/train-000000.tar", 206)


def test_nobody_waits_where_no_folder_is_ever_made():
    """`mkdir` says there that there is no such file."""
    with pytest.raises(UserError, match="cannot be used"), locked(Path("/proc/none/lock"), patience=1):
        pass


def test_a_folder_that_cannot_be_made(server, cache, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cache: the cache of remote shards cannot be used.*data\.cache\.folder"):
        open_dataset(server.url, cache=cache(folder="file/cache"))
