"""Runs side by side: each cell against a number that is taken from the files by other means."""

import csv
import io
import json
import re
import shutil
import statistics
import tarfile

import numpy as np
import pytest
import torch
import yaml
from compare_runs import main
from PIL import Image
from safetensors.torch import load_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from crate_graph.analysis.layers import activations
from crate_graph.analysis.probe import last_layer, probe
from crate_graph.analysis.subject import open_subject
from crate_graph.checkpoint.manifest import seal
from crate_graph.checkpoint.model import load_model
from crate_graph.cli import main as crate_graph
from crate_graph.config.schema import Degradation
from crate_graph.data.degrade import bayer_mask, observe
from crate_graph.evaluation.corruptions import Corruption
from crate_graph.evaluation.run import evaluate
from crate_graph.train.trained import open_run

BRACKETS = "[" * 100_000  # more than a reader of JSON can count
CLASSES, SIDE, PATCH, DIM, DEPTH = 6, 28, 7, 32, 2
SIZE = f"img_size: {SIDE}, patch_size: {PATCH}, in_chans: 1, embed_dim: {DIM}, depth: {DEPTH}, num_heads: 2"


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """A data set of grey stripes, one direction for each class: 48 to train, 30 to test."""
    folder, generator = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for split, each in (("train", 8), ("test", 5)):
        for number in range(CLASSES * each):
            angle = np.pi * (number % CLASSES) / CLASSES
            waves = np.sin(rows * np.sin(angle) + columns * np.cos(angle) + generator.uniform(0, 6))
            pixels = (127.5 + 60 * waves + generator.normal(0, 20, waves.shape)).clip(0, 255).astype(np.uint8)
            place = folder / "pictures" / split / f"class{number % CLASSES}" / f"{number:02d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place)
        words = ["shards", "make", str(folder / "pictures" / split), "--output", str(folder / "shards")]
        assert crate_graph([*words, "--split", split, "--shards", "2"]) == 0
    return folder / "shards"


@pytest.fixture(scope="module")
def train(tmp_path_factory, runner, restoration):
    """Trains in this process: a start of its own would cost a run ten times what it computes."""
    folder = tmp_path_factory.mktemp("compared")

    def train(recipe, name, *words):
        recipe = {"tiny": runner, "restorer": restoration}[recipe].recipe
        assert crate_graph(["train", str(recipe), *words, "--run-dir", str(folder / name)]) == 0
        return folder / name

    return train


@pytest.fixture(scope="module")
def runs(train, stripes):
    """Two seeds of CRATE and of a ViT of timm, two epochs each."""
    words = [f"data.dataset={stripes}", "schedule.max_steps=null", "schedule.epochs=2", "checkpoint.every_epochs=1"]
    vit = ["name=vit", "model.name=vit_tiny_patch16_224", "optimizer.lr=1e-3"]
    return {
        (model, seed): train("tiny", f"{model}-{seed}", *words, *own, f"seed={seed}")
        for model, own in (("crate", []), ("vit", vit))
        for seed in (0, 1)
    }


@pytest.fixture(scope="module")
def restorers(train):
    """A graph network and a convolutional one."""
    words = ["schedule.max_steps=2", "telemetry.log_every=1"]
    kwargs = "model.kwargs={dim: 8, depth: 1, features: 2, layers: 1}"
    return [
        train("restorer", "graph", *words, "name=graph", "model.name=ugtv_fast", "model.kwargs=null", kwargs),
        train("restorer", "conv", *words),
    ]


def compared(capsys, *words):
    """Rows of the CSV by model, and Markdown and LaTeX."""
    capsys.readouterr()
    assert main([*map(str, words), "--format", "csv", "--format", "markdown", "--format", "latex"]) == 0
    out = capsys.readouterr().out
    values, rest = out.split("\n\n", 1)
    text, tex = rest.split("% needs")
    return {row["model"]: row for row in csv.DictReader(io.StringIO(values))}, text, "% needs" + tex


def mean_and_std(row, name):
    return [float(row[f"{name}_mean"]), float(row[f"{name}_std"])]


def spread(values):
    return pytest.approx([statistics.mean(values), statistics.stdev(values)], rel=1e-5, abs=1e-5)


def best_checkpoint(run, metric):
    """The later one of equals."""
    manifests = [json.loads(file.read_text()) for file in sorted(run.glob("checkpoints/*/manifest.json"))]
    best = max(manifests, key=lambda m: (m["metrics"][metric], m["step"]))
    return run / "checkpoints" / f"step-{best['step']:08d}"


