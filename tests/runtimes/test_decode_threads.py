"""Fewer threads where tokens stall, and all again where they do not."""

import pytest

from tinyllava_edge.runtimes.decode_threads import DecodeThreads

CALM_S, STALLED_S, HALF_S = 0.010, 0.025, 0.013


def decode(threads: DecodeThreads, count: int, all_s: float, half_s: float = HALF_S) -> list[int]:
    """Threads of each of so many tokens, of which each takes `all_s` on all and `half_s` on half."""
    most = threads._budget
    counts = []
    for _ in range(count):
        counts.append(threads.count)
        threads.took(all_s if threads.count == most else half_s)
    return counts


@pytest.mark.parametrize(("most", "half"), [(2, 1), (3, 1), (8, 4)])
def test_tokens_that_stall_are_decoded_by_half_and_all_are_tried_ever_more_rarely(
    most: int, half: int
) -> None:
    threads = DecodeThreads(most, fixed=False)
    assert decode(threads, 20, CALM_S) == [most] * 20
    beside = decode(threads, 300, STALLED_S)
    assert beside[:12] == [most] * 2 + [half] * 8 + [most] + [half]
    tried = [at for at, count in enumerate(beside) if count == most]
    assert tried == [0, 1, 10, 27, 60, 125, 190, 255]


def test_all_decode_again_as_soon_as_nobody_is_beside() -> None:
    threads = DecodeThreads(2, fixed=False)
    decode(threads, 20, CALM_S)
    decode(threads, 4, STALLED_S)
    assert decode(threads, 30, CALM_S) == [1] * 6 + [2] * 24


def test_one_slow_token_is_a_hiccup() -> None:
    threads = DecodeThreads(2, fixed=False)
    assert decode(threads, 5, CALM_S) + decode(threads, 1, STALLED_S) + decode(threads, 5, CALM_S) == [2] * 11


def test_half_that_is_no_faster_is_left_at_once_and_not_tried_again() -> None:
    threads = DecodeThreads(8, fixed=False)
    decode(threads, 5, CALM_S)
    assert decode(threads, 50, STALLED_S, half_s=0.04) == [8, 8, 4] + [8] * 47


def test_a_growing_context_is_no_stall() -> None:
    threads = DecodeThreads(2, fixed=False)
    for token in range(1000):
        threads.took(CALM_S * (1 + token / 100))
        assert threads.count == 2


@pytest.mark.parametrize("threads", [DecodeThreads(4, fixed=True), DecodeThreads(1, fixed=False)])
def test_a_number_that_was_asked_for_stays(threads: DecodeThreads) -> None:
    most = threads.count
    for seconds in (CALM_S, CALM_S, *[STALLED_S] * 10):
        threads.took(seconds)
        assert threads.count == most
