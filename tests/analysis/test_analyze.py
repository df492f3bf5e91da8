"""`crate-graph analyze`: whole reports, looked at by a browser; what they draw, against closed forms; refusals."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from crate_graph import create_model
from crate_graph.analysis.attention import principal_colours
from crate_graph.analysis.captions import captions_of
from crate_graph.analysis.curves import curve_figures, series_of
from crate_graph.analysis.graph_trace import trace
from crate_graph.analysis.graphs import comparison, restorer_series
from crate_graph.analysis.pictures import Observation, Sample, View, observations_of, samples_of
from crate_graph.analysis.run import different_layers
from crate_graph.analysis.segmentation import intersection_over_union, mask_cut
from crate_graph.analysis.subject import Subject, open_subject
from crate_graph.analysis.tokens import choose_layer, heads_at
from crate_graph.cli import main
from crate_graph.config import load_recipe
from crate_graph.config.schema import Degradation, EvalTransform
from crate_graph.data import open_dataset
from crate_graph.data.class_folders import class_folders
from crate_graph.data.decode import decode_mask
from crate_graph.data.stream import SampleReader
from crate_graph.errors import UserError
from crate_graph.models.observation import interpolate_known, keep_observed
from crate_graph.train.run import build_model

NO_TEXT = "c \udcff"  # of a file name whose last byte is no UTF-8
SMALL = dict(img_size=16, patch_size=4, num_classes=3, depth=3, embed_dim=24, num_heads=3)
CHECK = """<script>
addEventListener("load", () => {
  const bad = [...document.images].filter(i => !(i.naturalWidth > 0)).map(i => i.alt);
  const drawings = [...document.querySelectorAll("figure svg")];
  const empty = drawings.filter(s => !(s.getBBox().width > 0 && s.getBBox().height > 0)).map(s => s.ariaLabel);
  const found = {images: document.images.length, drawings: drawings.length, bad: bad.concat(empty)};
  document.body.innerHTML = "<pre>" + JSON.stringify(found) + "</pre>";
});
</script></body>"""


@pytest.fixture(scope="module")
def run(runner):
    return runner.trained("run", "schedule.max_steps=2").run_dir


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A bright square on dark noise, three times, with masks of both kinds; two names are no UTF-8."""
    folder = tmp_path_factory.mktemp("pictures") / NO_TEXT
    (folder / "masks").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number, name in enumerate(("a", "b", NO_TEXT)):
        mask = np.zeros((28, 28), dtype=np.uint8)
        mask[7:21, 7 * number : 7 * number + 14] = 255
        picture = np.where(mask > 0, 200, 20) + generator.integers(0, 20, mask.shape)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{name}.png")
        if number < 2:
            Image.fromarray(mask).save(folder / (f"{name}.mask.png" if number else f"masks/{name}.png"))
    return folder


@pytest.fixture(scope="module")
def report(run, pictures, tmp_path_factory):
    """The folder of a report of the run on these pictures, compared with itself, and what was printed."""
    output = tmp_path_factory.mktemp("reports") / "crate"
    return output, analyze(run, "--output", output, "--images", pictures, "--size", "56", "--compare", run)


@pytest.fixture(scope="module")
def graph_report(tmp_path_factory):
    output = tmp_path_factory.mktemp("reports") / "graph"
    return output, analyze("ugtv_fast_demosaicking", "--output", output, "--size", 24, "--samples", 2, "--show", 1)