def images_of(stripes):
    """(30, 28, 28, 1) uint8 and their labels, in the order of the shards."""
    images, labels = [], []
    for shard in sorted(stripes.glob("test-*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                data = tar.extractfile(member).read()
                if member.name.endswith(".png"):
                    images.append(np.asarray(Image.open(io.BytesIO(data)))[..., None])
                else:
                    labels.append(int(data))
    return np.stack(images), np.array(labels)


def normalised(images, stripes):
    description = yaml.safe_load((stripes / "dataset.yaml").read_text())
    return torch.from_numpy((images / 255 - description["mean"]) / description["std"]).float().movedim(-1, 1)


def top1(run, images, labels, stripes):
    model, _ = load_model(best_checkpoint(run, "top1"))
    with torch.no_grad():
        return 100 * (model(normalised(images, stripes)).argmax(1).numpy() == labels).mean()


def forward_flops(kind):
    """Of the matrix products alone, by hand."""
    patches, pixels = (SIDE // PATCH) ** 2, PATCH**2
    tokens, head = patches + 1, 2 * DIM * CLASSES
    attention = 4 * tokens**2 * DIM
    embedding = 2 * patches * pixels * DIM
    if kind == "vit":
        return embedding + DEPTH * (2 * tokens * (3 + 1 + 8) * DIM**2 + attention) + head
    return embedding + DEPTH * (2 * tokens * (1 + 1 + 2) * DIM**2 + attention) + head


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_costs_and_quality(runs, capsys):
    rows, text, tex = compared(capsys, *runs.values(), "--probe", "0")
    assert list(rows) == ["tiny", "vit"] and "notes" in rows["vit"]
    for title, kind in (("tiny", "crate"), ("vit", "vit")):
        folders, row = [runs[kind, seed] for seed in (0, 1)], rows[title]
        assert row["seeds"] == "2"
        weights = load_file(best_checkpoint(folders[0], "top1") / "model.safetensors")
        assert int(row["parameters"]) == sum(weight.numel() for weight in weights.values())
        assert float(row["flops"]) == forward_flops(kind)
        rates = [[r["images_per_second"] for r in records(run) if "images_per_second" in r] for run in folders]
        assert [len(each) for each in rates] == [6, 6]
        assert mean_and_std(row, "images_per_second") == spread([statistics.median(each[1:]) for each in rates])
        memory = [json.loads((run / "summary.json").read_text())["peak_memory_bytes"] for run in folders]
        assert mean_and_std(row, "peak_memory_bytes") == pytest.approx(spread(memory).expected, rel=0.02, abs=5e6)
        for name in ("top1", "top5", "loss"):
            manifests = [json.loads((best_checkpoint(run, "top1") / "manifest.json").read_text()) for run in folders]
            assert mean_and_std(row, name) == spread([each["metrics"][name] for each in manifests])
    assert "peak memory MiB (resident set)" in text and "training images/s (median)" in text
    assert f"{torch.get_num_threads()} thread" in text and "over 2 seeds" in text
    last, *_ = compared(capsys, *runs.values(), "--checkpoint", "last", "--columns", "loss,top1")
    assert list(last["vit"]) == ["model", "loss_mean", "loss_std", "top1_mean", "top1_std", "notes"]
    ends = [json.loads((runs["vit", seed] / "summary.json").read_text())["metrics"]["loss"] for seed in (0, 1)]
    assert mean_and_std(last["vit"], "loss") == spread(ends)


def test_the_three_forms_say_the_same(runs, capsys):
    rows, text, tex = compared(capsys, *(f"A_{m}|=" + str(run) for (m, _), run in runs.items()), "--probe", "0")
    names = ["seeds", "parameters", "flops", "images_per_second", "peak_memory_bytes", "top1", "top5", "loss"]
    digits, scales = [0, 0, 1, 0, 0, 2, 2, 3], [1, 1, 1e-6, 1, 2**-20, 1, 1, 1]
    lines = [line for line in text.splitlines() if line.startswith("| A_")]
    tex_lines = [line for line in tex.splitlines() if line.startswith("A\\_")]
    assert len(lines) == len(tex_lines) == len(rows) == 2
    for (title, row), line, tex_line in zip(rows.items(), lines, tex_lines, strict=True):
        cells = [title.replace("|", "\\|")]
        for name, places, scale in zip(names, digits, scales, strict=True):
            values = [row[name]] if name in row else [row[f"{name}_mean"], row[f"{name}_std"]]
            cells.append(" ± ".join(f"{float(value) * scale:,.{places}f}" for value in values))
        assert line == f"| {' | '.join(cells)} |"
        cells[0] = title.replace("_", r"\_").replace("|", r"\textbar{}")
        assert tex_line == " & ".join(cells).replace("±", r"$\pm$") + r" \\"
    check_latex(tex)


def check_latex(tex):
    """What makes LaTeX stop: environments and braces that do not close, characters that mean something, columns."""
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", tex):
        opened.append(name) if kind == "begin" else opened.remove(name)
    assert not opened and tex.startswith(r"% needs \usepackage{booktabs}")
    bare = re.sub(r"\\[\\{}$&#%_]", "", tex.partition("\n")[2])
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0 and bare.isascii()
    assert not re.search(r"[#%~_^](?<!\}~)", re.sub(r"\}~", "", bare))
    columns = len(re.search(r"\\begin\{tabular\}\{(l?r*)\}", tex)[1])
    body = tex[tex.index(r"\toprule") : tex.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r" \\")]
    assert rows and all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
    known = {
        "begin",
        "end",
        "toprule",
        "midrule",
        "bottomrule",
        "centering",
        "caption",
        "par",
        "smallskip",
        "linewidth",
    }
    known |= {"footnotesize", "pm", "shortstack", "textsuperscript", "textbar"}
    assert set(re.findall(r"(?<!\\)\\([a-zA-Z]+)", tex)) - {"usepackage"} <= known


def test_robustness_is_that_of_the_formulas(runs, stripes, capsys, tmp_path):
    images, labels = images_of(stripes)
    corruptions = ["gaussian_noise", "shot_noise", "gaussian_blur", "contrast", "brightness", "jpeg_compression"]
    words = [*runs.values(), "--robustness", "--severity", "2,5", "--columns", ",".join([*corruptions, "corruptions"])]
    rows, text, _ = compared(capsys, *words)
    for title, kind in (("tiny", "crate"), ("vit", "vit")):
        of_seeds = []
        for name in corruptions:
            seen = [
                np.stack([Corruption(name, severity)(image, (0, 0, number)) for number, image in enumerate(images)])
                for severity in (2, 5)
            ]
            values = [statistics.mean(top1(runs[kind, s], each, labels, stripes) for each in seen) for s in (0, 1)]
            assert mean_and_std(rows[title], name) == spread(values), name
            of_seeds.append(values)
        assert mean_and_std(rows[title], "corruptions") == spread(
            [statistics.mean(each) for each in zip(*of_seeds, strict=True)]
        )
    assert "severity 2, 5" in text and "jpeg_compression 65 40" in text and "contrast 0.5 0.15" in text


def test_the_last_layer_of_a_probe_batch(runs, stripes, capsys):
    images, _ = images_of(stripes)
    probe = normalised(images[[n * 30 // 7 for n in range(7)]], stripes)
    rows, text, tex = compared(capsys, *runs.values(), "--probe", "7")
    for title, kind in (("tiny", "crate"), ("vit", "vit")):
        found = [activations(load_model(best_checkpoint(runs[kind, s], "top1"))[0], probe) for s in (0, 1)]
        for name in ("rc_output", "coding_rate_output", "nonzero_output"):
            values = [m.mean for measured in found for m in measured if (m.name, m.layer) == (name, (DEPTH,))]
            if values:
                assert mean_and_std(rows[title], name) == spread(values)
    assert rows["vit"]["rc_output_mean"] == "" and "no subspaces" in rows["vit"]["notes"] and not rows["tiny"]["notes"]
    assert "Compression: after the layer (Rᶜ, nats)" in text and r"R\textsuperscript{c}" in tex
    assert "| - [a] |" in text and "\n[a] vit_tiny" in text
    assert r"--\textsuperscript{a}" in tex and r"\textsuperscript{a}~vit\_tiny" in tex
    check_latex(tex)
    chosen, *_ = compared(capsys, runs["crate", 0], "--probe", "7", "--columns", "sparse_rate_reduction")
    assert float(chosen["tiny"]["sparse_rate_reduction_mean"]) < 0 and chosen["tiny"]["sparse_rate_reduction_std"] == ""


def restored(run, photographs, sigma=0.0, phase="RGGB"):
    """PSNR and SSIM, means over the three pictures, by scikit-image."""
    model, _ = load_model(best_checkpoint(run, "psnr"))
    psnr, ssim = [], []
    with tarfile.open(photographs / "shards" / "test-000000.tar") as tar:
        pictures = [m for m in tar.getmembers() if m.name.endswith(".png")]
        for number, member in enumerate(pictures):
            clean = np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read()))).astype(np.float32) / 255
            observed, _, _ = observe(clean, Degradation(kind="bayer", sigma=sigma), (0, 0, number))
            mask = bayer_mask(*clean.shape[:2], phase)
            if phase != "RGGB":
                observed = clean * mask
            inputs = (torch.from_numpy(part.transpose(2, 0, 1).copy())[None] for part in (observed, mask))
            with torch.no_grad():
                out = model(*inputs)[0].movedim(0, -1).numpy()
            out = np.rint(out.clip(0, 1) * 255) / 255
            psnr.append(peak_signal_noise_ratio(clean, out.astype(np.float32), data_range=1))
            ssim.append(structural_similarity(clean, out.astype(np.float32), data_range=1, channel_axis=-1))
    return statistics.mean(psnr), statistics.mean(ssim)


def test_restoration(restorers, photographs, capsys):
    rows, text, tex = compared(capsys, *restorers, "--robustness", "--probe", "2")
    for title, run in zip(("graph", "restorer"), restorers, strict=True):
        psnr, ssim = restored(run, photographs)
        row = rows[title]
        assert [float(row["psnr_mean"]), float(row["ssim_mean"])] == pytest.approx([psnr, ssim], abs=1e-3)
        assert float(row["noise_mean"]) == pytest.approx(restored(run, photographs, sigma=20)[0], abs=1e-3)
        assert float(row["mask_shift_mean"]) == pytest.approx(restored(run, photographs, phase="GRBG")[0], abs=1e-3)
        assert row["psnr_std"] == row["noise_std"] == "" and row["seeds"] == "1"
    assert float(rows["graph"]["gtv_mean"]) > 0 and float(rows["graph"]["edge_entropy_mean"]) > 0
    assert float(rows["graph"]["data_residual_mean"]) >= 0 and "glr_mean" not in rows["graph"]
    assert rows["restorer"]["gtv_mean"] == "" and "layers have no measures" in rows["restorer"]["notes"]
    assert "sigma 20 of 255" in text and "one column to the left" in text and "One seed each" in text
    check_latex(tex)


def test_masked_autoencoding(train, stripes, capsys):
    words = [f"data.dataset={stripes}", "task.kind=masked_autoencoding", "model.name=crate_mae_tiny_patch16_224"]
    run = train("tiny", "mae", *words, "model.kwargs=null", f"model.kwargs={{{SIZE}}}", "schedule.max_steps=2")
    rows, text, _ = compared(capsys, run, "--robustness", "--probe", "2")
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    for name in ("psnr", "psnr_of_visible_mean", "loss"):
        assert float(rows["tiny"][f"{name}_mean"]) == pytest.approx(metrics[name], rel=1e-5)
    harder = evaluate(str(run), str(stripes), ["task.mask_ratio=0.875"])
    assert float(rows["tiny"]["mask_shift_mean"]) == pytest.approx(harder["psnr"], rel=1e-5) != metrics["psnr"]
    weights = load_file(best_checkpoint(run, "psnr") / "model.safetensors")
    learned = sum(weight.numel() for name, weight in weights.items() if name != "pos_embed")  # which is made of sines
    assert int(rows["tiny"]["parameters"]) == learned
    assert "hidden-pixel PSNR dB" in text and "0.875 of the patches hidden" in text
    rate = last_layer(probe(open_subject(str(run)), 2))["rc_output"]
    assert float(rows["tiny"]["rc_output_mean"]) == pytest.approx(rate.mean, rel=1e-5) and "White-box" in text


def test_what_was_measured_is_kept_beside_the_output(restorers, capsys, tmp_path):
    run, out = restorers[1], tmp_path / "new" / "comparison"
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    words = [str(run), "--robustness", "--columns", "noise", "--output", str(out)]
    assert main(words) == 0
    assert "noise, severity 3" in capsys.readouterr().err
    assert {file.name for file in out.iterdir()} == {
        "comparison.md",
        "comparison.csv",
        "comparison.tex",
        "measured.json",
    }
    first = (out / "comparison.csv").read_text()
    assert main([*words, "--format", "csv"]) == 0 and (out / "comparison.csv").read_text() == first
    assert "noise" not in capsys.readouterr().err  # nothing was measured again
    assert main([*words, "--severity", "5"]) == 0 and "severity 5" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before
    for broken in ("[1", BRACKETS):
        (out / "measured.json").write_text(broken)
        assert main(words) == 2 and "remove it" in capsys.readouterr().err


@pytest.fixture
def copy(runs, tmp_path):
    """A run that something is done to."""
    shutil.copytree(runs["crate", 0], tmp_path / "copy")
    return tmp_path / "copy"


def refused(capsys, *words):
    capsys.readouterr()
    assert main([str(word) for word in [*words, "--probe", "0"]]) == 2
    ended = capsys.readouterr()
    assert ended.out == "" and len(ended.err.splitlines()) == 1
    return ended.err


def test_what_is_no_finished_run(runs, copy, tmp_path, capsys):
    assert "no run folder (recipe.yaml missing)" in refused(capsys, tmp_path / "nowhere")
    assert "named twice" in refused(capsys, copy, copy.parent / "." / "copy")
    assert "same recipe and seed" in refused(capsys, runs["crate", 0], copy)
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps({**summary, "finished": False}))
    assert "go on with: crate-graph train" in (said := refused(capsys, copy)) and "--unfinished" in said
    (copy / "summary.json").unlink()
    assert "step 6" in refused(capsys, copy)
    assert main([str(copy), "--unfinished", "--probe", "0"]) == 0
    (copy / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "images_per')
    capsys.readouterr()
    assert main([str(copy), "--unfinished", "--probe", "0"]) == 0
    assert "nothing was logged" in capsys.readouterr().out
    for name in ("environment.json", "summary.json"):
        (copy / name).write_text(BRACKETS)
        assert f"{copy / name}: cannot be read" in refused(capsys, copy, "--unfinished")
        (copy / name).unlink()
    (copy / "metrics.jsonl").write_text(BRACKETS)
    assert open_run(copy, unfinished=True).records == []
    shutil.rmtree(copy / "checkpoints")
    assert "no checkpoint" in refused(capsys, copy, "--unfinished")


def test_what_cannot_be_compared(runs, restorers, copy, stripes, tmp_path, capsys):
    crate, vit = runs["crate", 1], runs["vit", 1]
    assert "task restoration" in refused(capsys, vit, restorers[0])
    manifests = list(copy.glob("checkpoints/*/manifest.json"))
    for file in manifests:
        manifest = json.loads(file.read_text())
        manifest["dataset"]["name"] = "dots"
        file.write_text(json.dumps(seal(manifest)))
    assert "data set dots" in refused(capsys, crate, copy)
    shutil.copytree(runs["crate", 0], tmp_path / "other")
    shutil.copytree(stripes, tmp_path / "shards")
    description = yaml.safe_load((tmp_path / "shards" / "dataset.yaml").read_text())
    description["splits"]["test"] = description["splits"]["train"]
    (tmp_path / "shards" / "dataset.yaml").write_text(yaml.safe_dump(description))
    recipe = (tmp_path / "other" / "recipe.yaml").read_text()
    (tmp_path / "other" / "recipe.yaml").write_text(recipe.replace(str(stripes), str(tmp_path / "shards")))
    assert "other shards" in refused(capsys, crate, tmp_path / "other", "--robustness")
    for file in manifests:
        manifest = json.loads(file.read_text())
        file.write_text(json.dumps(seal({**manifest, "metrics": {}})))
    assert "no checkpoint with a top1" in refused(capsys, copy)


def test_requests_that_cannot_be_met(runs, capsys):
    crate, vit = runs["crate", 0], runs["vit", 0]
    assert "choose from model, seeds, parameters" in refused(capsys, crate, "--columns", "top2")
    assert "need --robustness" in refused(capsys, crate, "--columns", "contrast")
    assert "stays as it is" in refused(capsys, crate, "--output", crate / "tables")
    assert "both the same title" in refused(capsys, f"A={crate}", f"B={runs['crate', 1]}")
    assert not (crate / "tables").exists()
    for words in (["--severity", "6"], ["--probe", "-1"], ["--format", "html"]):
        with pytest.raises(SystemExit) as ended:
            main([str(vit), *words])
        assert ended.value.code == 2
    capsys.readouterr()
    assert main([f"A={crate}", f"A={vit}", "--probe", "0", "--columns", "seeds"]) == 0
    out = capsys.readouterr().out
    assert "model.name=crate_tiny_patch16_224" in out and "model.name=vit_tiny_patch16_224" in out
