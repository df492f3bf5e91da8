"""Servers of files on loopback: one of HTTP that fails as servers do, and a real store of S3.

    with FailingServer(folder) as server:
        server.fail("/train-*.tar", "drop", times=2)
        ...  # read from server.url

Kinds of faults: a status such as "503", "hang up", "drop" and "stall" in the middle of a file, "stall at once", "drip",
"truncated" and "changed" content, a "page" of HTML, "moved"; "no tag", "no range" and "glue" answer as some servers do.
"""

from __future__ import annotations

import hashlib
import http.server
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from fnmatch import fnmatch
from pathlib import Path

STORE_DEADLINE = 60  # seconds for the store to answer


@dataclass
class Fault:
    """What goes wrong with requests whose path fits `pattern`, so many `times`."""

    pattern: str
    kind: str
    times: float = 1


@dataclass
class Seen:
    """A request that was answered."""

    path: str
    query: str
    status: int
    headers: Message  # names in any case
    sent: int = 0  # bytes of the body


@dataclass
class FailingServer:
    """Serves a folder. `faults` are looked through in order; a request meets the first that fits it."""

    folder: Path
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)  # lets go of what waits
    retry_after: str = "0"  # of an answer that is an error
    moved_to: str = ""  # where a "moved" request is sent
    chunk_pause: float = 0.0  # seconds after each 16 KiB
    _choosing: threading.Lock = field(default_factory=threading.Lock)
    upstream: str = ""  # a server that has the files, in the place of the folder

    def fail(self, pattern: str, kind: str, times: float = 1) -> None:
        self.faults.append(Fault(pattern, kind, times))

    def answered(self, pattern: str, *statuses: int) -> list[Seen]:
        return [s for s in self.seen if fnmatch(s.path, pattern) and (not statuses or s.status in statuses)]

    def next_fault(self, path: str) -> str:
        with self._choosing:
            for fault in self.faults:
                if fault.times > 0 and fnmatch(path, fault.pattern):
                    fault.times -= 1
                    return fault.kind
        return ""

    def __enter__(self) -> FailingServer:
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # a client that hangs up is no news
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.release.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: FailingServer

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        self.note = Seen(path, url.query, 0, self.headers)
        self.owner.seen.append(self.note)
        self._serve(path, self.owner.next_fault(path))

    def _serve(self, path: str, fault: str) -> None:
        file = self.owner.folder / path.lstrip("/")
        if fault.isdigit():
            return self._send(int(fault), b"no", {"Retry-After": self.owner.retry_after})
        if fault == "moved":
            return self._send(302, b"", {"Location": self.owner.moved_to + self.path})
        if fault == "page":
            return self._send(200, b"<!DOCTYPE html>\n<html><body>Please sign in</body></html>\n")
        if fault == "hang up":
            self.note.status = -1
            return self._cut()
        if self.owner.upstream:
            status, body = self._from_upstream()
            if status != 200:
                return self._send(status, body)
        elif file.is_file():
            body = file.read_bytes()
        else:
            return self._send(404, b"not here")
        if fault == "truncated":
            body = body[: len(body) // 2]
        if fault == "changed":
            body = bytes([*body[:-5], body[-5] ^ 1, *body[-4:]])
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        if self.headers.get("If-None-Match") == tag and fault != "no tag":
            return self._send(304, b"", {"ETag": tag})
        status, start, headers = 200, 0, {} if fault == "no tag" else {"ETag": tag}
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if span and fault != "no range" and (fault == "glue" or self.headers.get("If-Range") in (None, tag)):
            status, start = 206, int(span[1])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            if fault == "glue":
                headers["ETag"] = '"another"'
        return self._send(status, body[start:], headers, fault)

    def _from_upstream(self) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(self.owner.upstream + self.path, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def _send(self, status: int, body: bytes, headers: dict | None = None, fault: str = "") -> None:
        self.note.status = status
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "stall at once":
            self.owner.release.wait()
            return self._cut()
        for start in range(0, len(body), 1 << 14):
            piece = body[start : start + (1 << 14)]
            if fault in ("drop", "stall") and start + len(piece) > len(body) // 2:
                self._write(body[start : len(body) // 2])
                if fault == "stall":
                    self.owner.release.wait()
                return self._cut()
            if fault == "drip":
                for byte in piece:
                    self._write(bytes([byte]))
                    if self.owner.release.wait(0.05):
                        return self._cut()
            self._write(piece)
            time.sleep(self.owner.chunk_pause)
        return None

    def _write(self, piece: bytes) -> None:
        self.wfile.write(piece)
        self.note.sent += len(piece)

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def s3_store() -> Iterator[str]:
    """The URL of an S3-compatible store (moto) that runs for the length of the block and is empty."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + STORE_DEADLINE
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()