def analyze(*words):
    """What the command prints with --json."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["analyze", *map(str, words), "--json"]) == 0
    return json.loads(printed.getvalue())


def rows_of(output, figure):
    with (output / "figures" / f"{figure}.csv").open() as file:
        return list(csv.DictReader(file))


def subject_of(name, **changed):
    torch.manual_seed(0)
    model = create_model(name, **{**SMALL, **changed}).eval()
    view = EvalTransform(size=16, resize=None)
    return Subject(name, "classification", name, model, model, "", {}, "", view=view, mean=[0.5] * 3, std=[0.25] * 3)


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def check_files(output, result):
    assert result["report"] == str(output / "report.html")
    listed = {str(output / name) for name in json.loads((output / "contents.json").read_text())["files"]}
    assert listed == {str(path) for path in output.rglob("*") if path.is_file()}
    for name, files in result["figures"].items():
        assert set(files) <= listed and len(files) == 2
        assert rows_of(output, name), name
    assert not [path for path in output.parent.iterdir() if path != output]


def check_page(output, result, tmp_path):
    """It needs nothing but itself, and a browser draws every figure of it."""
    page = (output / "report.html").read_text()
    assert not re.search(r"<script|<link|@import|url\((?!#)", page)
    assert not re.findall(r'(?:src|href)="(?!#|data:image/png;base64,|figures/)[^"]*"', page)
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here, so the page is not looked at; apt-get install chromium")
    wrapper = tmp_path / "page.html"
    wrapper.write_text(page.replace("</body>", CHECK))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += f"--disable-component-update --disable-sync --user-data-dir={tmp_path / 'profile'} --dump-dom"
    ended = subprocess.run(
        [browser, *flags.split(), wrapper.as_uri()], capture_output=True, text=True, timeout=240, check=True
    )
    found = json.loads(re.search(r"<pre>(.*)</pre>", ended.stdout)[1])
    assert found["bad"] == []
    assert found["images"] + found["drawings"] == len(result["figures"]) and found["drawings"] > 0 < found["images"]


def test_a_report_of_crate_is_whole(report):
    output, result = report
    check_files(output, result)
    assert {"attention", "pca", "maskcut", "foreground_iou", "sparsity", "compared_attention"} <= set(result["figures"])
    assert result["last_layer"]["rc_output"]["layer"] == [2]
    page = (output / "report.html").read_text()
    trained, random = (result[key] for key in ("last_layer", "random_weights"))
    shares = [f"{last['nonzero_output']['mean']:.4g}" for last in (trained, random["last_layer"])]
    found = re.search(r"Here, in the last layer \(after the layer; share that is not zero\)\. [^<]*", page)[0]
    assert all(share in found for share in shares) and page.count("that is no contradiction") == 3
    assert "<dt>compared with</dt>" in page and "in curves, the second model" in page and "in orange" not in page
    assert result["compared"]["last_layer"] == trained
    assert "Measured on 3 pictures of" in page and "beside the same network before training (seed 0)" in page


def test_names_that_are_no_text_are_shown_as_far_as_they_are(report, pictures):
    shown = NO_TEXT.replace("\udcff", "\ufffd")
    assert {row["picture"] for row in rows_of(report[0], "attention")} == {"a.png", "b.png", f"{shown}.png"}
    assert f"/{shown}" in (report[0] / "report.html").read_text()
    observations = observations_of(open_subject("ugtv_fast_demosaicking"), str(pictures), 9, 8)
    assert f"{shown}.png" in {each.key for each in observations}


def test_a_browser_draws_the_report_of_crate(report, tmp_path):
    check_page(*report, tmp_path)


def test_the_pictures_with_masks_are_judged(report):
    rows = rows_of(report[0], "foreground_iou")
    whole = {row["picture"]: float(row["IoU"]) for row in rows if row["way"] == "the whole picture"}
    assert whole == {"a.png": pytest.approx(0.25), "b.png": pytest.approx(0.25)}


def test_maps_are_as_fine_as_asked(report):
    rows = rows_of(report[0], "attention")
    assert {(row["patch row"], row["patch column"]) for row in rows} == {
        (str(y), str(x)) for y in range(8) for x in range(8)
    }
    sums: dict[tuple[str, str], float] = {}
    for row in rows:
        sums[row["picture"], row["head"]] = sums.get((row["picture"], row["head"]), 0) + float(row["weight"])
    assert list(sums.values()) == pytest.approx([1] * 6, abs=1e-4)


def test_beside_it_stands_the_model_as_training_began(run):
    recipe = load_recipe(run / "recipe.yaml")
    began = build_model(recipe, open_dataset("fashion_mnist"))
    initial = open_subject(str(run)).initial
    assert all(torch.equal(initial.state_dict()[name], tensor) for name, tensor in began.state_dict().items())


def test_exported_files_are_taken_with_pictures_of_their_data_set(run, tmp_path):
    for format, output in (("safetensors", "model.safetensors"), ("timm", "folder")):
        assert main(["export", str(run), "--format", format, "--output", str(tmp_path / output)]) == 0
        subject = open_subject(str(tmp_path / output))
        trained = open_subject(str(run)).model.state_dict()
        assert all(torch.equal(trained[name], tensor) for name, tensor in subject.model.state_dict().items())
        assert tuple(subject.classes) == open_dataset("fashion_mnist").classes
        assert subject.view == EvalTransform(size=28, resize=None) and list(subject.mean) == [
            pytest.approx(0.286, abs=1e-2)
        ]


def test_a_run_under_published_names_is_the_same_model(run, tmp_path):
    """With what names and shapes do not tell: 2 heads, 1 channel, classes, how pictures were normalised."""
    files = [tmp_path / name for name in ("first.safetensors", "ours.safetensors", "published.safetensors")]
    for source, file, names in zip([run, *files], files, ["published", "crate-graph", "published"], strict=False):
        assert main(["checkpoint", "convert", str(source), str(file), "--to", names]) == 0
    expected = open_subject(str(run))
    for file in (files[0], files[2]):
        subject = open_subject(str(file))
        trained = expected.model.state_dict()
        assert all(weight.equal(trained[name]) for name, weight in subject.model.state_dict().items())
        assert subject.model.blocks[0].mssa.num_heads == 2 and subject.view.size == 28
        assert (subject.classes, subject.mean, subject.std) == (expected.classes, expected.mean, expected.std)
        image = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(subject.model(image), expected.model(image))


def test_a_report_of_a_graph_network_is_whole(graph_report):
    output, result = graph_report
    check_files(output, result)
    assert {"comparison", "descent", "iterates", "edges", "edge_entropy", "learned_parameters"} <= set(
        result["figures"]
    )
    assert result["last_layer"]["gtv"]["layer"] == [2, 2]
    (first,) = {row["picture"] for row in rows_of(output, "iterates")}
    assert first == rows_of(output, "comparison")[0]["picture"]


def test_a_report_of_a_graph_network_says_where_the_decibels_come_from(graph_report):
    output, result = graph_report
    page = (output / "report.html").read_text()
    way = {(row["block"], row["ADMM layer"]): float(row["PSNR in dB"]) for row in rows_of(output, "iterates")}
    assert set(way) == {(block, layer) for block in "12" for layer in "012"}, "the solution is what layer 2 gave"
    within = sum(way[block, "2"] - way[block, "0"] for block in "12")
    between = way["2", "0"] - way["1", "2"]
    found = re.search(r"Here \(this picture\), from [^<]*", page)[0].replace("−", "-")
    assert f"the solvers bring {within:+.2f} dB" in found and f"and {between:+.2f} dB come between" in found
    entropy = result["last_layer"]["edge_entropy"]["mean"]
    assert f"ugtv_fast, trained: nearly uniform: {entropy:.4g}" in page
    assert result["random_weights"]["nothing_to_lower"] in page
    assert "is 0 and the scale is of powers: with random weights (seed 0)." in page
    assert "“what CG leaves over”: " in page and "“data residual”: " not in page


def test_a_browser_draws_the_report_of_a_graph_network(graph_report, tmp_path):
    check_page(*graph_report, tmp_path)


@pytest.mark.parametrize("name", ["uglr", "ugtv", "ugtv_fast", "igtv"])
def test_iterates_end_where_the_solver_does(name):
    torch.manual_seed(0)
    small = {"igtv": dict(layers=2, steps=2), "ugtv_fast": dict(depth=2, dim=8, convs=1, heads=2)}
    model = create_model(name, **small.get(name, dict(depth=2, heads=2, features=3, layers=2, steps=3))).eval()
    mask = (torch.rand(1, 3, 12, 14) < 0.4).float()
    clean = torch.rand(1, 3, 12, 14)
    observed = clean * mask
    traced = trace(model, Observation("a", observed, mask, torch.zeros(1), clean))
    for iterates in traced.iterates:
        assert len(iterates) == 4
        torch.testing.assert_close(iterates[-2], iterates[-1], rtol=0, atol=2e-6)
    if name == "ugtv_fast":
        ended = keep_observed(traced.iterates[-1][-1][None], observed, mask, None)
        torch.testing.assert_close(ended, model(observed, mask), rtol=0, atol=2e-6)
    else:
        start = interpolate_known(observed, mask)[0]
        torch.testing.assert_close(traced.iterates[0][0], start, rtol=0, atol=2e-6)
    assert not hasattr(model, "watch") and all(module.__dict__.get("watch") is None for module in model.modules())


def test_a_restorer_without_a_graph_has_the_curves_of_its_layers():
    torch.manual_seed(0)
    model = create_model("vit_restorer", dim=16, depth=2, num_heads=2).eval()
    degradation = Degradation(kind="bayer")
    subject = Subject("v", "restoration", "v", model, model, "", {}, "photo_crops", degradation=degradation)
    observations = observations_of(subject, None, 2, 16)
    names = {figure.name for figure in curve_figures(restorer_series(subject, observations, None))}
    assert {"rate_given_subspaces", "coding_rate", "sparsity"} <= names
    figure = comparison(subject, None, observations)
    assert len(figure.rows) == 4 and figure.image.startswith(b"\x89PNG")


def test_attention_of_crate_is_that_of_the_subspaces(images):
    subject = subject_of("crate_tiny_patch16_224")
    maps = heads_at(subject, 2, images).attention()
    z = subject.model.blocks[0](subject.model.embed(images))
    block = subject.model.blocks[1]
    w = block.mssa.subspaces(block.norm1(z)).unflatten(-1, (3, 8)).transpose(1, 2)  # (B, K, N, p)
    expected = ((w[:, :, :1] * w[:, :, 1:]).sum(-1) / 8**0.5).softmax(-1).unflatten(-1, (4, 4))
    torch.testing.assert_close(maps, expected)


def test_attention_of_a_vit_is_what_it_computes(images):
    subject = subject_of("vit_tiny_patch16_224")
    block = subject.model.blocks[-1]
    block.attn.fused_attn = False
    kept = []
    handle = block.attn.attn_drop.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    subject.model(images)
    handle.remove()
    expected = kept[0][:, :, 0, 1:]  # (B, K, N - 1)
    expected = (expected / expected.sum(-1, keepdim=True)).unflatten(-1, (4, 4))
    torch.testing.assert_close(heads_at(subject, 3, images).attention(), expected)


def test_a_vit_has_curves_too_and_maps_of_larger_pictures():
    subject = subject_of("vit_tiny_patch16_224")
    samples = [Sample("a", Image.new("RGB", (16, 16), (40, 90, 140))), Sample("b", Image.new("RGB", (16, 16)))]
    names = {figure.name for figure in curve_figures(series_of(subject, samples, subject_of("crate_tiny_patch16_224")))}
    assert {"rate_given_subspaces", "coherence", "sparse_rate_reduction", "dictionary_spectra"} <= names
    assert heads_at(subject, 1, View(subject, 32).images(samples)).grid == (8, 8)
    assert subject.model.patch_embed.img_size == (16, 16)


def test_layers_of_maps():
    crate, vit = subject_of("crate_tiny_patch16_224"), subject_of("vit_tiny_patch16_224")
    assert (choose_layer(crate, None), choose_layer(vit, None), choose_layer(crate, 1)) == (2, 3, 1)
    said = different_layers([crate, vit], [2, 3])
    assert "of layer 2 of 3 of crate_tiny_patch16_224 and of layer 3 of 3 of vit_tiny_patch16_224: " in said
    assert different_layers([crate, vit], [1, 1]) == ""
    with pytest.raises(UserError, match="3 layers; choose one from 1 to 3"):
        choose_layer(crate, 4)


@pytest.mark.parametrize("kind", ["grey", "grey16", "palette", "colour", "alpha", "one bit"])
def test_a_mask_is_all_that_is_not_0_as_it_is_stored(kind, tmp_path):
    inside = np.zeros((6, 5), dtype=bool)
    inside[1:4, 2:] = True
    one = inside.astype(np.uint8)
    if kind == "palette":
        mask = Image.fromarray(one).convert("P")
        mask.putpalette([0, 0, 0] * 256)  # number 1 is black, too
        mask.putdata(one.ravel().tolist())
    else:
        stored = {
            "grey": one,
            "grey16": one.astype(np.uint16),
            "colour": np.stack((0 * one, 0 * one, one), axis=2),
            "alpha": np.stack((one | 1, one | 1, one | 1, one), axis=2),
            "one bit": inside,
        }
        mask = Image.fromarray(stored[kind])
    mask.save(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(decode_mask((tmp_path / "mask.png").read_bytes())) > 0, inside)


def test_mask_cut_finds_objects_one_by_one():
    objects = np.zeros((3, 10, 12), dtype=bool)
    objects[0, 1:5, 1:6] = objects[1, 6:9, 7:11] = True
    labels = objects[0] + 2 * objects[1]
    features = torch.eye(5)[torch.from_numpy(labels.ravel())] + 0.02 * torch.randn(120, 5)
    found = mask_cut(features, (10, 12), objects=2)
    assert len(found) == 2
    for mask in found:
        assert any(np.array_equal(mask, each) for each in objects[:2])
    assert not np.array_equal(*found)


def test_intersection_over_union_of_patches_and_pixels():
    found, mask = np.array([[True, False], [False, False]]), np.zeros((4, 4), dtype=bool)
    mask[:2] = True
    assert intersection_over_union(found, mask) == 0.5
    assert intersection_over_union(~found, ~mask) == pytest.approx(8 / 12)


def test_principal_colours_part_front_from_border():
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[2:4, 1:5] = True
    features = torch.where(inside.flatten()[:, None], 3.0, -1.0) + 0.1 * torch.randn(1, 36, 8)
    first, colours, front = principal_colours(features, (6, 6))
    assert np.array_equal(first[0] > 0.5, inside.numpy()) and np.array_equal(front[0], inside.numpy())
    assert not colours[0][~inside].any() and colours[0][inside].any()


def test_a_few_tokens_far_off_do_not_empty_the_front():
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[2:4, 1:5] = True
    features = torch.where(inside.flatten()[:, None], 1.0, 0.0) + 0.05 * torch.randn(1, 36, 8)
    features[0, 14:16] = 5.0
    first, _, front = principal_colours(features, (6, 6))
    assert np.array_equal(front[0], inside.numpy())
    assert first[0][inside].min() > first[0][~inside].max()


def test_captions_name_the_class_and_what_the_network_takes_it_for(run, fashion):
    subject, dataset = open_subject(str(run)), open_dataset(fashion)
    assert tuple(subject.classes) == dataset.classes
    samples = samples_of(subject, None, 40)
    with torch.no_grad():
        likely = subject.model(View(subject).images(samples)).softmax(-1)
    captions = captions_of(subject, samples)
    reader = SampleReader(dataset, split := dataset.split("test"))
    for number, (caption, row) in enumerate(zip(captions, likely, strict=True)):
        label = dataset.classes[reader.read(number * split.samples // 40)[1]]
        taken = dataset.classes[row.argmax()]
        assert caption.lines[1:] == [f"true: {label}", f"predicted: {taken} ({row.max():.0%})"]
        assert caption.wrong == (label != taken)
    reader.close()
    assert {caption.wrong for caption in captions} == {True, False}


def test_of_class_folders_each_gives_pictures_in_turn_and_is_their_class(run, fashion, tmp_path):
    assert main(["shards", "extract", str(fashion), "--by-class", "--samples", "30", "--output", str(tmp_path)]) == 0
    tree, subject = tmp_path / "test", open_subject(str(run))
    classes = dict(zip(class_folders(list(subject.classes)), subject.classes, strict=True))
    (tree / "Sandal").rename(tree / "holiday")
    samples = samples_of(subject, str(tree), 12)
    folders = [sample.key.split("/")[0] for sample in samples]
    assert sorted(folders[:10]) == sorted(path.name for path in tree.iterdir()) and folders[10:] == folders[:2]
    assert [sample.label for sample in samples] == [classes.get(folder, "") for folder in folders]
    assert {"T-shirt/top", ""} <= {sample.label for sample in samples}
    for caption in captions_of(subject, samples):
        assert (tree / caption.lines[0]).is_file() and ("true:" in caption.lines[1]) == bool(caption.label)
        assert caption.wrong == (caption.label not in ("", caption.predicted))
    assert len({sample.key for sample in samples_of(subject, str(tree), 99)}) == 30
    few = samples_of(subject, str(tree), 4)
    assert len({sample.key.split("/")[0] for sample in few}) == 4
    inside = samples_of(subject, str(tree / "Bag"), 2)
    assert [sample.label for sample in inside] == ["Bag"] * 2 and "/" not in inside[0].key


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs the command, which must refuse in one line and write nothing."""

    def run(*words, output=tmp_path / "refused", around=None):
        around = around or output.parent
        before = sorted(around.rglob("*"))
        capsys.readouterr()
        code = main(["analyze", *map(str, words), "--output", str(output)])
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), err
        assert sorted(around.rglob("*")) == before
        (line,) = err.splitlines()
        return line

    return run


