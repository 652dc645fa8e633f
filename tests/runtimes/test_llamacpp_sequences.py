"""Several sequences of one llama.cpp context, each as if it were alone. CPU."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.runtimes import bundles
from tests.runtimes.contract import LanguageContract
from tests.runtimes.scripted_models import scripted_model
from tests.runtimes.test_llamacpp import open_gguf
from tests.runtimes.tiny_gguf import write_tiny_gguf
from tinyllava_edge import Model, open_bundle
from tinyllava_edge.errors import BackendError, UsageError
from tinyllava_edge.runtimes.base import StopFlag, StoppedError
from tinyllava_edge.runtimes.llamacpp_library import load_library
from tinyllava_edge.runtimes.llamacpp_sequences import Part, SequenceLanguage
from tinyllava_edge.runtimes.stream import Stream

ROOT = Path(__file__).parents[2]
PICTURES = [
    *sorted((ROOT / "examples" / "demo" / "pictures").iterdir())[:6],
    ROOT / "docs" / "pictures" / "cat.jpg",
]
JOBS = [(question, picture) for picture in PICTURES for question in ("What is this?", "What colour is it?")]
LONG = "root ::= [a-z ]{60,80}"


class TestSequence(LanguageContract):
    """The middle one of three, the others empty."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[SequenceLanguage]:
        spec, _ = write_tiny_gguf(tmp_path / "f32.gguf", head_dim=32)
        whole = open_gguf(tmp_path / "f32.gguf", spec)
        divided = whole.divide(3)
        yield divided[1]
        divided[1].close()
        whole.close()


def answered(model: Model, job: tuple[str, Path]) -> Stream:
    stream = model.answer([(job[0], None)], job[1], grammar=LONG, max_tokens=40, logprobs=2)
    list(stream)
    return stream


def test_four_at_a_time_answer_as_one_does_within_the_rule_of_margins() -> None:
    """An id differs only where the two best are nearer than twice what a logit is off by, which is little."""
    with open_bundle("nano", threads=1) as alone, open_bundle("nano", threads=1) as whole:
        wanted = [answered(alone, job) for job in JOBS]
        models, free = whole.divide(4), threading.local()
        lock, left = threading.Lock(), list(models)

        def work(job: tuple[str, Path]) -> Stream:
            with lock:
                free.model = getattr(free, "model", None) or left.pop()
            return answered(free.model, job)

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(work, JOBS))
        sequences = models[0].language._sequences  # type: ignore[attr-defined]
        for model in models:
            model.close()
    off = 0.0
    for one, other in zip(wanted, found, strict=True):
        for mine, yours in zip(one.logprobs or (), other.logprobs or (), strict=False):
            off = max(off, abs(mine.top[0].logprob - yours.top[0].logprob))
            if mine.id != yours.id:
                assert mine.top[0].logprob - mine.top[1].logprob < 2 * off
                break
    assert off < 0.05
    assert sum(one.ids == other.ids for one, other in zip(wanted, found, strict=True)) > len(JOBS) // 2
    assert sequences.steps < sum(len(one.ids) for one in wanted), "some were decoded together"


def test_what_one_sequence_holds_is_not_the_others(tmp_path: Path) -> None:
    spec, _ = write_tiny_gguf(tmp_path / "f32.gguf", head_dim=32)
    alone, whole = (open_gguf(tmp_path / "f32.gguf", spec) for _ in range(2))
    sequences = whole.divide(2)
    prompts = [np.arange(start, start + 40, dtype=np.int32) for start in (3, 100)]
    wanted = []
    for prompt in prompts:
        alone.truncate(0)
        alone.evaluate(prompt, 0)
        wanted.append(alone.last_logits())
    for language, prompt in zip(sequences, prompts, strict=True):
        language.evaluate(prompt[:30], 0)
    state = sequences[0].save_state()
    sequences[1].truncate(0)
    for language, prompt, start in zip(sequences, prompts, (30, 0), strict=True):
        language.evaluate(prompt[start:], start)
    for language, logits in zip(sequences, wanted, strict=True):
        np.testing.assert_allclose(language.last_logits(), logits, atol=1e-3)
    sequences[1].load_state(state, 30)
    sequences[1].evaluate(prompts[0][30:], 30)
    np.testing.assert_allclose(sequences[1].last_logits(), wanted[0], atol=1e-3)
    with pytest.raises(BackendError, match="was divided"):
        whole.evaluate(prompts[0], 0)
    alone.close()
    whole.close()


def test_a_batch_that_fails_fails_for_all_of_it_and_for_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _ = write_tiny_gguf(tmp_path / "f32.gguf", head_dim=32)
    whole = open_gguf(tmp_path / "f32.gguf", spec)
    first, second = whole.divide(2)
    ids = np.arange(5, dtype=np.int32)
    second.evaluate(ids, 0)
    monkeypatch.setattr(load_library().bindings, "llama_decode", lambda *_: -1)
    with pytest.raises(BackendError, match=r"returned -1 \(invalid batch\)"):
        first.evaluate(ids, 0)
    monkeypatch.undo()
    second.evaluate(ids, 5)
    first.truncate(0)
    first.evaluate(ids, 0)
    flag = StopFlag()
    flag.set()
    first.heed(flag)
    with pytest.raises(StoppedError):
        first.evaluate(ids, 5)
    whole.close()


def test_a_runtime_that_has_one_sequence_says_so(tmp_path: Path) -> None:
    model = scripted_model(bundles.write_bundle(tmp_path / "bundle"), "yes")
    with pytest.raises(UsageError, match="leave --parallel out"):
        model.divide(2)


def test_a_batch_of_all_sequences_may_have_more_rows_than_one_context(tmp_path: Path) -> None:
    """llama.cpp ends the whole process where a batch has more than it was made for."""
    spec, _ = write_tiny_gguf(tmp_path / "f32.gguf", head_dim=32, context=64)
    whole = open_gguf(tmp_path / "f32.gguf", spec)
    sequences = whole.divide(4)[0]._sequences
    ids = np.arange(50, dtype=np.int32)
    parts = [Part(sequence=number, rows=ids, position=0, wanted=1) for number in range(4)]
    sequences._waiting += parts
    with sequences._turn:
        sequences._step()
    assert (sequences.steps, sequences.rows) == (1, 200)
    logits = np.concatenate([part.logits for part in parts if part.logits is not None])
    np.testing.assert_allclose(logits, np.broadcast_to(logits[0], (4, 300)), atol=1e-4)
    whole.close()


def test_closing_a_divided_model_waits_for_what_its_parts_compute() -> None:
    """Else the weights would be freed under a thread that computes with them."""
    whole = open_bundle("nano", threads=1)
    first, second = whole.divide(2)
    encode, begun, go_on = whole.vision.encode, threading.Event(), threading.Event()
    open_then: list[bool] = []

    def slowly(pixels: np.ndarray) -> np.ndarray:
        begun.set()
        go_on.wait(10)
        open_then.append(not whole._closed)
        return encode(pixels)

    whole.vision.encode = slowly  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(first.ask, "What is this?", PICTURES[0])
        assert begun.wait(10)
        closing = pool.submit(whole.close)
        time.sleep(0.1)
        assert not closing.done()
        go_on.set()
        closing.result(10)
        assert answer.exception(10) is None or isinstance(answer.exception(), BackendError)
    assert open_then == [True]
    for model in (first, second, whole):
        with pytest.raises(BackendError, match="closed"):
            model.ask("What is this?")
