"""The runtime without weights: it keeps the contract, and spells its script."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from tests.runtimes.contract import LanguageContract, VisionContract
from tinyllava_edge.runtimes.scripted import ScriptedLanguage, ScriptedVision


def scripted(*script: int) -> ScriptedLanguage:
    return ScriptedLanguage(script, stop_id=2, vocab_size=300, hidden_size=16, context_length=256)


class TestLanguage(LanguageContract):
    @pytest.fixture
    def backend(self) -> Iterator[ScriptedLanguage]:
        backend = scripted(10, 11, 12)
        yield backend
        backend.close()


class TestVision(VisionContract):
    @pytest.fixture
    def backend(self) -> ScriptedVision:
        return ScriptedVision(image_size=8, num_tokens=5, hidden_size=16)

    @pytest.fixture
    def pixels(self) -> npt.NDArray[np.float32]:
        return np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)

    @pytest.fixture
    def shape(self) -> tuple[int, int]:
        return (5, 16)


@pytest.mark.parametrize("script", [(10, 11, 12), (7, 7, 8), (5, 6, 5, 6, 9)])
def test_greedy_decoding_spells_the_script_and_stops(script: tuple[int, ...]) -> None:
    backend = scripted(*script)
    backend.evaluate(np.array([100, 101, 102], dtype=np.int32), 0)
    for position, expected in enumerate([*script, 2], start=3):
        token = int(backend.last_logits().argmax())
        assert token == expected
        backend.evaluate(np.array([token], dtype=np.int32), position)
    assert int(backend.last_logits().argmax()) == script[0]  # the next turn says it again
