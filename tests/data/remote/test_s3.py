"""s3:// from a real S3-compatible server, alone and behind a front that fails."""

import sys
from pathlib import Path

import pytest
from failing_server import s3_store

from crate_graph.config.schema import EvalTransform, Remote
from crate_graph.data import PlannedLoader
from crate_graph.data.augment import build_eval_transform
from crate_graph.data.dataset import open_dataset
from crate_graph.data.remote.cache import release
from crate_graph.data.remote.s3 import _client, s3_request
from crate_graph.errors import RunFailed, UserError

boto3 = pytest.importorskip("boto3", reason="the extra s3 is not installed")
pytest.importorskip("moto", reason="moto is not installed")


@pytest.fixture(scope="module")
def store():
    with s3_store() as url:
        yield url


@pytest.fixture(autouse=True)
def keys(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    _client.cache_clear()
    yield
    _client.cache_clear()


@pytest.fixture
def bucket(store, dataset, request):
    """The data set, uploaded; its s3:// address."""
    client = boto3.client("s3", endpoint_url=store, region_name="us-east-1")
    name = f"b{abs(hash(request.node.name)):x}"
    client.create_bucket(Bucket=name)
    for file in dataset.root.iterdir():
        if file.is_file():
            client.upload_file(str(file), name, f"deep/er/{file.name}")
    return f"s3://{name}/deep/er"


def read_all(dataset):
    """One planned epoch: pixels, labels and sample numbers of each batch."""
    view = build_eval_transform(
        EvalTransform(size=64, resize=None), mean=dataset.mean, std=dataset.std, channels=3, num_classes=5
    )
    loader = PlannedLoader("train", dataset=dataset, transform=view, slots=4, global_batch=4, block=3, seed=1)
    try:
        return [(b.images.tolist(), b.targets.tolist(), b.samples.tolist()) for b in loader.epoch(0)]
    finally:
        loader.close()


def test_a_data_set_in_a_bucket(dataset, store, bucket, cache):
    remote = open_dataset(bucket, cache=cache(s3_endpoint=store))
    assert read_all(remote) == read_all(dataset)
    assert str(remote.root) == bucket and str(remote.file) == f"{bucket}/dataset.yaml"


def test_a_store_that_the_environment_names(store, bucket, cache, monkeypatch):
    """As every tool of that store reads it; the bucket is in the path, since the store may know no host per bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.replace("127.0.0.1", "localhost"))
    shard = open_dataset(bucket, cache=cache()).split("train").shards[0]
    release(shard.path.hold(shard.bytes, shard.sha256))
    asked = s3_request("s3://bucket/key", Remote()).url
    assert asked.startswith(f"{store.replace('127.0.0.1', 'localhost')}/bucket/key?")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    _client.cache_clear()
    assert s3_request("s3://bucket/key", Remote()).url.startswith("https://bucket.s3.amazonaws.com/key?")


def test_shards_by_a_star(dataset, store, bucket, cache):
    text = dataset.file.read_text().replace("train-{000000..000003}.tar", "train-*.tar")
    dataset.file.write_text(text)
    remote = open_dataset(dataset.file, root=bucket, cache=cache(s3_endpoint=store))
    assert [s.name for s in remote.split("train").shards] == [f"train-{n:06d}.tar" for n in range(4)]


def test_the_store_behind_a_front_that_fails(dataset, store, bucket, serve, cache, tmp_path):
    """What the store sends is cut, delayed, refused or cut short on its way; parts go on by range."""
    front = serve(tmp_path)
    front.upstream = store
    for kind in ("503", "drop", "hang up", "stall", "truncated"):
        front.fail("*/train-*.tar", kind)
    remote = open_dataset(bucket, cache=cache(s3_endpoint=front.url, retries=5, read_ahead=0))
    assert read_all(remote) == read_all(dataset)
    assert front.answered("*.tar", 206) and front.answered("*.tar", 503)
    whole = [
        seen
        for seen in front.answered("*.tar", 200)
        if seen.sent == (dataset.root / Path(seen.path).name).stat().st_size
    ]
    assert len({seen.path for seen in whole}) == len(whole)  # no shard came twice


def test_a_store_that_fails_stops_with_the_name_of_the_shard(store, bucket, serve, cache, tmp_path):
    front = serve(tmp_path)
    front.upstream = store
    front.fail("*/train-000002.tar", "503", times=float("inf"))
    with pytest.raises(RunFailed, match=rf"{bucket}/train-000002\.tar: HTTP 503 \(4 tries\)"):
        read_all(open_dataset(bucket, cache=cache(s3_endpoint=front.url)))
    front.fail("*/train-000003.tar", "403", times=float("inf"))
    with pytest.raises(UserError, match=rf"{bucket}/train-000003\.tar: access is refused.*credentials of the store"):
        shard = open_dataset(bucket, cache=cache(folder="other", s3_endpoint=front.url)).split("train").shards[3]
        shard.path.hold(shard.bytes, shard.sha256)


def test_what_is_not_there(store, bucket, cache):
    with pytest.raises(UserError, match=r"s3://no-such-bucket/x/dataset\.yaml: there is no such file"):
        open_dataset("s3://no-such-bucket/x", cache=cache(s3_endpoint=store))
    with pytest.raises(UserError, match="the bucket cannot be listed .NoSuchBucket"):
        open_dataset("imagenet1k", root="s3://no-such-bucket/x", cache=cache(s3_endpoint=store)).split("train")
    with pytest.raises(UserError, match="no shard train-"):
        open_dataset("imagenet1k", root=bucket.replace("deep", "other"), cache=cache(s3_endpoint=store)).split("train")


def test_keys_do_not_stand_in_the_address(store, cache):
    with pytest.raises(UserError, match=r"s3://\*\*\*@bucket/dataset\.yaml: an s3:// address holds no keys"):
        open_dataset("s3://KEY:SECRET@bucket", cache=cache(s3_endpoint=store))


def test_half_of_the_keys(bucket, store, cache, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"dataset\.yaml: Partial credentials.*~/.aws"):
        open_dataset(bucket, cache=cache(s3_endpoint=store))


def test_without_keys_requests_are_not_signed(dataset, store, bucket, serve, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    front = serve(tmp_path)
    front.upstream = store
    client, name = boto3.client("s3", endpoint_url=store, region_name="us-east-1"), bucket.split("/")[2]
    for item in client.list_objects_v2(Bucket=name)["Contents"]:
        client.put_object_acl(Bucket=name, Key=item["Key"], ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    shard = open_dataset(bucket, cache=cache(s3_endpoint=front.url)).split("train").shards[0]
    release(shard.path.hold(shard.bytes, shard.sha256))
    assert front.seen and not any("Signature" in request.query for request in front.seen)


def test_without_boto3_the_extra_is_named(store, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)  # as Python marks what cannot be imported
    with pytest.raises(UserError, match=r"pip install 'crate-graph\[s3\]'"):
        open_dataset("s3://bucket/shards", cache=cache(s3_endpoint=store))
