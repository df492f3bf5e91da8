"""The wheel, installed away from the repository, has all that a run needs and nothing that shadows another package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the wheel was installed into."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [*PIP, "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    subprocess.run(build, check=True, timeout=240)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    subprocess.run(
        [*PIP, "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel], check=True, timeout=240
    )
    return site


def run_away(site, code):
    """Runs code in a fresh interpreter that sees the installed wheel and not the repository; returns what it prints."""
    preamble = (
        f"import sys; sys.path[:] = [{str(site)!r}] + [path for path in sys.path if path not in ('', {str(ROOT)!r})]; "
    )
    command = [sys.executable, "-c", preamble + code]
    return subprocess.run(command, cwd=site.parent, check=True, capture_output=True, text=True, timeout=240).stdout


def test_the_wheel_holds_our_package_only(installed):
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"crate_graph", "bin"}


def test_no_python_among_the_shipped_files(installed):
    shipped = installed / "crate_graph/_shipped"
    assert not [path for path in shipped.rglob("*") if path.suffix in (".py", ".pyc")]
    assert not [path for folder in ("datasets", "recipes") for path in (ROOT / folder).rglob("*.py")]


def test_datasets_is_not_ours(installed):
    code = "import importlib.util as u; spec = u.find_spec('datasets'); print(spec and spec.origin)"
    origin = run_away(installed, code).strip()
    assert str(installed) not in origin and str(ROOT / "datasets") not in origin


def test_recipes_and_shards_come_along(installed):
    code = (
        "import json, crate_graph; from crate_graph.config.load import load_recipe, shipped_recipes; "
        "from crate_graph.data import open_dataset; dataset = open_dataset('fashion_mnist'); "
        "print(json.dumps([crate_graph.__file__, load_recipe('quickstart').name, len(shipped_recipes()), "
        "dataset.split('train').samples, dataset.split('test').samples]))"
    )
    file, name, recipes, train, test = json.loads(run_away(installed, code))
    assert Path(file) == installed / "crate_graph/__init__.py"
    assert name == "quickstart"
    assert recipes == len([path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "base"])
    assert (train, test) == (10_000, 2_000)


def test_shipped_weights_come_along(installed):
    code = (
        "import json; from crate_graph.weights import list_weights, load_restorer, names; "
        "print(json.dumps([str(names.SHIPPED), [load_restorer(name).recipe for name in list_weights()]]))"
    )
    folder, recipes = json.loads(run_away(installed, code))
    weights = ROOT / "crate_graph/weights"
    assert Path(folder) == installed / "crate_graph/weights"
    for path in weights.glob("*/model.*"):
        assert (installed / "crate_graph" / path.relative_to(ROOT / "crate_graph")).read_bytes() == path.read_bytes()
    assert len(recipes) == len(list(weights.glob("*/model.json")))


def test_the_command_starts(installed):
    code = "from crate_graph.cli import main; main(['train', '--help'])"
    assert "RECIPE" in run_away(installed, code)
    assert (installed / "bin/crate-graph").is_file()
