import json
import re
from pathlib import Path

import pytest
import torch

from crate_graph.checkpoint.contents import Contents, read_contents
from crate_graph.checkpoint.manifest import verify
from crate_graph.checkpoint.store import CheckpointStore, resolve
from crate_graph.cli import main
from crate_graph.config.schema import Checkpoint as Retention
from crate_graph.engine.base import Portable
from crate_graph.errors import UserError

FILES_IN_A_LIST = '{"format": "crate-graph/1", "step": 2, "files": [], "model": {}, "dataset": {}, "metrics": {}}'


def contents(step=0):
    weights = {"a.weight": torch.full((3, 2), float(step)), "b": torch.arange(4.0)}
    moments = {"exp_avg": {name: tensor + 1 for name, tensor in weights.items()}}
    return Contents(Portable(weights, moments, updates=step), None, {"step": step}, "name: test\n")


def facts(**metrics):
    return {"model": {}, "dataset": {}, "metrics": metrics}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run" / "checkpoints")


def test_round_trip_is_exact(store):
    path = store.write(7, contents(7).to_files(), facts())
    back = read_contents(path)
    assert back.portable.updates == 7 and back.ema is None and back.recipe == "name: test\n"
    for name, tensor in contents(7).portable.model.items():
        assert back.portable.model[name].equal(tensor)
        assert back.portable.moments["exp_avg"][name].equal(tensor + 1)
    assert resolve(store.folder.parent) == resolve(path) == path


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "recipe.yaml"])
def test_any_flipped_bit_is_found(store, name):
    path = store.write(1, contents().to_files(), facts())
    verify(path)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 4
    (path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name}: damaged"):
        verify(path)


@pytest.mark.parametrize("said, changed", [('"step": 1,', '"step": 3,'), ('"loss": 0.5', '"loss": 0.1'), ("b", "c")])
def test_a_changed_manifest_is_found(store, said, changed):
    path = store.write(1, contents().to_files(), facts(loss=0.5))
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(said, changed, 1))
    with pytest.raises(UserError, match="manifest.json: damaged"):
        verify(path)


def test_a_manifest_of_the_first_versions_has_no_seal(store):
    path = store.write(1, contents().to_files(), facts())
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert verify(path)["step"] == 1


def test_a_write_that_fails_leaves_nothing(store, monkeypatch):
    store.write(1, contents().to_files(), facts())
    monkeypatch.setattr(
        "crate_graph.checkpoint.store._sync_folder", lambda path: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(OSError, match="full"):
        store.write(2, contents().to_files(), facts())
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]


def test_half_written_and_half_deleted_ones_are_never_picked_up(store):
    store.write(3, contents().to_files(), facts())
    for name in (".writing-step-00000009", ".deleting-step-00000001", "step-00000012"):
        (store.folder / name).mkdir()
        (store.folder / name / "model.safetensors").write_bytes(b"half")
    assert [entry.step for entry in store.entries()] == [3]
    store.clean()
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000003", "step-00000012"]


def test_retention_keeps_last_every_and_best(store):
    for step, top1 in ((1, 10.0), (2, 50.0), (3, 20.0), (4, 30.0), (5, 40.0), (6, 45.0)):
        store.write(step, contents().to_files(), facts(top1=top1))
    deleted = store.prune(Retention(keep_last=2, keep_every=4, keep_best=1), "top1")
    assert [entry.step for entry in store.entries()] == [2, 4, 5, 6]
    assert [path.name for path in deleted] == ["step-00000001", "step-00000003"]
    store.prune(Retention(keep_last=1, keep_best=1), "loss")  # never measured: nothing is best
    assert [entry.step for entry in store.entries()] == [6]


def test_a_manifest_of_another_format_is_refused(store):
    path = store.write(1, contents().to_files(), facts())
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": "other/9"}))
    with pytest.raises(UserError, match="another version"):
        read_contents(path)


@pytest.mark.parametrize("text", ["[]", "null", '"crate-graph/1"', "{}", '{"format": 1}', FILES_IN_A_LIST])
def test_what_is_no_manifest_is_damaged(store, text, capsys):
    """`checkpoint verify` of the run says so too, and is not content with the other checkpoints."""
    store.write(1, contents().to_files(), facts())
    path = store.write(2, contents().to_files(), facts())
    (path / "manifest.json").write_text(text)
    damaged = r"manifest.json: damaged .*; use another checkpoint, or remove this one"
    with pytest.raises(UserError, match=damaged):
        verify(path)
    assert main(["checkpoint", "verify", str(store.folder.parent)]) == 2
    good, bad = capsys.readouterr().out.splitlines()
    assert good.endswith("good") and re.search(f"damaged.*{damaged}", bad)


def test_verify_looks_at_every_checkpoint(store, capsys):
    for step in range(4):
        store.write(step, contents().to_files(), facts())
    folders = [folder for _, folder in store.folders()]
    (folders[0] / "manifest.json").unlink()
    (folders[1] / "manifest.json").write_text("[" * 200_000)
    (folders[2] / "model.safetensors").unlink()
    (folders[2] / "model.safetensors").symlink_to("/dev/zero")
    assert main(["checkpoint", "verify", str(store.folder.parent), "--json"]) == 2
    found = {Path(row["checkpoint"]): row for row in json.loads(capsys.readouterr().out)}
    assert [found[folder]["state"] for folder in folders] == ["damaged", "damaged", "damaged", "good"]
    for folder, why in zip(folders, ("not a checkpoint", "recursion", "0 bytes instead of"), strict=False):
        assert why in found[folder]["why"]


def test_a_run_without_a_checkpoint_yet(store, capsys):
    store.folder.parent.mkdir(exist_ok=True)
    (store.folder.parent / "recipe.yaml").touch()
    assert main(["checkpoint", "list", str(store.folder.parent)]) == 2
    assert "holds no checkpoint yet" in capsys.readouterr().err


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="neither a checkpoint nor a run folder"):
        resolve(tmp_path)
