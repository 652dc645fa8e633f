"""The ladder's own prompts, ids and pixels of nanoVLM, against what upstream's code gave. No model is run."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.nanovlm import FOLDER, GENERATIONS, SOURCES, opened, oracle
from tinyllava_edge.benchmarks.verify.upstream_nanovlm import NanoVlmProcessor, NanoVlmTokenizer


@pytest.mark.parametrize("generation", GENERATIONS)
def test_prompts_ids_and_pixels_are_upstreams(generation: str) -> None:
    expected, raw = oracle(generation), opened(generation).raw_config
    tokenizer = NanoVlmTokenizer(SOURCES / raw["lm_tokenizer"], raw)
    assert (tokenizer.eos_id, len(tokenizer.pieces)) == (expected.eos_id, expected.tokens)
    length = raw.get("mp_image_token_length", 0)
    for prompt in expected.prompts.values():
        (question, answer), *others = prompt.turns
        text = tokenizer.prompt("", [(f"<image>\n{question}", answer), *others])
        assert text.replace("<image>", "<|image|>" * length) == prompt.text
        assert tokenizer.encode_prompt(text) == prompt.ids
    processor = NanoVlmProcessor(raw)
    for path, pixels in zip(expected.pictures, expected.pixels, strict=True):
        with Image.open(path) as picture:
            found = processor.pixels(np.asarray(picture.convert("RGB")))
        np.testing.assert_array_equal(found, pixels)


def test_stop_ids_are_the_eos_and_the_chats_end() -> None:
    raw = json.loads((FOLDER / "chat" / "config.json").read_text())
    base = SOURCES / "tiny-random" / "cosmo2"  # whose EOS is another than the template's end
    assert NanoVlmTokenizer(base, raw).stop_ids("", ()) == {0, 2}
    assert NanoVlmTokenizer(base, {}).stop_ids("", ()) == {0}
