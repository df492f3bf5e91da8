"""hf:// through huggingface_hub, from a server that answers as the hub does."""

import pytest

from crate_graph.data.dataset import open_dataset
from crate_graph.data.remote.address import parse_hub
from crate_graph.data.remote.cache import release
from crate_graph.errors import UserError

huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")


@pytest.fixture
def hub_server(serve, dataset, tmp_path, monkeypatch):
    """The data set under the address of a repository; huggingface_hub is pointed there, with a token."""
    folder = tmp_path / "hub" / "datasets" / "me" / "flowers" / "resolve" / "v1"
    folder.mkdir(parents=True)
    for file in dataset.root.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    server = serve(tmp_path / "hub")
    # what HF_ENDPOINT and HF_TOKEN set when the library is first imported
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        huggingface_hub.file_download.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return server


def test_a_data_set_on_the_hub(dataset, hub_server, cache):
    remote = open_dataset("hf://datasets/me/flowers@v1", cache=cache())
    hub_server.fail("*/train-000001.tar", "drop")
    for shard in remote.split("train").shards:
        release(shard.path.hold(shard.bytes, shard.sha256))
        assert shard.path.local_path(shard.sha256).read_bytes() == (dataset.root / shard.name).read_bytes()
    assert hub_server.answered("*/train-000001.tar", 206)
    tokens = {request.headers["Authorization"] for request in hub_server.answered("/datasets/*")}
    assert tokens == {"Bearer hf_secret"}


def test_what_is_not_there(hub_server, cache):
    with pytest.raises(UserError, match=r"hf://datasets/me/cars/dataset\.yaml: there is no such file \(HTTP 404\)"):
        open_dataset("hf://datasets/me/cars", cache=cache())
    hub_server.fail("*/dataset.yaml", "401")
    with pytest.raises(UserError, match=r"access is refused \(HTTP 401\); check the token"):
        open_dataset("hf://datasets/me/flowers@v1", cache=cache())


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("hf://datasets/me/flowers/a/b.tar", ("dataset", "me/flowers", None, "a/b.tar")),
        ("hf://datasets/me/flowers@refs%2Fpr%2F1/b.tar", ("dataset", "me/flowers", "refs/pr/1", "b.tar")),
        ("hf://me/flowers@v1", ("model", "me/flowers", "v1", "")),
    ],
)
def test_parts_of_an_address(address, parts):
    assert parse_hub(address) == parts
