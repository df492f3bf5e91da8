"""A file asked for by http(s), once. Nothing here tries again, and no error names the URL, which may hold a secret."""

from __future__ import annotations

import functools
import netrc
import os
import re
import urllib.request
from dataclasses import dataclass, field
from email.utils import mktime_tz, parsedate_tz
from time import time
from urllib.parse import unquote, urlsplit, urlunsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationValueError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
    URLSchemeUnknown,
)

from crate_graph.data.remote.answer import CHUNK, Broken, NotThere, Refused, Replaced

MOST_REDIRECTS = 5
PASSING = (408, 425, 429)  # and 5xx: the server's trouble, or too many requests


@dataclass(frozen=True)
class Request:
    """A URL that may hold a signature, and headers that may hold a token."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    hint: str = ""  # what to check where it is refused

    def __repr__(self) -> str:
        return "Request(...)"


def web_request(address: str) -> Request:
    """For an http(s) address: user and password become a header; where it has none, ~/.netrc may know them."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    user, password = parts.username, parts.password or ""
    headers = {}
    if user is None:
        known = _from_netrc(parts.hostname or "")
        user, password = known if known else (None, "")
    if user is not None:
        headers = urllib3.make_headers(basic_auth=f"{unquote(user)}:{unquote(password)}")
    return Request(urlunsplit(parts._replace(netloc=host)), headers, "the user, password or signature of its address")


def open_http(request: Request, timeout: float, start: int = 0, tag: str | None = None, known: str | None = None):
    """Ask for a file from byte `start` on.

    Args:
        request: from `web_request`, `s3.s3_request` or `hub.hub_request`.
        timeout: seconds to wait for a connection, and for each read.
        start: only together with `tag`, the version that the bytes before it are of; another one comes from its start.
        known: tag of a version that is here already.

    Returns:
        An Answer; None where the file still is the `known` one.

    Raises:
        Broken, Replaced, NotThere, Refused.
    """
    headers = {**request.headers, "Accept-Encoding": "identity", "User-Agent": "crate-graph"}
    if start and tag:
        headers |= {"Range": f"bytes={start}-", "If-Range": tag}
    if known:
        headers["If-None-Match"] = known
    try:
        response = _pool(os.getpid(), _proxy(request.url)).request(
            "GET",
            request.url,
            headers=headers,
            timeout=urllib3.Timeout(connect=timeout, read=timeout),
            retries=urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=MOST_REDIRECTS),
            preload_content=False,
            decode_content=False,
        )
    except (HTTPError, ValueError) as error:
        raise _named(error, timeout) from None
    return _check(response, request, timeout, start, tag, known)


def _check(response, request: Request, timeout: float, start: int, tag: str | None, known: str | None):
    status = response.status
    if status in (200, 206, 304):
        if status == 304 and known:
            response.release_conn()
            return None
        answer = HttpAnswer(response, timeout)
        if status == 200 or (status == 206 and start and answer.start == start and answer.tag in (tag, None)):
            return answer
        answer.close()
        raise Replaced("it is not the version that its beginning came from")
    wait, region = _seconds(response.headers.get("Retry-After")), response.headers.get("x-amz-bucket-region")
    response.close()
    if status in (404, 410):
        raise NotThere(f"there is no such file (HTTP {status}); check the address")
    if status in (401, 403):
        raise Refused(f"access is refused (HTTP {status}); check {request.hint}")
    if region and status in (301, 307, 400):
        raise Refused(f"the bucket is in region {region}; set AWS_REGION={region} or the region of the profile")
    if status == 416:
        raise Replaced("it is shorter than what came of it before")
    if status in PASSING or status >= 500:
        raise Broken(f"HTTP {status}", wait)
    raise Refused(f"the server answers HTTP {status}; check the address")


class HttpAnswer:
    """See `answer.Answer`."""

    def __init__(self, response, timeout: float):
        self._response, self._timeout = response, timeout
        headers = response.headers
        self.start, self.total = 0, _number(headers.get("Content-Length"))
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
            self.start, self.total = (int(span[1]), _number(span[2])) if span else (-1, None)
        tag = headers.get("ETag", "")
        self.tag = tag if tag.startswith('"') else None  # a weak one says "much alike"
        if headers.get("Content-Encoding", "identity") != "identity":
            self.tag = self.total = None  # it was asked not to; the digest will tell

    def read(self) -> bytes:
        try:
            return self._response.read1(CHUNK)
        except (HTTPError, OSError, ValueError) as error:
            raise _named(error, self._timeout) from None

    def close(self) -> None:
        if self._response.length_remaining == 0:
            self._response.release_conn()
        self._response.close()


def _named(error: Exception, timeout: float) -> Exception:
    """The trouble in words of our own."""
    if isinstance(error, MaxRetryError):
        error = error.reason or error
    if isinstance(error, SSLError):
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return Refused("the server's certificate is not trusted; name its authority in SSL_CERT_FILE")
        return Broken("the TLS connection failed")
    if isinstance(error, NameResolutionError):
        return Broken("the host is not found")
    if isinstance(error, NewConnectionError):  # before the next one, of which it is a kind
        return Broken("the host refuses the connection, or cannot be reached")
    if isinstance(error, ConnectTimeoutError):
        return Broken(f"no connection within {timeout:g} s")
    if isinstance(error, ReadTimeoutError):
        return Broken(f"nothing came for {timeout:g} s")
    if isinstance(error, LocationValueError | URLSchemeUnknown | ValueError):
        return Refused("it, or what the server sends us on to, is no http:// or https:// address; check it")
    if "too many redirects" in str(error):
        return Refused(f"the server sends us on more than {MOST_REDIRECTS} times; check the address")
    return Broken("the connection broke off")


@functools.lru_cache(maxsize=16)
def _pool(process: int, proxy: str | None) -> urllib3.PoolManager:
    """Connections of one process: a forked one must not use its parent's."""
    if proxy is None:
        return urllib3.PoolManager(maxsize=16)
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    headers = None
    if parts.username is not None:
        headers = urllib3.make_headers(proxy_basic_auth=f"{unquote(parts.username)}:{unquote(parts.password or '')}")
    address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return urllib3.ProxyManager(address, proxy_headers=headers, maxsize=16)


def _proxy(url: str) -> str | None:
    """The proxy that the machine's settings (https_proxy, no_proxy) name for a URL."""
    parts = urlsplit(url)
    if not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return None
    return urllib.request.getproxies().get(parts.scheme.lower())


def _from_netrc(host: str) -> tuple[str, str] | None:
    try:
        known = netrc.netrc().hosts.get(host)  # not the default entry: a password goes to the host it is for
    except (OSError, netrc.NetrcParseError):
        return None
    return (known[0], known[2] or "") if known else None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _seconds(retry_after: str | None) -> float:
    """Of a Retry-After header: seconds, or a date."""
    if not retry_after:
        return 0.0
    if retry_after.strip().isdigit():
        return float(retry_after)
    date = parsedate_tz(retry_after)
    return max(0.0, mktime_tz(date) - time()) if date else 0.0
