"""Checkpoints that the code of LLaVA, Bunny and the others wrote, against what that code computed with them."""

import pytest

from tests.integration.checkpoint_lines import NAMES, Fixture
from tinyllava_edge.benchmarks.verify.upstream_text import UpstreamTokenizer, upstream_prompt
from tinyllava_edge.model.assets import tokenizer_directory


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_is_upstreams(name: str) -> None:
    errors = Fixture(name).measure()
    assert (errors.wrong_prompts, errors.wrong_ids, errors.wrong_greedy) == (0, 0, 0)
    assert errors.pixels == 0
    assert max(errors.tower, errors.connector) < 1e-5
    assert errors.logits < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_judge_says_what_upstream_said(name: str) -> None:
    fixture = Fixture(name)
    tokenizer = UpstreamTokenizer(tokenizer_directory(fixture.checkpoint))
    for case, given in fixture.golden["prompts"].items():
        marked = fixture.checkpoint.raw_config.get("mm_use_im_start_end")
        prompt = upstream_prompt(
            fixture.assets.template.name,
            [tuple(turn) for turn in given["turns"]],
            picture="<im_start><image><im_end>" if marked else "<image>",
        )
        assert prompt == given["prompt"]
        assert tokenizer.encode_prompt(prompt) == fixture.golden_ids(case)
