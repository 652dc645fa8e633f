"""The ladder's own prompts and token ids, against what the original TinyLLaVA code gave. No model is run."""

import json
import shutil
from pathlib import Path

import pytest

from tinyllava_edge.benchmarks.verify.reference import TextCase
from tinyllava_edge.benchmarks.verify.stage_inputs import is_plain
from tinyllava_edge.benchmarks.verify.upstream_text import UpstreamTokenizer, conversations, upstream_prompt
from tinyllava_edge.errors import CheckpointError
from tinyllava_edge.export.gguf_vocabulary import build_vocabulary
from tinyllava_edge.manifest import PromptSpec
from tinyllava_edge.model.tokenizer import read_tokenizer
from tinyllava_edge.prompt import TEMPLATES, place_markers

# tokenized_conversations of the golden fixture tinyllama-clip-mlp2x-pad, whose vocabulary the tiny one is.
GOLDEN = json.loads((Path(__file__).parent / "golden_tiny_ids.json").read_text(encoding="utf-8"))
TINY_TOKENIZER = Path(__file__).parents[2] / "fixtures" / "tiny-tokenizer"


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: str(case["name"]))
def test_prompt_and_ids_are_the_original_codes(case: dict[str, object]) -> None:
    turns = [(question, answer) for question, answer in case["turns"]]  # type: ignore[attr-defined]
    prompt = upstream_prompt("llama", turns)
    assert prompt == case["prompt"]
    assert UpstreamTokenizer(TINY_TOKENIZER).encode_prompt(prompt) == case["input_ids"]


def test_nanovlms_chat_in_another_layout_is_what_the_runtime_makes_of_it() -> None:
    turns = [("<image>\nWhat?", "A cat."), ("Sure?", None)]
    user, assistant = "<|im_start|>user\n", "<|im_start|>assistant\n"
    first = f"{user}<image>What?<|im_end|>\n{assistant}A cat.<|im_end|>\n"
    assert upstream_prompt("nanovlm_chat", turns) == f"{first}{user}Sure?<|im_end|>\n{assistant}"
    template = TEMPLATES["nanovlm_chat"]
    for asked in conversations():
        rendered = template.render(place_markers(asked, None, template))
        assert upstream_prompt("nanovlm_chat", asked) == rendered


def test_a_template_that_only_we_know_is_one_line() -> None:
    with pytest.raises(CheckpointError, match=r"template 'pretrain': .* Without --checkpoint"):
        upstream_prompt("pretrain", [("<image>", None)])


def test_joint_tokenization_differs_behind_the_picture_only() -> None:
    tokenizer = UpstreamTokenizer(TINY_TOKENIZER)
    prompt = upstream_prompt("llama", [("<image>\nWhat is this?", None)])
    right, wrong = tokenizer.encode_prompt(prompt), tokenizer.encode_jointly(prompt)
    picture = right.index(-200)
    assert wrong != right
    assert wrong[: picture + 1] == right[: picture + 1]


def test_special_text_becomes_the_special_token() -> None:
    assert UpstreamTokenizer(TINY_TOKENIZER).encode_prompt("a</s>")[-1] == 2


def test_the_end_string_and_eos_stop_an_answer() -> None:
    tokenizer = UpstreamTokenizer(TINY_TOKENIZER)
    assert tokenizer.stop_ids("llama", (2,)) == {2}
    assert tokenizer.stop_ids("phi", (7,)) == {2, 7}  # phi's end is not in this vocabulary


def test_a_byte_level_tokenizer_is_read_by_transformers(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        ["what is this"] * 9,
        trainers.BpeTrainer(
            special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    upstream = UpstreamTokenizer(tmp_path)
    assert upstream.bos_id is None
    assert upstream.encode_prompt("what<image> is") == [
        *tokenizer.encode("what").ids,
        -200,
        *tokenizer.encode(" is").ids,
    ]
    assert upstream.stop_ids("phi", ()) == {tokenizer.token_to_id("<|endoftext|>")}


def test_there_are_over_two_hundred_different_conversations() -> None:
    prompts = {upstream_prompt("llama", turns) for turns in conversations()}
    assert len(prompts) >= 250
    assert any("\U0001f431" in prompt for prompt in prompts)


def test_a_vocabulary_without_bos_starts_without_one(tmp_path: Path) -> None:
    shutil.copytree(TINY_TOKENIZER, tmp_path / "t")
    path = tmp_path / "t" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": False}))
    assert UpstreamTokenizer(tmp_path / "t").encode_prompt("")[:1] == []


def test_a_pictures_marker_is_no_token_though_the_vocabulary_has_it() -> None:
    spec = PromptSpec.model_construct(template=TEMPLATES["llama"], bos_id=1)
    case = TextCase((("<image>\nWhat?", None),), None, (1, 5, -200, 6))
    specials = {"<image>": 450, "</s>": 2}
    assert is_plain(case, [1, 5, -200, 6], specials, spec)
    assert not is_plain(case, [1, 5, 450, 6], specials, spec)


def test_a_sentencepiece_vocabulary_in_tokenizer_json_is_llama_cpps_llama(tmp_path: Path) -> None:
    """As transformers 5 saves it, without tokenizer.model: what is exported, and what the judge expects."""
    shutil.copy(TINY_TOKENIZER / "tokenizer_config.json", tmp_path)
    (tmp_path / "tokenizer.json").write_text(read_tokenizer(TINY_TOKENIZER).tokenizer_json)
    upstream, exported = UpstreamTokenizer(tmp_path), build_vocabulary(read_tokenizer(tmp_path), 450)
    assert (exported.model, upstream.merges) == ("llama", None)
    assert upstream.scores == exported.scores
