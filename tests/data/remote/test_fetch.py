"""Shards behind a server that fails: the epoch is exact and complete, or it stops with the shard's name."""

import socket
import threading

import pytest
import torch

from crate_graph.config.schema import EvalTransform
from crate_graph.data import PlannedLoader
from crate_graph.data.augment import build_eval_transform
from crate_graph.data.dataset import open_dataset
from crate_graph.errors import RunFailed, UserError
from crate_graph.redaction import redact

SHARD = "/train-000001.tar"


def epochs(dataset, epochs=(0, 1), **change):
    """All batches of some epochs: images, labels and sample numbers."""
    view = build_eval_transform(
        EvalTransform(size=64, resize=None), mean=dataset.mean, std=dataset.std, channels=3, num_classes=5
    )
    arguments = dict(slots=4, global_batch=4, block=3, seed=1) | change
    loader = PlannedLoader("train", dataset=dataset, transform=view, **arguments)
    try:
        return [(b.images, b.targets, b.samples) for epoch in epochs for b in loader.epoch(epoch)]
    finally:
        loader.close()


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize(("workers", "ahead"), [(0, 0), (2, 1)])
def test_the_epoch_is_that_of_local_shards(dataset, server, cache, workers, ahead):
    remote = open_dataset(server.url, cache=cache(read_ahead=ahead))
    assert same(epochs(dataset), epochs(remote, workers=workers))
    for number in range(4):
        assert len(server.answered(f"/train-{number:06d}.tar")) == 1  # once, for two epochs and all readers


PASSING = ["503", "429", "drop", "stall", "stall at once", "hang up", "truncated", "changed", "no range", "no tag"]


@pytest.mark.parametrize(("kind", "workers"), [*((kind, 0) for kind in PASSING), ("drop", 2)])
def test_a_fault_that_passes_costs_nothing(dataset, server, cache, kind, workers):
    if kind.startswith("no "):
        server.fail("/train-*.tar", "drop")
    server.fail("/train-*.tar", kind, times=2 if kind.startswith("no ") else 1)
    remote = open_dataset(server.url, cache=cache(timeout=0.5))
    assert same(epochs(dataset, [0]), epochs(remote, [0], workers=workers))
    assert len(server.answered("/train-*.tar")) > 4


@pytest.mark.parametrize(
    ("file", "kind"),
    [(file, kind) for file in ("/dataset.yaml", "/train-000002.tar.index.json") for kind in ("503", "drop", "stall")],
)
def test_the_index_and_the_description_are_asked_for_again(dataset, server, cache, file, kind):
    server.fail(file, kind)
    shards = open_dataset(server.url, cache=cache(timeout=0.5)).split("train").shards
    assert [shard.sha256 for shard in shards] == [shard.sha256 for shard in dataset.split("train").shards]
    assert len(server.answered(file)) == 2


@pytest.mark.parametrize(
    ("kind", "workers", "error", "words"),
    [
        ("503", 0, RunFailed, r"HTTP 503 \(4 tries\).*data\.remote\.retries=3"),
        ("503", 2, RunFailed, r"HTTP 503 \(4 tries\)"),
        ("stall", 0, RunFailed, r"nothing came for 0\.3 s \(4 tries\)"),
        ("hang up", 0, RunFailed, r"the connection broke off \(4 tries\)"),
        ("truncated", 0, UserError, r"it has \d+ bytes, but its index says \d+, and neither was it when fetched again"),
        ("changed", 2, UserError, "its sha256 is not the one in its index"),
        ("403", 0, UserError, r"access is refused \(HTTP 403\)"),
        ("404", 0, UserError, r"no such file \(HTTP 404\)"),
        ("400", 0, UserError, "HTTP 400"),
    ],
)
def test_a_fault_that_stays_stops_with_the_name_of_the_shard(dataset, server, cache, kind, workers, error, words):
    server.fail(SHARD, kind, times=float("inf"))
    remote = open_dataset(server.url, cache=cache(timeout=0.3))
    with pytest.raises(error, match=f"{server.url}{SHARD}: .*{words}") as raised:
        epochs(remote, workers=workers)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("file", ["/dataset.yaml", "/train-000001.tar.index.json", SHARD])
@pytest.mark.parametrize(
    ("kind", "moved_to", "words", "requests"),
    [
        ("page", "", "a web page is there in its place; open the address in a browser", 1),
        ("moved", "", "the server sends us on more than 5 times; check the address", 6),
        ("moved", "file://", "is no http:// or https:// address; check it", 1),
    ],
)
def test_a_web_page_and_redirects_to_nowhere(server, cache, file, kind, moved_to, words, requests):
    """One line that names the file, at once, and no byte of a page stays in the cache."""
    if (file, kind) == (SHARD, "page"):
        words, requests = r"it has \d+ bytes, but its index says", 2
    server.moved_to = moved_to
    server.fail(file, kind, times=float("inf"))
    with pytest.raises(UserError, match=f"{server.url}{file}: .*{words}") as raised:
        epochs(open_dataset(server.url, cache=cache(read_ahead=0)), [0])
    assert "\n" not in str(raised.value)
    assert len(server.answered(file)) == requests
    assert not [path for path in cache().folder.rglob("*") if path.is_file() and b"<html>" in path.read_bytes()]


def test_a_shard_that_breaks_off_each_time_goes_on_each_time(dataset, server, cache):
    """Half of what remains comes each time: only a fetch that goes on where it broke can end."""
    server.fail(SHARD, "drop", times=3)
    assert same(epochs(dataset), epochs(open_dataset(server.url, cache=cache(retries=3, read_ahead=0))))
    asked = server.answered(SHARD)
    starts = [int(request.headers.get("Range", "bytes=0-")[6:-1]) for request in asked]
    assert [request.status for request in asked] == [200, 206, 206, 206]
    assert starts == sorted(starts) and starts[1] > 0
    assert all(request.headers["If-Range"].startswith('"') for request in asked[1:])
    assert sum(request.sent for request in asked) == (dataset.root / SHARD[1:]).stat().st_size  # no byte twice


