import pytest
import yaml

from crate_graph.config import dump_recipe, load_recipe
from crate_graph.errors import UserError

BASE = """
name: base
model: {name: crate, kwargs: {depth: 2, width: 8}}
data: {dataset: digits, train_transform: {scale: [0.5, 1.0]}}
optimizer: {lr: 1e-3, weight_decay: 0.1}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="recipe.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    write(BASE, "base.yaml")
    return write


def message(path, *overrides):
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_extends_merges_mappings_and_replaces_lists(write):
    path = write(
        """
extends: base
name: child
model: {kwargs: {width: 16}}
data: {train_transform: {scale: [0.9, 1.0]}}
"""
    )
    recipe = load_recipe(path)
    assert recipe.name == "child"
    assert recipe.model.kwargs == {"depth": 2, "width": 16}
    assert recipe.data.train_transform.scale == (0.9, 1.0)
    assert recipe.optimizer.weight_decay == 0.1


def test_extends_several_files_later_wins_and_paths_are_relative_to_the_file(write):
    write("optimizer: {lr: 0.5, eps: 1e-6}", "parts/first.yaml")
    write("optimizer: {lr: 0.25}", "parts/second.yaml")
    recipe = load_recipe(write("extends: [../base.yaml, first, second]\nseed: 3", "parts/leaf.yaml"))
    assert (recipe.optimizer.lr, recipe.optimizer.eps, recipe.seed) == (0.25, 1e-6, 3)


def test_extends_a_shipped_recipe_by_name(write):
    recipe = load_recipe(write("extends: quickstart\nname: mine\nseed: 11"))
    assert (recipe.name, recipe.seed) == ("mine", 11)
    assert recipe.model == load_recipe("quickstart").model


def test_a_cycle_is_named(write):
    write("extends: second", "first.yaml")
    path = write("extends: first", "second.yaml")
    assert "second.yaml extends first.yaml extends second.yaml" in message(path)


def test_a_base_read_twice_is_no_cycle(write):
    write("extends: base\nseed: 1", "left.yaml")
    write("extends: base\nseed: 2", "right.yaml")
    assert load_recipe(write("extends: [left, right]")).seed == 2


def test_a_missing_base_names_the_file_that_asks_for_it(write):
    text = message(write("extends: quickstar"))
    assert "recipe.yaml" in text and "quickstart" in text


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", ".001", "+1e-03"])
def test_every_way_to_write_a_float(write, text):
    assert load_recipe(write(BASE.replace("1e-3", text))).optimizer.lr == 0.001
    recipe = load_recipe(write(BASE), [f"optimizer.lr={text}", f"model.kwargs.eta={text}"])
    assert recipe.optimizer.lr == 0.001
    assert recipe.model.kwargs["eta"] == 0.001


def test_words_are_strings_where_a_string_is_wanted_and_switches_where_a_bool_is(write):
    recipe = load_recipe(write(BASE), ["name=on", "model.kwargs.mode=no", "telemetry.tensorboard=off"])
    assert recipe.name == "on"
    assert recipe.model.kwargs["mode"] == "no"
    assert recipe.telemetry.tensorboard is False


def test_overrides_reach_nulls_lists_sections_and_free_keys(write):
    recipe = load_recipe(
        write(BASE + "ema: {decay: null}"),
        [
            "ema.decay=0.99",
            "optimizer.betas=[0.9, 0.95]",
            "batch={global_batch: 512, micro_batch: 64}",
            "batch.micro_batch=",
            "model.kwargs.attention.heads=3",
        ],
    )
    assert recipe.ema.decay == 0.99
    assert recipe.optimizer.betas == (0.9, 0.95)
    assert (recipe.batch.global_batch, recipe.batch.micro_batch) == (512, None)
    assert recipe.model.kwargs == {"depth": 2, "width": 8, "attention": {"heads": 3}}


def test_a_dumped_recipe_loads_equal(write):
    recipe = load_recipe(
        write(BASE),
        [
            "optimizer.lr=2.4e-4",
            "optimizer.eps=1e-08",
            "optimizer.betas=[0.9,0.99]",
            "name='1e-3'",
            "model.kwargs={a: '1e5', b: 'no', c: 'null', d: [1, 2.5, x], e: {f: 1e-7}, g: true, h: '010', i: '1:30'}",
            "model.init_from='a: b # c'",
        ],
    )
    text = dump_recipe(recipe)
    assert load_recipe(write(text, "dumped.yaml")) == recipe
    assert yaml.safe_load(text)["model"]["kwargs"] == recipe.model.kwargs  # other programs read YAML 1.1


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("lr=1", "optimizer.lr"),
        ("optimiser.lr=1", "optimizer.lr"),
        ("optimizer.weight_decy=1", "optimizer.weight_decay"),
        ("epochs=3", "schedule.epochs"),
        ("engine.zero=1", "engine.zero_stage"),
    ],
)
def test_an_unknown_key_on_the_command_line_names_its_neighbour(write, override, meant):
    key = override.partition("=")[0]
    assert message(write(BASE), override) == f"command line: unknown key {key}; did you mean {meant}?"


def test_an_unknown_key_in_a_file_names_the_file_that_has_it(write):
    write(BASE + "schedule: {epoch: 3}", "base.yaml")
    text = message(write("extends: base"))
    assert "base.yaml: unknown key schedule.epoch; did you mean schedule.epochs?" in text


def test_a_bad_value_names_source_key_value_and_what_is_allowed(write):
    path = write(BASE + "precision: fp8")
    assert "recipe.yaml: precision='fp8' is not allowed: it should be 'fp32', 'bf16' or 'fp16'" in message(path)
    assert message(write(BASE), "optimizer.lr=-1").startswith(
        "command line: optimizer.lr=-1 is not allowed: it should be greater than 0"
    )
    assert "optimizer.lr=inf" in message(write(BASE), "optimizer.lr=.inf")
    assert "batch=3 is not allowed: it should be a mapping" in message(write(BASE), "batch=3")


def test_all_bad_values_are_reported_in_one_line(write):
    text = message(write(BASE), "seed=x", "batch.global_batch=0", "precision=fp8")
    assert "seed='x'" in text and "and 2 more: precision, batch.global_batch" in text


def test_a_missing_key_is_named(write):
    assert "recipe.yaml: data is missing" in message(write("name: a\nmodel: {name: crate}"))


def test_a_contradiction_keeps_its_remedy(write):
    text = message(write(BASE + "engine: {name: accelerate}"), "engine.zero_stage=2")
    assert text.startswith("command line: zero_stage=2 needs the deepspeed engine; set engine.name=deepspeed or")
    text = message(write(BASE + "batch: {global_batch: 100}"))
    assert "recipe.yaml: batch.global_batch=100 is not a multiple" in text and "choose slots" in text


@pytest.mark.parametrize("override", ["seed", "=3", "--seed=3", "name.first=x", "optimizer..lr=3"])
def test_what_is_no_override_is_refused(write, override):
    assert message(write(BASE), override).startswith("command line: ")


def test_an_override_that_is_no_yaml_is_refused(write):
    assert "optimizer.betas='[0.9'" in message(write(BASE), "optimizer.betas=[0.9")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: a\nmodel: [1\n", "line 3"),
        ("name: a\nseed: 1\nseed: 2\n", "line 3: key 'seed' is written twice"),
        ("- name: a\n", "a recipe is a mapping"),
        ("extends: {a: 1}\n", "extends="),
        ("name: !!python/object/apply:os.system [id]\n", "line 1"),
    ],
)
def test_malformed_files_are_named_with_the_line(write, text, problem):
    found = message(write(text))
    assert "recipe.yaml" in found and problem in found


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert "recipe.yaml" in message(tmp_path / "recipe.yaml")


def test_a_missing_recipe_lists_the_nearest(tmp_path):
    assert "quickstart" in message("quikstart")
    assert "is a folder" in message(tmp_path)


def test_an_ambiguous_name_lists_the_candidates():
    text = message("imagenet1k_tiny_paper")
    assert "ambiguous" in text
    assert "crate/imagenet1k_tiny_paper" in text and "vit/imagenet1k_tiny_paper" in text
