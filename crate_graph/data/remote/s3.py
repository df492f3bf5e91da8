"""s3://BUCKET/KEY, on Amazon or a compatible store: boto3 signs a URL, and the file comes by http like any other."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

from crate_graph.config.schema import Remote
from crate_graph.data.remote.answer import Refused
from crate_graph.data.remote.http import Request
from crate_graph.errors import UserError

VALID = 3600  # seconds that a signed URL is good for; each try signs anew
_making = threading.Lock()  # boto3 makes one client at a time


def s3_request(address: str, settings: Remote) -> Request:
    """Raises Refused: incomplete credentials, or no bucket or key of that form. UserError: boto3 is not installed."""
    bucket, key = _parts(address)
    client = _client(os.getpid(), settings.s3_endpoint, settings.timeout, settings.retries)
    from botocore.exceptions import BotoCoreError

    try:
        url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=VALID)
    except BotoCoreError as error:
        raise Refused(f"{error}; check the credentials of the store (environment or ~/.aws)") from None
    return Request(url, hint="the credentials of the store (environment or ~/.aws) and what they allow")


def s3_names(root: str, settings: Remote) -> Iterator[str]:
    """Names of all files below `root`. Raises Refused."""
    bucket, prefix = _parts(root.rstrip("/") + "/")
    client = _client(os.getpid(), settings.s3_endpoint, settings.timeout, settings.retries)
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                yield item["Key"].removeprefix(prefix)
    except (BotoCoreError, ClientError) as error:
        code = error.response["Error"].get("Code", "?") if isinstance(error, ClientError) else type(error).__name__
        raise Refused(
            f"the bucket cannot be listed ({code}); name the shards in dataset.yaml with braces, or check the "
            f"credentials of the store and data.remote.s3_endpoint"
        ) from None


def _parts(address: str) -> tuple[str, str]:
    parts = urlsplit(address)
    if "@" in parts.netloc:
        raise Refused("an s3:// address holds no keys; put them in the environment or in ~/.aws/credentials")
    return parts.netloc, parts.path.lstrip("/")


@functools.lru_cache(maxsize=8)
def _client(process: int, endpoint: str | None, timeout: float, retries: int):
    """A client of one process. Without any credentials requests are not signed: a public bucket needs none."""
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise UserError("s3:// needs boto3; install it with: pip install 'crate-graph[s3]'") from None
    with _making:
        try:
            session = boto3.session.Session()
            region = session.region_name or "us-east-1"
            settings = Config(
                signature_version=UNSIGNED if session.get_credentials() is None else "s3v4",
                connect_timeout=timeout,
                read_timeout=timeout,
                retries={"total_max_attempts": retries + 1, "mode": "standard"},
            )
            return session.client("s3", endpoint_url=endpoint, region_name=region, config=settings)
        except (BotoCoreError, ValueError) as error:
            raise Refused(f"{error}; check data.remote.s3_endpoint and the settings in ~/.aws") from None
