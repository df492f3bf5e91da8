"""A real HTTP server on loopback that fails as servers do, and data sets behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
from failing_server import FailingServer

from crate_graph.config.schema import Cache, Remote
from crate_graph.data.dataset import open_dataset
from crate_graph.data.remote.cache import ShardCache

QUICK = {"timeout": 1.0, "retries": 3, "backoff": 0.01}


@pytest.fixture
def serve():
    """Starts servers: serve(folder) -> FailingServer."""
    started = []

    def start(folder: Path) -> FailingServer:
        started.append(FailingServer(Path(folder)).__enter__())
        return started[-1]

    yield start
    for server in started:
        server.__exit__()


@pytest.fixture
def dataset(make_dataset):
    """Four shards of real tars, large enough to be cut in the middle."""
    return make_dataset((7, 5, 9, 4), size=(64, 64))


@pytest.fixture
def server(serve, dataset) -> FailingServer:
    return serve(dataset.root)


@pytest.fixture
def cache(tmp_path):
    """cache(...) -> the cache of this test, with quick answers to failure."""

    def make(gigabytes: float = 1.0, folder: str = "cache", **remote) -> ShardCache:
        return ShardCache(Cache(folder=str(tmp_path / folder), gigabytes=gigabytes), Remote(**{**QUICK, **remote}))

    return make


@pytest.fixture
def remote(server, cache):
    """The data set behind the server."""
    return open_dataset(server.url, cache=cache())
