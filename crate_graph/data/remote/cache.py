"""The copies of remote files on this host, shared by all its processes.

    FOLDER/lock                            held while room is made
    FOLDER/KEY/lock                        held by who fetches; KEY is the sha256 of the full address
    FOLDER/KEY/SHA256.tar                  a whole, verified shard; who uses it holds a shared lock on it
    FOLDER/KEY/SHA256.BYTES.part, ...tag   one that is being fetched, or was
    FOLDER/KEY/document                    an index or a description: the tag on its first line, then the content

A shard is named by its digest, so that one which was replaced at its address is another file here. A name that does not
end in .part or .new is whole: it was renamed into place.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from crate_graph.config.schema import Cache, Remote
from crate_graph.data.remote.address import identity
from crate_graph.data.remote.fetch import fetch_document, fetch_shard, longest_silence
from crate_graph.data.remote.locks import locked, try_lock, unlock
from crate_graph.data.remote.part import PartialFile
from crate_graph.errors import FULL_DISK, UserError
from crate_graph.paths import expanded

logger = logging.getLogger(__name__)
_KEY = re.compile("[0-9a-f]{64}")
_NEVER = threading.Event()


class _Item(NamedTuple):
    """A file that takes room."""

    used: float  # when it was last used
    bytes: int
    path: Path


@dataclass(frozen=True)
class ShardCache:
    """The cache in a folder. It keeps nothing in memory: each process of a host may make its own."""

    settings: Cache
    remote: Remote
    made: float = field(default_factory=time.time, compare=False)

    @property
    def folder(self) -> Path:
        return expanded(self.settings.folder)

    def shard_path(self, address: str, sha256: str) -> Path:
        """Where a shard is or will be. Only who holds it may count on it."""
        return self._entry(address) / f"{sha256}.tar"

    def hold(
        self, address: str, shown: str, size: int, sha256: str, *, ahead: bool = False, stop: threading.Event = _NEVER
    ) -> int | None:
        """A file descriptor of a shard, fetched first where it is not here. It stays here until `release`.

        `ahead`: it is not needed yet; then None where room for it would have to be taken from shards in use.

        Raises:
            RunFailed, UserError, Stopped: as `fetch.fetch_shard`; UserError also where the folder cannot be written.
        """
        path = self.shard_path(address, sha256)
        part = PartialFile(path.with_suffix(f".{size}.part"))
        with self._naming_the_folder(shown):
            while (descriptor := self._open(path, size)) is None:
                with locked(
                    path.with_name("lock"),
                    patience=longest_silence(self.remote),
                    sign_of_life=lambda: _state(part.path),
                    stop=stop,
                ):
                    if path.exists():
                        continue
                    if not self._make_room(part, size, ahead):
                        return None
                    fetch_shard(address, shown, part, size, sha256, self.remote, stop)
                    descriptor = part.finish(path)
                    break
        return descriptor

    def document(self, address: str, shown: str, *, fresh: bool) -> bytes:
        """The content of a small file. `fresh`: as it has been at its address since this cache was made, so that the
        processes of a host which start together ask once; else any copy that is here will do.

        Raises:
            RunFailed, UserError: as `fetch.fetch_document`; UserError also where the folder cannot be written.
        """
        path = self._entry(address) / "document"
        here = _read_document(path)
        if here is not None and not fresh:
            return here[0]
        with (
            self._naming_the_folder(shown),
            locked(path.with_name("lock"), patience=longest_silence(self.remote)),
        ):
            content, tag = _read_document(path) or (b"", None)
            if content and path.stat().st_mtime >= self.made:
                return content
            fetched = fetch_document(address, shown, tag, self.remote)
            if fetched is None:
                os.utime(path)
                return content
            content, tag = fetched
            new = path.with_suffix(".new")
            new.write_bytes(json.dumps(tag).encode() + b"\n" + content)
            new.replace(path)
            return content

    def _entry(self, address: str) -> Path:
        store = self.remote.s3_endpoint if address.startswith("s3://") else None
        return self.folder / hashlib.sha256(f"{store or ''} {identity(address)}".encode()).hexdigest()

    def _open(self, path: Path, size: int) -> int | None:
        """Open a shard that is here, and keep it from being removed."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if not try_lock(descriptor, path, shared=True):  # it is being removed
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_size != size:  # somebody else wrote to it
            path.unlink(missing_ok=True)
            unlock(descriptor)
            return None
        with suppress(PermissionError):  # another user's
            os.utime(path)
        return descriptor

    def _make_room(self, part: PartialFile, size: int, ahead: bool) -> bool:
        """Remove what was not used for longest, until `size` more bytes fit, and reserve them for `part`.

        False: they do not fit beside what is in use, and the shard is only wanted ahead.
        """
        cap = int(self.settings.gigabytes * 1e9)
        with locked(self.folder / "lock", patience=longest_silence(self.remote)):
            items = sorted(item for item in self._items() if item.path != part.path)
            excess = sum(item.bytes for item in items) + size - cap
            excess = max(excess, size - part.size() - shutil.disk_usage(self.folder).free)
            for item in items:
                if excess <= 0:
                    break
                if _remove(item.path):
                    excess -= item.bytes
            if excess > 0 and ahead:
                return False
            if excess > 0:
                logger.warning(
                    "%s: the shards in use take %.3g GB more than data.cache.gigabytes=%g; raise it",
                    self.folder,
                    excess / 1e9,
                    self.settings.gigabytes,
                )
            part.path.touch()
        return True

    def _items(self) -> Iterator[_Item]:
        for entry in _scan(self.folder):
            if not _KEY.fullmatch(entry.name) or not entry.is_dir():  # a user's own: never touched
                continue
            for file in _scan(entry):
                if file.name == "lock" or file.name.endswith(".tag"):
                    continue
                with suppress(FileNotFoundError):
                    about, words = file.stat(), file.name.split(".")
                    reserved = int(words[1]) if words[-1] == "part" else 0
                    yield _Item(about.st_mtime, max(about.st_size, reserved), Path(file.path))

    @contextmanager
    def _naming_the_folder(self, shown: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL_DISK:
                raise UserError(
                    f"{self.folder}: no room for {shown} ({error.strerror}); make room there, or set data.cache.folder "
                    f"to another disk and data.cache.gigabytes to what it may take"
                ) from None
            raise UserError(
                f"{self.folder}: the cache of remote shards cannot be used ({error.strerror or error}); set "
                f"data.cache.folder to a folder that can be written"
            ) from None


def release(descriptor: int) -> None:
    """Let go of a shard that was held."""
    unlock(descriptor)


def _read_document(path: Path) -> tuple[bytes, str | None] | None:
    """(content, tag), or None where there is none."""
    try:
        head, _, content = path.read_bytes().partition(b"\n")
        return content, json.loads(head)
    except (OSError, ValueError):
        return None


def _scan(folder) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _state(path: Path) -> tuple[int, int] | None:
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_size, about.st_mtime_ns


def _remove(path: Path) -> bool:
    """Remove a file of the cache, unless it is in use: a shard that is held, or an entry that is being fetched."""
    guard = path if path.suffix == ".tar" else path.with_name("lock")
    try:
        descriptor = os.open(guard, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    if not try_lock(descriptor, guard):
        os.close(descriptor)
        return False
    path.unlink(missing_ok=True)
    if path.suffix == ".part":
        path.with_suffix(".tag").unlink(missing_ok=True)
    unlock(descriptor)
    _tidy(path.parent)
    return True


def _tidy(entry: Path) -> None:
    """Remove an entry that holds nothing but its lock, unless somebody is waiting for it."""
    if any(file.name != "lock" for file in _scan(entry)):
        return
    lock = entry / "lock"
    with suppress(OSError):
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        try:
            if try_lock(descriptor, lock):
                lock.unlink()
                entry.rmdir()
        finally:
            unlock(descriptor)
