"""A file or a folder at an address, used like a path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from crate_graph.config.schema import Cache, Remote
from crate_graph.data.remote.address import PIPE, check_root, join, shown, split_file
from crate_graph.data.remote.answer import Refused
from crate_graph.data.remote.cache import ShardCache
from crate_graph.data.remote.hub import hub_names
from crate_graph.data.remote.s3 import s3_names
from crate_graph.errors import UserError


@dataclass(frozen=True, repr=False)
class RemoteFile:
    """`name` below the address `root`; an empty name is the root itself. As text it is without credentials.

    Raises:
        UserError: the root is no address that we know.
    """

    root: str
    name: str = ""
    cache: ShardCache = field(default_factory=lambda: ShardCache(Cache(), Remote()), compare=False)

    def __post_init__(self):
        check_root(self.root)

    @classmethod
    def of(cls, address: str, cache: ShardCache) -> RemoteFile:
        """The file at a full address (not of `pipe:`, where only a root makes sense)."""
        check_root(address)
        return cls(*split_file(address), cache)

    def __str__(self) -> str:
        return shown(self.root, self.name)

    __repr__ = __str__

    def __truediv__(self, name: str) -> RemoteFile:
        return replace(self, name=f"{self.name}/{name}" if self.name else name)

    def with_name(self, name: str) -> RemoteFile:
        folder = self.name.rpartition("/")[0]
        return replace(self, name=f"{folder}/{name}" if folder else name)

    @property
    def parent(self) -> RemoteFile:
        return replace(self, name=self.name.rpartition("/")[0])

    @property
    def basename(self) -> str:
        return self.name.rpartition("/")[2]

    def read_bytes(self, *, fresh: bool = True) -> bytes:
        """The content of a small file, as it is now; without `fresh`, a copy in the cache will do.

        Raises:
            MissingFile, UserError, RunFailed: see `fetch.fetch_document`.
        """
        return self.cache.document(self._address(), str(self), fresh=fresh)

    def hold(self, size: int, sha256: str, **options) -> int | None:
        """See `ShardCache.hold`."""
        return self.cache.hold(self._address(), str(self), size, sha256, **options)

    def local_path(self, sha256: str) -> Path:
        """Where `hold` puts it."""
        return self.cache.shard_path(self._address(), sha256)

    def glob(self, pattern: str) -> Iterator[RemoteFile]:
        """The files below this folder whose name fits `pattern`, where `*` stands for anything but a slash.

        Raises:
            UserError: they cannot be listed there.
        """
        try:
            names = list(self._names(pattern))
        except Refused as error:
            raise UserError(f"{self}: {error}") from None
        wanted = pattern.split("/")
        for name in names:
            parts = name.split("/")
            if len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)):
                yield self / name

    def _names(self, pattern: str) -> Iterator[str]:
        folder = join(self.root, self.name) if self.name else self.root
        if "**" in pattern:
            raise Refused(f"{pattern!r}: ** finds no shards at an address; name their folders")
        if self.root.startswith("s3://"):
            return s3_names(folder, self.cache.remote)
        if self.root.startswith("hf://"):
            return hub_names(folder)
        kind = PIPE if self.root.startswith(PIPE) else "http"
        raise Refused(
            f"{kind} has no list of files, so {pattern!r} finds nothing; name the shards in dataset.yaml with braces, "
            f"as crate-graph shards make does: {{000000..000127}}"
        )

    def _address(self) -> str:
        try:
            return join(self.root, self.name)
        except UserError as error:
            raise UserError(f"{self}: {error}") from None


Location = Path | RemoteFile
