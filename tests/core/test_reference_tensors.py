"""What export writes into reference/ is what is read, and a part that is missing is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.core.small_bundle import FILES, seal
from tinyllava_edge.bundle import Bundle, create_bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.errors import BundleError
from tinyllava_edge.reference_tensors import (
    ReferencePrompt,
    ReferenceTensors,
    read_reference_tensors,
    reference_pictures,
    write_reference_tensors,
)

PROMPT = ReferencePrompt(
    name="one",
    turns=(("<image>\nÄ?", None),),
    pictures=(1,),
    input_ids=(1, -200, 7),
    positions=37,  # 2 ids, and a picture of 35 rows
    logit_positions=(35, 36),
    greedy_ids=(9, 2),
    greedy_margins=(0.125, 3.5),
)


def written(folder: Path, change: Any = lambda contents: None) -> tuple[Bundle, ReferenceTensors]:
    """A bundle with a reference of two pictures, `reference.json` changed before it is sealed."""
    pictures = [folder / name for name in ("a.png", "b.png")]
    for picture in pictures:
        picture.write_bytes(picture.name.encode())
    # The sizes that the manifest of `seal` says.
    numbers = np.random.default_rng(0).standard_normal((2, 3, 96, 96)).astype(np.float32)
    embeddings = numbers.reshape(-1)[: 2 * 35 * 256].reshape(2, 35, 256)
    reference = ReferenceTensors(
        pictures=pictures,
        pixels=numbers,
        tower=numbers[:, 0],
        embeddings=embeddings,
        prompts=[PROMPT],
        logits={"one": embeddings[0].reshape(-1)[:1000].reshape(2, 500)},
    )
    with create_bundle(folder / "bundle") as writer:
        for name, content in FILES.items():
            if not name.startswith("reference/"):
                (writer.root / name).parent.mkdir(exist_ok=True)
                (writer.root / name).write_bytes(content)
        write_reference_tensors(writer.root, reference)
        path = writer.root / "reference/reference.json"
        contents = json.loads(path.read_text(encoding="utf-8"))
        change(contents)
        path.write_text(json.dumps(contents), encoding="utf-8")
        seal(writer)
    return Bundle.open(folder / "bundle"), reference


def test_what_is_written_is_read(tmp_path: Path) -> None:
    bundle, reference = written(tmp_path)
    found = read_reference_tensors(bundle)
    assert found.prompts == (PROMPT,)
    for name in ("pixels", "tower", "embeddings"):
        np.testing.assert_array_equal(getattr(found, name), getattr(reference, name))
    np.testing.assert_array_equal(found.logits["one"], reference.logits["one"])
    assert [path.read_bytes() for path in reference_pictures(bundle)] == [b"a.png", b"b.png"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda contents: contents["prompts"][0].pop("greedy_ids"),
            r"json: prompts\.0\.greedy_ids",
        ),
        (lambda contents: contents["prompts"][0].update(name="two"), r"reference\.npz: .*logits/two"),
        (lambda contents: contents["pictures"].append("c.png"), r"lists no file 'reference/c\.png'"),
        (lambda contents: contents.update(extra=1), r"json: extra"),
        (lambda contents: contents.update(pictures=[]), r"json: pictures"),
        (lambda contents: contents["prompts"].append(contents["prompts"][0]), "'one' is there twice"),
        (lambda contents: contents["prompts"][0].update(turns=[]), "nobody can ask"),
        (lambda contents: contents["prompts"][0].update(pictures=[0, 1]), "nobody can ask"),
        (lambda contents: contents["prompts"][0].update(pictures=[2]), "impossible pictures"),
        (lambda contents: contents["prompts"][0].update(input_ids=[1, -200, 500]), "impossible input_ids"),
        (lambda contents: contents["prompts"][0].update(input_ids=[1, 7]), "input_ids, positions"),
        (lambda contents: contents["prompts"][0].update(positions=36), "impossible positions"),
        (lambda contents: contents["prompts"][0].update(logit_positions=[36, 35]), "logit_positions"),
        (lambda contents: contents["prompts"][0].update(greedy_margins=[1]), "greedy_margins"),
        (lambda contents: contents["prompts"][0].update(greedy_margins=[1, -1]), "greedy_margins"),
        (lambda contents: contents["prompts"][0].update(greedy_ids=[9, 500]), "greedy_ids"),
    ],
)
def test_a_part_that_is_missing_is_named(tmp_path: Path, change: Any, said: str) -> None:
    bundle, _ = written(tmp_path, change)
    with pytest.raises(BundleError, match=said):
        read_reference_tensors(bundle)


def test_the_shipped_reference_is_read() -> None:
    found = read_reference_tensors(Bundle.open(bundle_path("nano")))
    assert found.pixels.shape == (3, 3, 96, 96)
    assert found.embeddings.shape == (3, 35, 256)
    assert [prompt.name for prompt in found.prompts] == ["single", "two_turns", "text_only", "two_pictures"]
