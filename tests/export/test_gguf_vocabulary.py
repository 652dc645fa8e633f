"""The vocabulary of a GGUF file, judged by llama.cpp's own tokenizer and by the SentencePiece library."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import jinja2.sandbox
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.export.llamacpp import opened, token_ids
from tinyllava_edge.errors import ExportError
from tinyllava_edge.export.gguf_vocabulary import add_vocabulary, build_vocabulary
from tinyllava_edge.export.interchange.picture_prompt import chat_template
from tinyllava_edge.model.tokenizer import TokenizerAssets, read_tokenizer
from tinyllava_edge.prompt import TEMPLATES
from tinyllava_edge.tokenizer_splits import PRE_TOKENIZERS

LLAMA_2 = Path(__file__).parents[1] / "fixtures" / "tokenizers" / "llama-spm"
TEXTS = [
    "What is this?",
    " leading, trailing and  double spaces ",
    "line\nfeed\r\n\ttab",
    "3 33 333 3333 33333 1,234.56 2^10",
    "I've been told he's there; 'RE you sure? We'Ve",
    "naïve café, Größe, ΑΒΓ, нещо на Български, 我想在apple工作, កាន់តែ",
    "🚀 😶\u200d🌫️ ✅ x\u0301",
    "======= ```` ......!!!!!!??????",
    "A chat between a curious user and an artificial intelligence assistant. USER: <image> ASSISTANT:",
    "def f(x):\n    return {x: [1, 2]}\n\n\n",
]


def write_vocabulary_file(path: Path, assets: TokenizerAssets, vocab_size: int) -> None:
    """A GGUF file that has a vocabulary and no weights."""
    writer = gguf.GGUFWriter(path, "llama")
    add_vocabulary(writer, build_vocabulary(assets, vocab_size), assets)
    for name in ("context_length", "embedding_length", "block_count", "feed_forward_length"):
        writer.add_uint32(f"llama.{name}", 64)
    writer.add_uint32("llama.attention.head_count", 4)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def llama_2() -> TokenizerAssets:
    return read_tokenizer(LLAMA_2)


def test_pieces_scores_and_types_are_those_of_the_sentencepiece_model(llama_2: TokenizerAssets) -> None:
    vocabulary = build_vocabulary(llama_2, 32008)
    pieces = sentencepiece.SentencePieceProcessor()
    pieces.Load(str(LLAMA_2 / "tokenizer.model"))
    assert vocabulary.scores is not None
    for index in range(32000):
        assert vocabulary.tokens[index] == pieces.IdToPiece(index)
        assert vocabulary.scores[index] == pieces.GetScore(index)
        assert (vocabulary.types[index] == gguf.TokenType.BYTE) == pieces.IsByte(index)
        assert (vocabulary.types[index] == gguf.TokenType.CONTROL) == pieces.IsControl(index)
        assert (vocabulary.types[index] == gguf.TokenType.UNKNOWN) == pieces.IsUnknown(index)
    assert vocabulary.types[32000:] == [gguf.TokenType.UNUSED] * 8


@pytest.mark.parametrize("scores", ["of the model", "from the merges"])
def test_llama_cpp_gives_the_ids_of_tokenizer_json_with_llama_2s_vocabulary(
    llama_2: TokenizerAssets, tmp_path: Path, scores: str
) -> None:
    """Also where tokenizer.json is all there is, and scores are made from its merges."""
    assets = llama_2 if scores == "of the model" else replace(llama_2, sentencepiece_model=None)
    write_vocabulary_file(tmp_path / "vocabulary.gguf", assets, 32000)
    exact = Tokenizer.from_str(assets.tokenizer_json)
    with opened(tmp_path / "vocabulary.gguf", vocabulary_only=True) as model:
        for text in TEXTS:
            assert token_ids(model, text) == exact.encode(text, add_special_tokens=False).ids, text


# As in the tokenizer.json of Qwen2 and, with {1,3}, of Llama 3.
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def _split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# The settings of the public tokenizers, and their names in llama.cpp.
BYTE_LEVEL: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": lambda: _split(_GPT4 % ""),
    "llama-bpe": lambda: _split(_GPT4 % "{1,3}"),
}


def byte_level_assets(name: str) -> TokenizerAssets:
    """A byte-level BPE vocabulary of 600 tokens, trained on the texts above and on this file."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = BYTE_LEVEL[name]()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, Path(__file__).read_text(encoding="utf-8")], trainer)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    end = tokenizer.token_to_id("<|endoftext|>")
    return TokenizerAssets(
        tokenizer_json=tokenizer.to_str(),
        adds_bos=False,
        bos_id=end,
        eos_id=end,
        unk_id=None,
        pad_id=None,
        sentencepiece_model=None,
    )


