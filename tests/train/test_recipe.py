"""Recipes are what upstream's scripts say, and bad ones are named in one line. No model, no torch."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge.checkpoint.families import FAMILIES
from tinyllava_edge.errors import UsageError
from tinyllava_edge.train.recipe import ASSEMBLY, Recipe, names, open_recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sources" / "upstream_recipes.md").read_text(encoding="utf-8")
# Upstream's drivers of families, and what else is true of a run that no key of a recipe says.
OF_DRIVER = {
    "llm": "LLM_VERSION",
    "tower": "VT_VERSION",
    "second_tower": "VT_VERSION2",
    "connector": "CN_VERSION",
    "model_max_length": "MODEL_MAX_LENGTH",
}
RENAMED = {
    "feature_layer": "mm_vision_select_layer",
    "feature_select": "mm_vision_select_feature",
    "tokenizer": "tokenizer_name_or_path",
}
NO_ARGUMENT = {"summary", "mirrors", "differs", "starts", "max_steps"}


def _table(first: str) -> list[dict[str, str]]:
    """The table of the page whose first column has that head."""
    section = PAGE.split(f"\n| {first} |")[1].split("\n\n")[0]
    section = f"| {first} |{section}"
    rows = [
        [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        for line in section.splitlines()
        if "|" in line
    ]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def _name(path: str) -> str:
    return path.removeprefix("scripts/train/").removesuffix(".sh")


SAME = {row["same in every script"]: row["value"] for row in _table("same in every script")}
DEFAULTS = {row["set by no script"]: row["value"] for row in _table("set by no script")}
SCRIPTS = {row["script"]: row for row in _table("script")}
DRIVERS = {row["driver"]: row for row in _table("driver")}


def _upstream(recipe: Recipe, family: str) -> dict[str, Any]:
    """What upstream's script, and the driver that calls it, say, by our keys."""
    assert recipe.mirrors is not None
    script = SCRIPTS[_name(recipe.mirrors.script)]
    driver = DRIVERS[_name(recipe.mirrors.driver)] if recipe.mirrors.driver else {}
    if driver:
        assert script["script"] in driver["scripts"].split(", ")
    arguments = {**DEFAULTS, **SAME, **{key: value for key, value in script.items() if value}}
    found: dict[str, Any] = {key: arguments[key] for key in Recipe.model_fields if key in arguments}
    found |= {ours: arguments.get(theirs) for ours, theirs in RENAMED.items()}
    found |= {ours: driver.get(theirs, "").removeprefix("mof:") or None for ours, theirs in OF_DRIVER.items()}
    found["global_batch_size"] = str(
        int(script["gpus"])
        * int(script["per_device_train_batch_size"])
        * int(script["gradient_accumulation_steps"])
    )
    conversation = script["conv_version"]
    found["template"] = driver.get("CONV_VERSION") if conversation == "driver's" else conversation
    found["tune.connector"], found["tune.language_model"] = (
        SAME["tune_type_connector"],
        script["tune_type_llm"],
    )
    found["tune.vision_tower"] = SAME["tune_type_vision_tower"]
    has_lora = script["tune_type_llm"] in ("lora", "qlora")
    sizes = {"rank": script["lora_r"], "alpha": script["lora_alpha"], "dropout": DEFAULTS["lora_dropout"]}
    found |= {f"lora.{key}": value if has_lora else None for key, value in sizes.items()}
    return found


def _ours(recipe: Recipe, family: str) -> dict[str, Any]:
    given = {key: value for key, value in recipe.given.items() if key not in NO_ARGUMENT}
    tune, lora = given.pop("tune"), given.pop("lora", None)
    for part in ("connector", "language_model", "vision_tower"):
        given[f"tune.{part}"] = tune[part].how if part in tune else "frozen"
    for key in ("rank", "alpha", "dropout"):
        given[f"lora.{key}"] = None if lora is None else getattr(lora, key)
    given.setdefault("template", FAMILIES[family].template)  # what the checkpoint's own is
    return given


def _is_equal(ours: Any, theirs: str | None) -> bool:
    if isinstance(ours, bool) or ours is None or theirs is None:
        return str(ours) == str(theirs)
    return float(theirs) == ours if isinstance(ours, int | float) else theirs == ours


def _cases() -> Iterator[tuple[str, str]]:
    for name in names():
        for family in open_recipe(name).families:
            yield name, family


@pytest.mark.parametrize(("name", "family"), list(_cases()))
def test_every_key_of_a_recipe_is_upstreams_or_says_why_not(name: str, family: str) -> None:
    recipe = open_recipe(name).named(family)
    ours = _ours(recipe, "phi3" if family == "any" else family)
    theirs = _upstream(recipe, family)
    assert recipe.mirrors is not None
    if recipe.mirrors.driver is None and "template" not in recipe.given:
        theirs["template"] = ours["template"]  # the driver's argument
    if recipe.mirrors.driver is None and name != "custom":
        theirs["model_max_length"] = {"base": "2048"}.get(name.split("-")[0], "3072")  # of Phi's driver
    if name == "custom":
        theirs["model_max_length"] = "3072"  # in custom_finetune.sh itself
    different = {key for key, value in ours.items() if not _is_equal(value, theirs[key])}
    if recipe.mirrors.driver is None:
        different -= ASSEMBLY & {"llm", "tower", "connector"}
    assert different == recipe.differs.keys()


