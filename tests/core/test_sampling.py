"""Sampling, against transformers' own logits processors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tinyllava_edge.errors import BackendError, UsageError
from tinyllava_edge.sampling import Sampler, Sampling, probabilities


def random_logits(seed: int, size: int = 300) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=size) * 3).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 320),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 0.9),
)
def test_the_filters_keep_what_transformers_keeps(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = random_logits(seed)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    scores = warpers(torch.LongTensor([[0]]), torch.DoubleTensor(logits.astype(np.float64))[None])
    expected = torch.softmax(scores, dim=-1)[0].numpy()
    ours = probabilities(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))
    np.testing.assert_allclose(ours, expected, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), penalty=st.floats(0.2, 5), prompt=st.lists(st.integers(0, 299), max_size=40)
)
def test_a_repetition_penalty_chooses_what_transformers_would(
    seed: int, penalty: float, prompt: list[int]
) -> None:
    sampler = Sampler(Sampling(repetition_penalty=penalty), prompt)
    processor, seen = RepetitionPenaltyLogitsProcessor(penalty), list(prompt)
    for step in range(8):
        logits = (random_logits(seed) + random_logits(seed + step) / 10).astype(np.float32)
        scores = torch.from_numpy(logits)[None]
        expected = int((processor(torch.LongTensor([seen]), scores) if seen else scores).argmax())
        assert sampler.choose(logits) == expected
        seen.append(expected)


@pytest.mark.parametrize(("frequency", "presence"), [(0.7, 0.0), (0.0, 1.5), (0.3, -0.2), (-1.0, 2.0)])
def test_frequency_and_presence_penalties_are_openais(frequency: float, presence: float) -> None:
    how = Sampling(frequency_penalty=frequency, presence_penalty=presence)
    sampler, counts = Sampler(how, [0, 1, 2]), np.zeros(20)
    for step in range(60):
        logits = random_logits(step % 3, 20)
        before = logits.copy()
        # mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence
        expected = int((logits - counts * frequency - (counts > 0) * presence).argmax())
        assert sampler.choose(logits) == expected
        np.testing.assert_array_equal(logits, before)
        counts[expected] += 1
    assert counts.max() < 60 or frequency < 0


def test_penalties_act_before_the_filters_of_a_drawn_token() -> None:
    logits = np.array([10, 9.5, -50], dtype=np.float32)
    sampler = Sampler(Sampling(temperature=1, top_k=1, presence_penalty=1, seed=0))
    assert [sampler.choose(logits) for _ in range(3)] == [0, 1, 0]


class OnlyEven:
    """Lets even tokens through, and counts what it is asked."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.masked = 0

    def allows(self, token: int) -> bool:
        return token % 2 == 0

    def mask(self, logits: np.ndarray) -> None:
        self.masked += 1
        logits[1::2] = -np.inf

    def accept(self, token: int) -> None:
        self.accepted.append(token)


@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=1, top_k=3, top_p=0.9, min_p=0.01, seed=1)])
def test_the_vocabulary_is_masked_only_where_the_choice_is_not_allowed(how: Sampling) -> None:
    only = OnlyEven()
    sampler, free = Sampler(how, (), only), Sampler(how)
    chosen = [sampler.choose(random_logits(seed)) for seed in range(50)]
    assert all(token % 2 == 0 for token in chosen)
    assert only.accepted == chosen
    assert 0 < only.masked < 50
    if how.temperature == 0:
        assert only.masked == sum(free.choose(random_logits(seed)) % 2 for seed in range(50))


def test_temperature_zero_takes_the_most_likely_token() -> None:
    logits = random_logits(3)
    assert Sampler(Sampling(top_k=5, seed=1)).choose(logits) == int(logits.argmax())


def test_the_same_seed_gives_the_same_tokens_and_another_one_does_not() -> None:
    logits = random_logits(4)
    first, again, other = (Sampler(Sampling(temperature=1, seed=seed)) for seed in (7, 7, 8))
    tokens = [first.choose(logits) for _ in range(40)]
    assert tokens == [again.choose(logits) for _ in range(40)]
    assert tokens != [other.choose(logits) for _ in range(40)]


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2, 1e-30], dtype=np.float32))
    sampler = Sampler(Sampling(temperature=1, seed=0))
    counts = np.bincount([sampler.choose(logits) for _ in range(20_000)], minlength=4)
    np.testing.assert_allclose(counts / 20_000, [0.5, 0.3, 0.2, 0], atol=0.015)


def test_a_filter_that_leaves_one_token_always_draws_it() -> None:
    logits = random_logits(5)
    for how in (
        Sampling(temperature=2, top_k=1),
        Sampling(temperature=2, top_p=1e-9),
        Sampling(temperature=2, min_p=1),
    ):
        sampler = Sampler(how)
        assert {sampler.choose(logits) for _ in range(20)} == {int(logits.argmax())}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    logits = random_logits(6)
    logits[17] = bad
    with pytest.raises(BackendError, match="token 17"):
        Sampler(Sampling()).choose(logits)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -0.1), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5),
     ("min_p", -0.1), ("min_p", 1.1), ("seed", -1), ("repetition_penalty", 0.0),
     ("repetition_penalty", float("inf")), ("frequency_penalty", 2.1), ("presence_penalty", float("nan"))],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        Sampling(**{name: value})  # type: ignore[arg-type]  # the values are numbers