class Pauses(threading.Event):
    """Notes how long the tries are apart, and does not wait."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def wait(self, timeout=None):
        self.seconds.append(timeout)
        return False


def test_the_pauses_between_tries_grow_and_differ(server, cache):
    server.fail(SHARD, "503", times=float("inf"))
    shard = open_dataset(server.url, cache=cache(backoff=1.0, retries=4)).split("train").shards[1]
    tries = [Pauses() for _ in range(3)]
    for pauses in tries:
        server.retry_after = "7" if pauses is tries[2] else "0"
        with pytest.raises(RunFailed):
            shard.path.hold(shard.bytes, shard.sha256, stop=pauses)
    for pauses in tries[:2]:
        assert len(pauses.seconds) == 4
        assert all(0.5 * 2**n <= pause <= 1.5 * 2**n for n, pause in enumerate(pauses.seconds))
    assert tries[0].seconds != tries[1].seconds  # so that a thousand readers do not come back as one
    assert tries[2].seconds[:3] == [7.0] * 3  # as the server asks


@pytest.mark.parametrize("kind", ["", "glue"])
def test_two_versions_are_never_glued(dataset, server, remote, kind, caplog):
    """The shard is replaced between the two halves; a server that minds If-Range begins anew, and so does one that
    does not: its tag tells."""
    path = dataset.root / SHARD[1:]
    good = path.read_bytes()
    path.write_bytes(bytes([good[0] ^ 1, *good[1:]]))
    server.fail(SHARD, "drop")
    if kind:
        server.fail(SHARD, kind, times=float("inf"))
    next_fault = server.next_fault

    def mended(requested):
        if requested == SHARD and len(server.answered(SHARD)) == 2:
            path.write_bytes(good)
        return next_fault(requested)

    server.next_fault = mended
    shard = remote.split("train").shards[1]
    shard.path.hold(shard.bytes, shard.sha256)
    assert shard.path.local_path(shard.sha256).read_bytes() == good
    assert [request.status for request in server.answered(SHARD)] == [200, 206, 200] if kind else [200, 200]
    assert ("not the version that its beginning came from" in caplog.text) == bool(kind)


def test_a_server_that_drips_has_stalled(server, cache):
    server.fail(SHARD, "drip", times=float("inf"))
    remote = open_dataset(server.url, cache=cache(timeout=0.5, retries=1))
    with pytest.raises(RunFailed, match=r"train-000001\.tar: only \d+ bytes came in 0\.5 s \(2 tries\)"):
        epochs(remote)


def test_a_redirect_to_another_host_takes_no_password_along(dataset, server, serve, cache):
    other = serve(dataset.root)
    server.moved_to = other.url.replace("127.0.0.1", "localhost")
    server.fail("/train-*.tar", "moved", times=float("inf"))
    remote = open_dataset(server.url.replace("://", "://me:secret@"), cache=cache())
    assert same(epochs(dataset), epochs(remote))
    assert all(request.headers["Authorization"].startswith("Basic ") for request in server.seen)
    assert other.seen and not any("Authorization" in request.headers for request in other.seen)


def test_a_signature_goes_with_every_request_and_the_names_are_quoted(server, cache):
    (server.folder / "a b#c.txt").write_text("text")
    remote = open_dataset(f"{server.url}?sv=1&sig=a%2Fb", cache=cache())
    assert (remote.root / "a b#c.txt").read_bytes() == b"text"


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("ftp://host/shards", UserError, "ftp:// is not an address"),
        ("http:///shards", UserError, "not a URL"),
        ("http://host:port/shards", UserError, "not a URL"),
        ("pipe:", UserError, "no command"),
        ("http://nowhere.invalid/shards", RunFailed, r"the host is not found \(2 tries\)"),
        ("https://***@host/shards", UserError, "credentials were left out"),
        ("hf://one", UserError, "write hf://datasets/USER/REPOSITORY"),
    ],
)
def test_an_address_that_is_none(cache, address, error, words):
    with pytest.raises(error, match=words) as raised:
        open_dataset(address, cache=cache(retries=1))
    assert redact(str(raised.value)) == str(raised.value)  # the remedy is not taken for a secret
    with pytest.raises(error, match=words):
        open_dataset("fashion_mnist", root=address, cache=cache(retries=1)).split("train")


def test_a_host_that_refuses(cache):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(RunFailed, match=rf"127.0.0.1:{port}/dataset.yaml: the host refuses the connection.*2 tries"):
        open_dataset(f"http://127.0.0.1:{port}", cache=cache(retries=1))


def test_what_is_missing_is_named_with_its_remedy(server, dataset, remote, cache):
    (dataset.root / "train-000002.tar.index.json").unlink()
    with pytest.raises(UserError, match=r"train-000002\.tar: the shard has no index; make it with: crate-graph shards"):
        remote.split("train")
    dataset.file.unlink()
    with pytest.raises(UserError, match=r"dataset\.yaml: there is no such file .*data\.root"):
        open_dataset(server.url, cache=cache())


def test_the_wrong_index_is_named(dataset, remote):
    (dataset.root / "train-000002.tar.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"train-000002\.tar\.index\.json: not an index.*upload it"):
        remote.split("train")


def test_stars_need_a_list(server, cache):
    with pytest.raises(UserError, match="http has no list of files.*braces"):
        open_dataset("imagenet1k", root=server.url, cache=cache()).split("train")
