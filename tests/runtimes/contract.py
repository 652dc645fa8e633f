"""What every backend must pass; docs/add_a_runtime.md.

A backend's test file calls these with a function that opens it. `exact` is the largest difference of logits
allowed where the same numbers are computed in another order: 0 for a backend that computes row by row.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tinyllava_edge.errors import BackendError
from tinyllava_edge.runtimes.base import LanguageBackend, VisionBackend

OpenLanguage = Callable[[], LanguageBackend]
OpenVision = Callable[[], VisionBackend]


def language_ids(backend: LanguageBackend, count: int, seed: int = 0) -> npt.NDArray[np.int32]:
    """Random token ids."""
    return np.random.default_rng(seed).integers(3, backend.vocab_size, count).astype(np.int32)


def language_rows(backend: LanguageBackend, count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Random embeddings."""
    shape = (count, backend.hidden_size)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


class LanguageContract:
    """Inherit it, and give a fixture `backend`."""

    tolerance = 1e-5

    def near(self, left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> None:
        np.testing.assert_allclose(left, right, rtol=0, atol=self.tolerance)

    def test_logits_have_a_row_a_position_and_a_column_a_token(self, backend: LanguageBackend) -> None:
        logits = backend.evaluate(language_ids(backend, 7), 0, all_logits=True)
        assert logits is not None
        assert logits.shape == (7, backend.vocab_size)
        assert logits.dtype == np.float32
        assert np.isfinite(logits).all()

    def test_without_all_logits_none_are_returned(self, backend: LanguageBackend) -> None:
        assert backend.evaluate(language_ids(backend, 7), 0) is None
        assert backend.last_logits().shape == (backend.vocab_size,)

    def test_the_last_of_all_logits_are_the_last_logits(self, backend: LanguageBackend) -> None:
        logits = backend.evaluate(language_ids(backend, 7), 0, all_logits=True)
        assert logits is not None
        np.testing.assert_array_equal(logits[-1], backend.last_logits())

    def test_all_logits_do_not_change_the_last_ones(self, backend: LanguageBackend) -> None:
        ids = language_ids(backend, 150)
        backend.evaluate(ids, 0, all_logits=True)
        every = backend.last_logits()
        backend.truncate(0)
        backend.evaluate(ids, 0)
        self.near(backend.last_logits(), every)

    def test_one_segment_and_many_give_the_same_logits(self, backend: LanguageBackend) -> None:
        ids = language_ids(backend, 9)
        whole = backend.evaluate(ids, 0, all_logits=True)
        backend.truncate(0)
        parts = [backend.evaluate(ids[i : i + 1], i, all_logits=True) for i in range(9)]
        assert whole is not None
        self.near(np.concatenate([part for part in parts if part is not None]), whole)

    def test_ids_and_embeddings_mix_in_one_context(self, backend: LanguageBackend) -> None:
        ids, rows = language_ids(backend, 5), language_rows(backend, 6)
        backend.evaluate(ids, 0)
        mixed = backend.evaluate(rows, 5, all_logits=True)
        backend.evaluate(ids, 11)
        after = backend.last_logits()
        backend.truncate(0)
        backend.evaluate(ids, 0)
        backend.evaluate(rows[:2], 5)
        backend.evaluate(rows[2:], 7)
        assert mixed is not None
        self.near(backend.last_logits(), mixed[-1])
        backend.evaluate(ids, 11)
        self.near(backend.last_logits(), after)

    def test_embeddings_are_read_from_any_memory_layout(self, backend: LanguageBackend) -> None:
        rows = language_rows(backend, 6)
        backend.evaluate(rows, 0)
        expected = backend.last_logits()
        backend.truncate(0)
        backend.evaluate(np.asfortranarray(rows), 0)
        self.near(backend.last_logits(), expected)

    def test_an_earlier_segment_counts(self, backend: LanguageBackend) -> None:
        backend.evaluate(language_rows(backend, 6, seed=1), 0)
        backend.evaluate(language_ids(backend, 3), 6)
        first = backend.last_logits()
        backend.truncate(0)
        backend.evaluate(language_rows(backend, 6, seed=2), 0)
        backend.evaluate(language_ids(backend, 3), 6)
        assert np.abs(backend.last_logits() - first).max() > 1e-3

    def test_a_cut_context_goes_on_as_if_nothing_had_followed(self, backend: LanguageBackend) -> None:
        ids = language_ids(backend, 20)
        backend.evaluate(ids, 0)
        expected = backend.last_logits()
        backend.truncate(8)
        backend.evaluate(language_rows(backend, 9), 8)
        backend.truncate(8)
        backend.evaluate(ids[8:], 8)
        self.near(backend.last_logits(), expected)

    def test_truncating_at_or_past_the_end_changes_nothing(self, backend: LanguageBackend) -> None:
        backend.evaluate(language_ids(backend, 4), 0)
        expected = backend.last_logits()
        backend.truncate(4)
        backend.truncate(400)
        np.testing.assert_array_equal(backend.last_logits(), expected)
        backend.evaluate(language_ids(backend, 2), 4)

    def test_there_are_no_logits_before_an_evaluation_nor_after_a_cut(self, backend: LanguageBackend) -> None:
        backend.truncate(0)
        with pytest.raises(BackendError):
            backend.last_logits()
        backend.evaluate(language_ids(backend, 4), 0)
        backend.truncate(2)
        with pytest.raises(BackendError):
            backend.last_logits()

    def test_logits_are_the_callers_to_keep_and_change(self, backend: LanguageBackend) -> None:
        backend.evaluate(language_ids(backend, 4), 0)
        first = backend.last_logits()
        kept = first.copy()
        backend.evaluate(language_ids(backend, 4, seed=5), 4)
        np.testing.assert_array_equal(first, kept)
        second = backend.last_logits()
        changed = second.copy()
        second[:] = 0
        np.testing.assert_array_equal(backend.last_logits(), changed)

    @pytest.mark.parametrize("position", [0, 3, 5])
    def test_a_wrong_position_is_refused_with_both_numbers(
        self, backend: LanguageBackend, position: int
    ) -> None:
        backend.evaluate(language_ids(backend, 4), 0)
        with pytest.raises(BackendError, match=f"4, not {position}"):
            backend.evaluate(language_ids(backend, 2), position)
        backend.evaluate(language_ids(backend, 2), 4)

    def test_what_is_no_segment_is_refused(self, backend: LanguageBackend) -> None:
        rows, ids = language_rows(backend, 2), language_ids(backend, 2)
        bad: list[Any] = [
            ids[:0],
            rows[:, :-1],
            rows.astype(np.float64),
            ids.astype(np.int64),
            rows[None],
            ids - 1000,
        ]
        for segment in (*bad, ids + backend.vocab_size):
            with pytest.raises(BackendError):
                backend.evaluate(segment, 0)

    def test_more_positions_than_the_context_has_are_refused(self, backend: LanguageBackend) -> None:
        backend.evaluate(language_ids(backend, backend.context_length - 1), 0)
        with pytest.raises(BackendError, match=str(backend.context_length)):
            backend.evaluate(language_ids(backend, 2), backend.context_length - 1)
        backend.evaluate(language_ids(backend, 1), backend.context_length - 1)

    def test_closing_twice_is_harmless(self, backend: LanguageBackend) -> None:
        backend.close()
        backend.close()

    def test_use_after_closing_is_an_error(self, backend: LanguageBackend) -> None:
        backend.evaluate(language_ids(backend, 4), 0)
        backend.close()
        uses: list[Callable[[], Any]] = [
            lambda: backend.evaluate(language_ids(backend, 1), 4),
            backend.last_logits,
            lambda: backend.truncate(0),
            lambda: backend.truncate(4),
        ]
        for use in uses:
            with pytest.raises(BackendError, match="closed"):
                use()


class VisionContract:
    """Inherit it, and give fixtures `backend` and `pixels` [2, 3, height, width] of two pictures."""

    tolerance = 1e-5

    def test_embeddings_have_a_row_a_token(
        self, backend: VisionBackend, pixels: npt.NDArray[np.float32], shape: tuple[int, int]
    ) -> None:
        rows = backend.encode(pixels)
        assert rows.shape == (2, *shape)
        assert rows.dtype == np.float32
        assert np.isfinite(rows).all()

    def test_a_picture_alone_and_in_a_batch_gives_the_same(
        self, backend: VisionBackend, pixels: npt.NDArray[np.float32]
    ) -> None:
        both = backend.encode(pixels)
        alone = np.concatenate([backend.encode(pixels[:1]), backend.encode(pixels[1:])])
        np.testing.assert_allclose(both, alone, rtol=0, atol=self.tolerance)

    def test_another_picture_gives_other_embeddings(
        self, backend: VisionBackend, pixels: npt.NDArray[np.float32]
    ) -> None:
        rows = backend.encode(pixels)
        assert np.abs(rows[0] - rows[1]).max() > 1e-3

    def test_embeddings_are_not_overwritten_by_the_next_call(
        self, backend: VisionBackend, pixels: npt.NDArray[np.float32]
    ) -> None:
        first = backend.encode(pixels[:1])
        kept = first.copy()
        backend.encode(pixels[1:])
        np.testing.assert_array_equal(first, kept)

    def test_what_are_no_pixels_is_refused(
        self, backend: VisionBackend, pixels: npt.NDArray[np.float32]
    ) -> None:
        bad: list[Any] = [pixels[0], pixels[:0], pixels[:, :2], pixels[..., :-1], pixels.astype(np.float64)]
        for wrong in bad:
            with pytest.raises(BackendError, match="expected pixels"):
                backend.encode(wrong)

    def test_closing_twice_is_harmless(self, backend: VisionBackend) -> None:
        backend.close()
        backend.close()

    def test_use_after_closing_is_an_error(
        self, backend: VisionBackend, pixels: npt.NDArray[np.float32]
    ) -> None:
        backend.close()
        with pytest.raises(BackendError, match="closed"):
            backend.encode(pixels)