def test_every_known_way_to_split_is_tested_here() -> None:
    assert set(PRE_TOKENIZERS.values()) == set(BYTE_LEVEL)


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_llama_cpp_gives_the_ids_of_tokenizer_json_with_a_byte_level_vocabulary(
    name: str, tmp_path: Path
) -> None:
    assets = byte_level_assets(name)
    vocabulary = build_vocabulary(assets, 640)
    assert vocabulary.pre == name
    write_vocabulary_file(tmp_path / "vocabulary.gguf", assets, 640)
    exact = Tokenizer.from_str(assets.tokenizer_json)
    with opened(tmp_path / "vocabulary.gguf", vocabulary_only=True) as model:
        for text in TEXTS:
            assert token_ids(model, text) == exact.encode(text, add_special_tokens=False).ids, text
        with_special = "one<|endoftext|>two<tool>three"
        assert token_ids(model, with_special, special=True) == exact.encode(with_special).ids

    @settings(max_examples=60)
    @given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cn", "Co"]), max_size=30))
    def any_text(text: str) -> None:
        assert token_ids(model, text) == exact.encode(text, add_special_tokens=False).ids

    with opened(tmp_path / "vocabulary.gguf", vocabulary_only=True) as model:
        any_text()


def changed(assets: TokenizerAssets, change: Callable[[dict[str, Any]], object]) -> TokenizerAssets:
    data = json.loads(assets.tokenizer_json)
    change(data)
    return replace(assets, tokenizer_json=json.dumps(data))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda d: d["pre_tokenizer"].update(add_prefix_space=True),
            ["ByteLevel", "gpt-2, smollm, llama-bpe"],
        ),
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), ["Whitespace", "qwen2"]),
        (lambda d: d.update(normalizer={"type": "Lowercase"}), ["Lowercase"]),
        (lambda d: d["model"].update(type="WordPiece"), ["WordPiece", "only BPE"]),
        (lambda d: d["added_tokens"][0].update(content="a"), ["'a'", "twice"]),
        (lambda d: d["added_tokens"][0].update(id=9999), ["without a gap"]),
    ],
)
def test_a_tokenizer_without_a_counterpart_is_refused(change: Any, words: list[str]) -> None:
    assets = changed(byte_level_assets("gpt-2"), change)
    with pytest.raises(ExportError) as caught:
        build_vocabulary(assets, 640)
    for word in words:
        assert word in str(caught.value)


def test_tokens_past_the_models_last_row_are_refused(llama_2: TokenizerAssets) -> None:
    with pytest.raises(ExportError, match="32000 tokens, the model only 31999 rows"):
        build_vocabulary(llama_2, 31999)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "pretrain"])
def test_the_chat_template_renders_what_the_prompt_is(name: str) -> None:
    template = TEMPLATES[name]
    jinja = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(chat_template(template, "USER:"))
    one = {"role": "user", "content": "What is {question} this?"}
    two = {"role": "assistant", "content": "A 'cat' \"here\"\n"}
    three = {"role": "user", "content": "Why?"}
    turns = [(one["content"], two["content"]), (three["content"], None)]
    assert jinja.render(messages=[one, two, three], add_generation_prompt=True) == template.render(turns)
    assert jinja.render(messages=[one, two]) == template.render(turns[:1])
    system = {"role": "system", "content": "Be brief."}
    told = {
        "chatml_direct": "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nWhy?<|im_end|>"
        "<|im_start|>assistant\n",
        **dict.fromkeys(
            ("qwen_1_5", "qwen_2", "qwen_2_5"),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        "phi3_instruct": "<|system|>\nBe brief.<|end|>\n<|user|>\nWhy?<|end|>\n<|assistant|>\n",
        "llava_llama_2": "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhy? [/INST]",
        "llava_pp_llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Be brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "plain": "Be brief. Why?\n",
        # No place for a system text: it is left out.
        **{name: template.render(turns[1:]) for name in TEMPLATES if name.startswith("nanovlm")},
    }.get(name, "Be brief. USER: Why? ASSISTANT:")
    assert jinja.render(messages=[system, three], add_generation_prompt=True) == told
    if template.frame:
        assert template.with_system("Be brief.").render([("Why?", None)]) == told
