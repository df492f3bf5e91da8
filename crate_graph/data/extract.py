"""The samples of a data set as ordinary image files, to look at or to try a model on."""

from __future__ import annotations

import shutil
import tempfile
from itertools import islice
from pathlib import Path

from crate_graph.data.dataset import Dataset
from crate_graph.data.index import read_index
from crate_graph.data.sources import read_range
from crate_graph.errors import UserError


def extract_samples(dataset: Dataset, split: str, output: str | Path, count: int | None = None) -> list[Path]:
    """Write the first `count` samples of a split (None: all) into `output`, each under its key, bytes unchanged.

    Raises:
        UserError: what `Dataset.split` raises; a file of that name exists; the folder cannot be written.
    """
    output = Path(output).expanduser()
    samples = (
        (output / f"{key.replace('/', '_')}.{index.image_name(n)}", shard.path, index, n)
        for shard in dataset.split(split).shards
        for index in [read_index(shard.path)]
        for n, key in enumerate(index.keys)
    )
    chosen = list(islice(samples, count))
    names: set[str] = set()
    for path, *_ in chosen:
        if path.name in names:
            raise UserError(
                f"{dataset.file}: two samples of the split {split} would both be written to {path}, since / in a key "
                f"becomes _; make the shards of pictures with other names"
            )
        names.add(path.name)
        if path.exists():
            raise UserError(f"{path}: exists already; choose another folder for --output")
    is_new = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".extract-", dir=output) as folder:
            for path, shard, index, n in chosen:
                members = index.compact
                (Path(folder) / path.name).write_bytes(
                    read_range(shard, members.image_offset[n], members.image_size[n])
                )
            for path, *_ in chosen:
                (Path(folder) / path.name).replace(path)
    except OSError as error:
        if is_new:
            shutil.rmtree(output, ignore_errors=True)
        raise UserError(
            f"{output}: the pictures cannot be written ({error.strerror}); make room there, or choose another folder "
            f"for --output"
        ) from None
    return [path for path, *_ in chosen]
