"""Whether a bundle fits, with memories of sizes that decide it."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from tests.test_cli import assert_one_line, run
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.cli import app
from tinyllava_edge.errors import UsageError
from tinyllava_edge.memory_fit import Target, best_setting, find_target, fit_facts, verdict
from tinyllava_edge.memory_plan import MIB, chosen_setting


@pytest.fixture
def nano() -> Bundle:
    return Bundle.open(bundle_path("nano"))


def target_with(free: int) -> Target:
    board = find_target("orin-nano-8gb")
    return replace(board, host_free_bytes=free)


def needed(bundle: Bundle, **asked: str) -> int:
    plan = target_with(0).plan(bundle, chosen_setting(bundle, **asked))  # type: ignore[arg-type]
    return plan.host_bytes + plan.gpu_bytes


def test_what_does_not_fit_says_the_numbers_and_what_would(nano: Bundle) -> None:
    asked = chosen_setting(nano, kv_type="f32")
    tight = target_with(needed(nano, kv_type="f16"))
    facts = fit_facts(nano, tight, asked)
    assert not facts["fits"]
    fitting = {each["change"] for each in facts["smaller"] if each["fits"]}
    assert "--kv-type f16" in fitting
    assert "--language q8_0" not in fitting  # 2 MiB less, of 8 that are missing
    assert "would fit" in verdict(facts)
    assert f"{needed(nano, kv_type='f32') / (1 << 30):.2f} GiB" in verdict(facts)


def test_the_best_that_fits_is_the_most_precise(nano: Bundle) -> None:
    asked = chosen_setting(nano)
    exactly = needed(nano)
    assert best_setting(nano, target_with(exactly), asked) == asked
    less = best_setting(nano, target_with(exactly - 1), asked)
    assert less is not None
    assert less.language == "q8_0"
    assert best_setting(nano, target_with(MIB), asked) is None
    assert "no verified variants" in verdict(fit_facts(nano, target_with(MIB), asked))


def test_a_cards_memory_is_compared_with_what_the_gpu_holds(nano: Bundle) -> None:
    card = find_target("rtx-4060")
    facts = fit_facts(nano, card, chosen_setting(nano))
    # 8 GiB less the half that boards.py keeps for the system.
    assert facts["needed"] == [
        {"memory": "memory of the GPU", "needed": facts["gpu_bytes"], "free": 15 << 29}
    ]


def test_an_unknown_device_is_one_line_with_the_names() -> None:
    with pytest.raises(UsageError, match="orin-nano-8gb"):
        find_target("orin")
    assert_one_line("inspect", "nano", "--device", "orin", named=("orin-nano-8gb", "here"))
    assert_one_line("inspect", "nano", "--kv-type", "q8_0", named=("--device",))


def test_inspect_says_it_for_programs_and_for_people() -> None:
    result = run("inspect", "nano", "--device", "orin-nano-8gb", "--json")
    facts = json.loads(result.stdout)
    assert facts["fits"]
    assert facts["host_bytes"] + facts["gpu_bytes"] == sum(line["bytes"] for line in facts["lines"])
    assert facts["verdict"].startswith("fits orin-nano-8gb")
    shown = run("inspect", "nano", "--device", "here").stdout
    assert "KV cache" in shown
    assert "fits here" in shown


def test_inspect_ends_with_1_where_it_does_not_fit() -> None:
    """As `doctor` and `verify` do: done, and the answer is no."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinyllava_edge.fit_cli.find_target", lambda name: target_with(1))
        result = CliRunner().invoke(app, ["inspect", "nano", "--device", "orin-nano-8gb", "--json"])
    assert result.exit_code == 1, result.output
    assert json.loads(result.stdout)["fits"] is False
