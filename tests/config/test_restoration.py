import pytest

from crate_graph.config import dump_recipe, load_recipe
from crate_graph.config.schema import Degradation, Recipe
from crate_graph.errors import UserError

BASE = """
name: demosaic
task: {kind: restoration}
model: {name: conv_restorer}
data: {dataset: photo_crops, degradation: {kind: bayer}}
"""
CLASSES = "name: tell_apart\nmodel: {name: crate_tiny_patch16_224}\ndata: {dataset: fashion_mnist}\n"


@pytest.fixture
def load(tmp_path):
    def load(*overrides, text=BASE):
        (tmp_path / "recipe.yaml").write_text(text)
        return load_recipe(tmp_path / "recipe.yaml", overrides)

    return load


def test_what_is_not_said_has_a_default(load):
    recipe = load()
    assert recipe.data.degradation == Degradation(kind="bayer", phase="RGGB", keep=0.25, sigma=0.0)
    assert (recipe.task.loss, recipe.data.patch, recipe.data.color) == ("charbonnier", 64, "rgb")
    assert recipe.evaluation.metric == "psnr"
    assert load("evaluation.metric=ssim", "evaluation.batch_size=1").evaluation.metric == "ssim"
    assert load("evaluation.batch_size=7").evaluation.model_dump() == {
        **recipe.evaluation.model_dump(),
        "batch_size": 7,
    }
    assert load(text=CLASSES).evaluation.metric == "top1"


def test_a_recipe_made_of_sections_is_checked_alike(load):
    values = load().model_dump(exclude={"evaluation"})
    assert Recipe(**values).evaluation.metric == "psnr"


def test_keys_of_the_degradation_can_be_set_one_by_one(load):
    degradation = load("data.degradation.phase=any", "data.degradation.sigma=[0, 50]").data.degradation
    assert degradation == Degradation(kind="bayer", phase="any", sigma=(0, 50))
    with pytest.raises(UserError, match=r"unknown key data\.degradation\.sigm; did you mean data\.degradation\.sigma"):
        load("data.degradation.sigm=3")


@pytest.mark.parametrize("sigma", ["0", "25", "12.5", "[0, 50]", "[10, 10]"])
def test_a_dumped_recipe_loads_equal(load, sigma):
    recipe = load(f"data.degradation.sigma={sigma}", "data.color=rgb", "task.loss=huber", "data.patch=48")
    assert load(text=dump_recipe(recipe)) == recipe


@pytest.mark.parametrize("sigma", ["-1", "256", "[20, 10]", "[1, 2, 3]", "[]", "x", "[0, x]", "null", "true"])
def test_a_level_is_a_number_or_a_pair_in_order(load, sigma):
    with pytest.raises(UserError, match=r"data\.degradation\.sigma=.* a number from 0 to 255, or a pair") as error:
        load(f"data.degradation.sigma={sigma}")
    assert "\n" not in str(error.value) and "more:" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.degradation=null", r"needs data\.degradation; for instance"),
        ("data.degradation.kind=blur", r"data\.degradation\.kind='blur' is not allowed: it should be 'bayer'"),
        ("data.degradation.kind=none", r"leaves nothing to restore; set sigma"),
        ("data.degradation.keep=0", r"data\.degradation\.keep=0 is not allowed"),
        ("data.color=y", r"data\.color=y has one channel.*set data\.color=rgb"),
        ("data.patch=4", r"data\.patch=4 is not allowed: it should be greater than or equal to 5"),
        ("data.train_transform.size=64", r"data\.train_transform is for classification"),
        ("data.eval_transform.resize=null", r"data\.eval_transform is for classification"),
        ("task.label_smoothing=0.1", r"task\.label_smoothing is for classification"),
        ("task.loss=l3", r"task\.loss='l3' is not allowed"),
        ("evaluation.metric=top1", r"evaluation\.metric=top1 is for classification; choose psnr"),
    ],
)
def test_what_restoration_lacks_or_does_not_use_is_refused(load, override, message):
    with pytest.raises(UserError, match=f"^command line: .*{message}"):
        load(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.degradation.kind=decimate", r"data\.degradation is for restoration; set task\.kind=restoration"),
        ("data.patch=32", r"data\.patch is for restoration"),
        ("data.color=y", r"data\.color is for restoration"),
        ("task.loss=l1", r"task\.loss is for restoration"),
        ("evaluation.metric=psnr", r"evaluation\.metric=psnr is for restoration; choose top1"),
    ],
)
def test_what_classification_does_not_use_is_refused(load, override, message):
    with pytest.raises(UserError, match=f"^command line: {message}"):
        load(override, text=CLASSES)


def test_noise_alone_and_luma_are_allowed_where_they_make_sense(load):
    assert load("data.degradation.kind=none", "data.degradation.sigma=25").data.degradation.kind == "none"
    assert load("data.degradation.kind=decimate", "data.color=y").data.color == "y"
