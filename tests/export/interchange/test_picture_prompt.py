"""What llama.cpp's own programs tokenise around a picture are upstream's ids."""

from pathlib import Path

import jinja2.sandbox
import pytest

from tests.export.gguf_files import language_source
from tests.export.llamacpp import opened, token_ids
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.config import IMAGE_TOKEN_ID
from tinyllava_edge.export.interchange.picture_prompt import chat_template, modelfile, picture_prompt
from tinyllava_edge.export.language_gguf import LanguageSource, write_language_gguf
from tinyllava_edge.prompt import TEMPLATES, place_markers

MARKERS = ["<__media__>", "<__media_Xy3f9__>"]


def rendered(source: LanguageSource, content: str, before: str) -> str:
    jinja = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(
        chat_template(source.assets.template, before)
    )
    message = {"role": "user", "content": content}
    return str(jinja.render(messages=[message], add_generation_prompt=True))


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("content", ["{}What is this?", "What is this?{}", "{} Why so\n?"])
def test_ids_around_a_picture_are_upstreams(
    source: LanguageSource, content: str, marker: str, tmp_path: Path
) -> None:
    write_language_gguf(tmp_path / "f16.gguf", source, "f16")
    prompt = source.picture_prompt()
    pieces = rendered(source, content.format(marker), prompt.before).split(marker)
    with opened(tmp_path / "f16.gguf", vocabulary_only=True) as model:
        before, after = (token_ids(model, piece, special=True) for piece in pieces)
    turns = place_markers([(content.format("<image>"), None)], 1)
    expected = source.assets.text_tokenizer().encode(source.assets.template, turns)
    split = expected.index(IMAGE_TOKEN_ID)
    assert prompt.row_id is not None
    assert [source.assets.bos_id, *before, prompt.row_id] == expected[:split]
    assert after == expected[split + 1 :]


def test_a_tower_whose_token_0_is_kept_has_the_whole_text(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", select_strategy="cls_patch")
    source = language_source(checkpoint)
    prompt = picture_prompt(source.assets, source.checkpoint.config.vision)
    assert (prompt.before, prompt.row_id) == ("USER: ", None)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "pretrain"])
def test_two_pictures_in_one_question_stay_where_they_are(name: str) -> None:
    jinja = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(
        chat_template(TEMPLATES[name], "USER:")
    )
    content = "<__media__>and<__media__>differ?"
    text = jinja.render(messages=[{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == TEMPLATES[name].render([(content, None)])


def test_the_modelfile_names_both_files_and_stops_at_the_end(source: LanguageSource) -> None:
    text = modelfile(source.assets.template, source.picture_prompt(), "language/q8_0.gguf", "mmproj.gguf")
    assert text.startswith("FROM ./language/q8_0.gguf\nFROM ./mmproj.gguf\n")
    assert "USER:{{ slice .Prompt 0 7 }}\n{{ slice .Prompt 7 }}" in text
    assert 'PARAMETER stop "</s>"' in text