def test_each_of_upstreams_scripts_has_its_recipe() -> None:
    mirrored = {open_recipe(name).named(family).mirrors for name, family in _cases()}
    assert {_name(mirrors.script) for mirrors in mirrored if mirrors} == SCRIPTS.keys()
    instruct = {"qwen2/train_qwen2_instruct"}  # another name of a language model, and nothing else
    assert {
        _name(mirrors.driver) for mirrors in mirrored if mirrors and mirrors.driver
    } | instruct == DRIVERS.keys()


@pytest.mark.parametrize("stage", ["base-pretrain", "base-finetune", "share-pretrain", "share-finetune"])
def test_base_and_share_are_for_every_family(stage: str) -> None:
    for family in FAMILIES:
        assert open_recipe(stage).named(family).tune


OWN = """
extends: lora
summary: mine
learning_rate: 3e-4
tune: {vision_tower: {how: full, from_layer: 20, learning_rate: 1e-5}}
lora: {rank: 8}
families:
  llama: {precision: bf16}
"""


def test_a_file_extends_a_recipe_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN)
    recipe = open_recipe(str(path)).named("llama")
    assert (recipe.learning_rate, recipe.precision, recipe.model_max_length) == (3e-4, "bf16", 3072)
    assert recipe.tune["vision_tower"].from_layer == 20
    assert recipe.tune["language_model"].how == "lora"
    assert recipe.lora is not None
    assert (recipe.lora.rank, recipe.lora.alpha) == (8, 256)


def test_a_recipe_for_another_family_says_which_ones_fit() -> None:
    with pytest.raises(
        UsageError, match=r"mof-pretrain is for llama, .* of 'phi'\. Recipes for it: base-finetune,"
    ):
        open_recipe("mof-pretrain").named("phi")


BOMB = "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n"


@pytest.mark.parametrize(("text", "said"), [
    ("summary: a\ntune: {connector: full}\nlearning_rat: 1e-3", "learning_rat: .*'learning_rate'"),
    ("summary: a\ntune: {connector: {how: full, from_leyer: 1}}", "connector.from_leyer: .*'from_layer'"),
    ("summary: a\ntune: {conector: full}", "tune.conector.*'connector'"),
    ("summary: a\ntune: {connector: fulll}", "tune.connector.how: .*'full'.* found 'fulll'"),
    ("summary: a\ntune: {connector: frozen}", "trains no part"),
    ("summary: a\ntune: {vision_tower: qlora}", "qlora is for the language model"),
    ("summary: a\ntune: {connector: {how: full, from_layer: 3}}", "from_layer is of a vision_tower"),
    ("summary: a\ntune: {connector: full}\nlearning_rate: yes", "learning_rate: .* found True"),
    ("summary: a\ntune: {connector: full}\nseed: 1.5", "seed: .*found 1.5"),
    ("summary: a\ntune: {connector: full}\nlearning_rate: 2", "learning_rate: .*less than 1"),
    ("summary: a\ntune: {connector: full}\nlearning_rate: .nan", "learning_rate: "),
    ("summary: a\ntune: {connector: full}\ntemplate: fi", "template: template 'fi' is not known"),
    ("summary: a\ntune: {connector: full}\nfeature_layer: -2", "feature_layer is of `starts: parts`"),
    ("summary: a\ntune: {connector: full}\nfamilies: {fi: {}}", "families: 'fi' is not known. Known: l"),
    ("summary: a\ntune: {connector: full}\nfamilies: [phi]", "families: expected a mapping"),
    ("summary: a\ntune: {connector: full}\nfamilies: {phi: {starts: parts}}", "families.phi: starts is"),
    ("summary: a\ntune: {connector: full}\nfamilies: {phi: {seed: x}}", "families.phi.seed: "),
    ("tune: {connector: full}", "summary: Field required"),
    ("extends: nothing", "'nothing' is not known"),
    ("extends: [lora]", r"extends is \['lora'\]"),
    ("extends: mine.yaml", "extends is 'mine.yaml', .* deep at most"),
    ("a: 1\na: 2", "in line 2: 'a' is there twice"),
    (BOMB, "in line 2: an alias"),
    ("<<: {a: 1}", "mine.yaml: "),
    ("a: !!python/object/apply:os.system [ls]", "in line 1: could not determine a constructor"),
    ("[" * 5000, "more than 20 deep"),
    ("a: " + "{b: " * 30, "more than 20 deep"),
    ("a: [", "not the YAML of a recipe in line"),
    ("just a text", "expected keys and values, found str"),
    ("", "expected keys and values, found NoneType"),
    ("\x00", "not the YAML of a recipe"),
    ("? [a]\n: b", "is there twice, or is no name"),
    ("a: b\n---\nc: d", "not the YAML of a recipe"),
    ("#" * 70_000, "mine.yaml: .*65,?536"),
])  # fmt: skip
def test_a_bad_recipe_is_named_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        open_recipe(str(path))
    assert str(caught.value).count("\n") == 0
    assert len(str(caught.value)) < 500


def test_bytes_that_are_no_text_and_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    for path, said in ((tmp_path / "mine.yaml", "not the YAML"), (tmp_path / "no.yaml", "cannot be read")):
        with pytest.raises(UsageError, match=said):
            open_recipe(str(path))


def test_a_name_that_is_not_known_has_its_nearest() -> None:
    with pytest.raises(
        UsageError, match=re.escape("'base-pretrian' is not known. Did you mean 'base-pretrain'?")
    ):
        open_recipe("base-pretrian")
