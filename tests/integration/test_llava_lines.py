"""Checkpoints that the code of LLaVA, Bunny, nanoVLM and others wrote, against what it computed with them."""

from pathlib import Path

import pytest

from tests.integration.checkpoint_lines import NAMES, NANOVLM, Torch, measure, open_line
from tests.integration.walk_lines import walk
from tinyllava_edge.benchmarks.verify.upstream_text import UpstreamTokenizer, upstream_prompt
from tinyllava_edge.model.assets import tokenizer_directory

SHORT = ("llava_llama-stage1",)  # of all ways through: two directories and a pickle


@pytest.mark.parametrize("name", [*NAMES, *NANOVLM])
def test_every_stage_is_upstreams(name: str) -> None:
    line = open_line(name)
    errors = measure(line, Torch(line))
    assert (errors.wrong_prompts, errors.wrong_ids, errors.wrong_greedy) == (0, 0, 0)
    assert errors.pixels == 0
    assert max(errors.tower, errors.connector) < 1e-5
    assert errors.logits < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_judge_says_what_upstream_said(name: str) -> None:
    line = open_line(name)
    tokenizer = UpstreamTokenizer(tokenizer_directory(line.checkpoint))
    for case in line.cases.values():
        marked = line.checkpoint.raw_config.get("mm_use_im_start_end")
        picture = "<im_start><image><im_end>" if marked else "<image>"
        assert upstream_prompt(line.assets.template.name, case.turns, picture=picture) == case.prompt
        assert tokenizer.encode_prompt(case.prompt) == case.ids


def _walked(name: str, folder: Path) -> None:
    line = open_line(name)
    walked = walk(line, folder)
    assert walked.codes == dict.fromkeys(("inspect", "export", "verify", "run"), 0), walked.stopped
    assert walked.same_answer
    assert walked.errors is not None
    assert (walked.errors.wrong_prompts, walked.errors.wrong_ids, walked.errors.wrong_greedy) == (0, 0, 0)
    assert walked.errors.pixels == 0
    assert max(walked.errors.tower, walked.errors.connector) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_user_gets_upstreams_answer(name: str, tmp_path: Path) -> None:
    _walked(name, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in (*NAMES, *NANOVLM) if name not in SHORT])
def test_every_user_gets_upstreams_answer(name: str, tmp_path: Path) -> None:
    _walked(name, tmp_path)