def test_mistakes_are_refused_in_one_line(run, pictures, refused, tmp_path):
    empty, torn = tmp_path / "empty", tmp_path / "torn"
    empty.mkdir()
    (torn / "masks").mkdir(parents=True)
    Image.new("L", (28, 28)).save(torn / "masks" / "a.png")
    (tmp_path / "notes.txt").write_text("no model")
    absent = refused("runs/fashion_mnist_crate")
    assert "no file or folder has that name; name a run folder" in absent and "ugtv" not in absent
    started = tmp_path / "started"
    started.mkdir()
    (started / "recipe.yaml").write_text("name: started\n")
    assert "there are no checkpoints in it; touch" in refused(started)
    assert "notes.txt" in refused(tmp_path / "notes.txt")
    assert "there are no checkpoints in it; name the folder of a run" in refused(empty)
    (tmp_path / "model.onnx").write_bytes(b"")
    assert "ONNX is not taken; export as timm, hf or safetensors" in refused(tmp_path / "model.onnx")
    weights = open_subject(str(run)).model.state_dict()
    torch.save(weights, tmp_path / "tuned.pth")
    save_file(weights, tmp_path / "tuned.safetensors")
    for name in ("tuned.pth", "tuned.safetensors"):
        assert "a run that was trained from them with model.init_from" in refused(tmp_path / name)
    assert "has 2 layers; choose one from 1 to 2" in refused(run, "--layer", 3)
    assert "is for restoration" in refused(run, "--compare", "ugtv_fast_demosaicking")
    assert "was trained for decimate" in refused("ugtv_fast_demosaicking", "--compare", "ugtv_fast_interpolation")
    assert "no image in it" in refused(run, "--images", empty)
    assert "no folder of that name" in refused(run, "--images", tmp_path / "absent")
    assert "a mask without its picture a." in refused(run, "--images", torn)
    assert "not divisible" in refused(run, "--size", 30) and "not divisible" in refused(run, "--patch", 5)
    assert "4096 at most" in refused(run, "--size", 7 * 65)
    assert "of 64 pictures at most" in refused(run, "--show", 65)
    assert "is for maps of tokens" in refused("ugtv_fast_demosaicking", "--layer", 1)
    Image.new("L", (28, 20)).save(torn / "a.png")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "b.png").write_bytes((pictures / "b.png").read_bytes()[:200])
    assert "b.png: cannot be read" in refused(run, "--images", damaged)
    assert "notes.txt: is a file; choose another --output" in refused(run, output=tmp_path / "notes.txt")
    (tmp_path / "loop").symlink_to("loop")
    for output in (tmp_path / "loop", tmp_path / "loop" / "new", "/proc/new/report", tmp_path / ("n" * 250)):
        line = refused(tmp_path / "nothing", output=Path(output), around=tmp_path)  # before the checkpoint is opened
        assert f"{output}: " in line and line.endswith("choose another --output"), line
    assert "28 x 28 pixels, its picture a.png has 28 x 20" in refused(run, "--images", torn)


