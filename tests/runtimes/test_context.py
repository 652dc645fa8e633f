"""The context is reused as far as a new prompt agrees with it, and never further."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllava_edge.errors import BackendError
from tinyllava_edge.runtimes.base import Segment
from tinyllava_edge.runtimes.context import Context, Element, PictureRows, count_positions
from tinyllava_edge.runtimes.scripted import ScriptedLanguage

HIDDEN = 4


class Recorder(ScriptedLanguage):
    """The scripted backend, counting; it fails when it is told to."""

    def __init__(self) -> None:
        super().__init__([7], stop_id=2, vocab_size=50, hidden_size=HIDDEN, context_length=200)
        self.evaluated = 0
        self.fail_after: int | None = None

    def evaluate(self, segment: Segment, position: int, *, all_logits: bool = False) -> Any:
        logits = super().evaluate(segment, position, all_logits=all_logits)
        self.evaluated += len(segment)
        if self.fail_after is not None and self.evaluated > self.fail_after:
            raise BackendError("told to fail")
        return logits


def picture(number: int, tokens: int = 3) -> PictureRows:
    rows = np.full((tokens, HIDDEN), number, dtype=np.float32)
    return PictureRows(bytes([number]), rows)


ELEMENTS = st.lists(
    st.one_of(st.integers(3, 6), st.integers(1, 3).map(picture)), min_size=1, max_size=12
)  # few values, so that prompts share beginnings


@given(prompts=st.lists(ELEMENTS, min_size=1, max_size=4))
def test_reusing_a_context_gives_the_logits_of_an_empty_one(prompts: list[list[Element]]) -> None:
    used = Recorder()
    context = Context(used)
    for prompt in prompts:
        before = used.evaluated
        reused = context.prefill(prompt)
        assert reused + used.evaluated - before == count_positions(prompt)
        fresh = Context(Recorder())
        fresh.prefill(prompt)
        np.testing.assert_array_equal(context.last_logits(), fresh.last_logits())


def test_only_what_follows_the_common_beginning_is_evaluated() -> None:
    backend = Recorder()
    context = Context(backend)
    context.prefill([3, picture(1), 4, 5])
    assert backend.evaluated == 6
    context.append(6)
    assert context.prefill([3, picture(1), 4, 5, 6, 3, 3]) == 7
    assert backend.evaluated == 9
    assert context.prefill([3, picture(2), 4]) == 1


def test_the_same_prompt_again_evaluates_its_last_token_for_the_logits() -> None:
    backend = Recorder()
    context = Context(backend)
    context.prefill([3, picture(1), 4])
    expected = context.last_logits()
    assert context.prefill([3, picture(1), 4]) == 4
    np.testing.assert_array_equal(context.last_logits(), expected)


def prefill_and_append(context: Context, prompt: list[Element], token: int) -> None:
    context.prefill(prompt)
    context.append(token)


@pytest.mark.parametrize("fail_after", [0, 3, 6])
def test_after_a_failure_nothing_is_reused(fail_after: int) -> None:
    backend = Recorder()
    context = Context(backend)
    backend.fail_after = fail_after
    prompt: list[Element] = [3, picture(1), 4, 5]
    with pytest.raises(BackendError, match="told to fail"):
        prefill_and_append(context, prompt, 6)
    backend.fail_after = None
    assert context.prefill([*prompt, 6, 7]) == 0
    fresh = Context(Recorder())
    fresh.prefill([*prompt, 6, 7])
    np.testing.assert_array_equal(context.last_logits(), fresh.last_logits())


def test_all_logits_have_a_row_for_every_position() -> None:
    context = Context(Recorder())
    context.prefill([5, 5, 5])
    prompt: list[Element] = [3, picture(1), 4, 5]
    logits = context.all_logits(prompt)
    assert logits.shape == (6, 50)
    for length, row in ((1, 0), (2, 3), (3, 4), (4, 5)):
        fresh = Context(Recorder())
        fresh.prefill(prompt[:length])
        np.testing.assert_array_equal(fresh.last_logits(), logits[row])
