"""The samples of a data set as ordinary image files, to look at or to try a model on."""

from __future__ import annotations

import shutil
import tempfile
from itertools import islice
from pathlib import Path

from crate_graph.data.dataset import Dataset
from crate_graph.data.index import read_index_of
from crate_graph.data.stream import SampleReader
from crate_graph.errors import RunFailed, UserError


def extract_samples(dataset: Dataset, split: str, output: str | Path, count: int | None = None) -> list[Path]:
    """Write the first `count` samples of a split (None: all) into `output`, each under its key, bytes unchanged.

    Raises:
        UserError: what `Dataset.split` raises; a file of that name exists; the folder cannot be written.
    """
    output = Path(output).expanduser()
    opened = dataset.split(split)
    paths = (
        output / f"{key.replace('/', '_')}.{index.image_name(n)}"
        for shard in opened.shards
        for index in [read_index_of(shard)]
        for n, key in enumerate(index.keys)
    )
    chosen = list(islice(paths, count))
    names: set[str] = set()
    for path in chosen:
        if path.name in names:
            raise UserError(
                f"{dataset.file}: two samples of the split {split} would both be written to {path}, since / in a key "
                f"becomes _; make the shards of pictures with other names"
            )
        names.add(path.name)
        if path.exists():
            raise UserError(f"{path}: exists already; choose another folder for --output")
    is_new = not output.exists()
    reader = SampleReader(dataset, opened)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".extract-", dir=output) as folder:
            for number, path in enumerate(chosen):
                (Path(folder) / path.name).write_bytes(reader.image_bytes(number))
            for path in chosen:
                (Path(folder) / path.name).replace(path)
    except OSError as error:
        _discard(output, is_new)
        raise UserError(
            f"{output}: the pictures cannot be written ({error.strerror}); make room there, or choose another folder "
            f"for --output"
        ) from None
    except (UserError, RunFailed):
        _discard(output, is_new)
        raise
    finally:
        reader.close()
    return chosen


def _discard(output: Path, is_new: bool) -> None:
    if is_new:
        shutil.rmtree(output, ignore_errors=True)