def test_only_a_report_is_replaced_and_only_with_force(graph_report, refused, tmp_path, capsys):
    words = ("ugtv_fast_demosaicking", "--size", 16, "--samples", 1)
    output = tmp_path / "out" / "report"
    shutil.copytree(graph_report[0], output)
    (output / "contents.json").write_text("[" * 100_000)
    assert "holds other files" in refused(*words, "--force", output=output)
    shutil.copy(graph_report[0] / "contents.json", output)
    (tmp_path / "link").symlink_to(output)
    assert "add --force" in refused(*words, output=output)
    (output / "notes.txt").write_text("mine")
    assert "notes.txt: is no part of the report" in refused(*words, "--force", output=output)
    (output / "notes.txt").unlink()
    before = (output / "report.html").read_bytes()
    assert main(["analyze", *map(str, words), "--output", str(tmp_path / "link"), "--force"]) == 0
    out, err = capsys.readouterr()
    (line,) = (line for line in out.splitlines() if "GTV: the objective" in line)
    assert line.startswith("  The objective's descent: GTV: the objective") and line.endswith("per pixel")
    assert "edge_entropy" not in out and "measuring the layers on 1 picture\n" in err
    assert (output / "report.html").read_bytes() != before
    assert sorted(path.name for path in output.parent.iterdir()) == ["report"] and (tmp_path / "link").is_symlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    assert "holds other files" in refused(*words, "--force", output=tmp_path / "other")


def test_without_matplotlib_it_names_the_extra(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'crate-graph[analysis]'" in refused("ugtv_fast_demosaicking")
