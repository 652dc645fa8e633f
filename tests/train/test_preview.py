"""What `train --preview` shows is what the model gets; no weights are there."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.train.own_data import write_own_data
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import UsageError
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.prompt import TextTokenizer, template_named
from tinyllava_edge.train import preview
from tinyllava_edge.train.batches import Encoded
from tinyllava_edge.train.cli import train
from tinyllava_edge.train.data import encode_conversation, splice_labels
from tinyllava_edge.train.preview import cut_pieces

ANSWERS = {"It is red.", "It is green.", "It is blue.", "It is white.", "It is black.", "Yes."}


@pytest.fixture
def without_weights(source: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "ck"
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def tokenizer(source: Path) -> TextTokenizer:
    return read_assets(Checkpoint(source)).text_tokenizer()


def _pieces(tokenizer: TextTokenizer, limit: int) -> list[tuple[str, str, int]]:
    turns = [("<image>\n<image>\nSame?", "No."), ("Sure?", "Yes.")]
    ids, labels = encode_conversation(tokenizer, template_named("llama"), turns)
    encoded = Encoded(ids, labels, len(splice_labels(ids, labels, 4)))
    return [(p["kind"], p["text"], p["positions"]) for p in cut_pieces(encoded, tokenizer, 4, limit)]


def test_the_pieces_are_the_prompt_with_what_is_learned(tokenizer: TextTokenizer) -> None:
    found = _pieces(tokenizer, 512)
    learned = [text.strip() for kind, text, _ in found if kind == "learned"]
    assert learned == ["No.</s>", "Yes.</s>"]
    assert [text for kind, text, _ in found if kind == "picture"] == ["<image x4>"] * 2
    shown = "".join(text for _, text, _ in found).replace("<image x4>", "<image>")
    prompt = template_named("llama").render([("<image>\n<image>\nSame?", "No."), ("Sure?", "Yes.")])
    assert shown.removeprefix("<s>").split() == prompt.split()


def test_what_is_cut_is_no_part_of_the_pieces(tokenizer: TextTokenizer) -> None:
    whole = _pieces(tokenizer, 512)
    before = whole[0][2]
    for limit in range(1, sum(size for _, _, size in whole) + 1):
        found = _pieces(tokenizer, limit)
        assert sum(size for _, _, size in found) == limit
        assert [kind for kind, _, _ in found] == [kind for kind, _, _ in whole[: len(found)]]
    assert _pieces(tokenizer, before + 3)[1] == ("picture", "<image x3>", 3)


def test_lengths_are_those_of_a_list_worked_out_by_hand() -> None:
    assert preview._lengths(list(range(1, 21)), 15) == {
        "samples": 20,
        "median": 10,
        "p95": 19,
        "longest": 20,
        "cut": 0.25,
    }


def test_the_command_shows_samples_lengths_and_what_is_bad(
    without_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_own_data(tmp_path)
    data.write_text(json.dumps([*json.loads(data.read_text()), {"id": "bad"}]))
    for path in tmp_path.glob("*.png"):
        path.unlink()  # none is opened

    def shown(**more: Any) -> str:
        train(data=[data], source=str(without_weights), preview=True, **more)
        return capsys.readouterr().out

    found = json.loads(shown(json=True))
    assert (len(found["samples"]), found["bad"], found["lengths"]["samples"]) == (
        10,
        {"malformed record": 1},
        10,
    )
    assert found["data"][0]["samples"] == 11
    positions = {sample["id"]: sample["positions"] for sample in found["samples"]}
    assert found["lengths"]["longest"] == max(positions.values())
    for sample in found["samples"]:
        assert sum(piece["positions"] for piece in sample["pieces"]) == sample["positions"]
        learned = {p["text"].strip().removesuffix("</s>") for p in sample["pieces"] if p["kind"] == "learned"}
        assert learned <= ANSWERS
    cut = json.loads(shown(json=True, max_length=max(positions.values()) - 1))
    assert 0 < cut["lengths"]["cut"] <= 0.5
    text = shown(samples=2)
    assert text.count("[[") == text.count("</s>]]") >= 2
    assert text.count(f"{data}: record ") == 2
    assert "passed over as bad: 1 x malformed record" in text
    screen = io.StringIO()
    monkeypatch.setattr(
        preview, "stdout", Console(file=screen, force_terminal=True, color_system="standard", width=200)
    )
    assert not shown(samples=2)
    assert "[[" not in screen.getvalue()
    assert "\x1b[1;32m" in screen.getvalue()
    with pytest.raises(UsageError, match="--samples is of --preview"):
        train(data=[data], source=str(without_weights), check=True, samples=3)
