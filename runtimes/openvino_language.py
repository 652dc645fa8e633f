"""The language model through OpenVINO on the CPU: a graph with its KV cache inside (IR, from `export`).

Ids and a picture's rows go into one graph, which looks ids up itself, and into one call: rows wait until
logits are asked for, as a call behind another is slower. What is cut off the context stays in the graph's
cache, out of sight, until there is much of it, as reading a cache takes longer than a question does. Both:
docs/sources/openvino.md#kv-cache.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tinyllava_edge.bundle import Bundle, LanguageSpec
from tinyllava_edge.compute_classes import BF16_CPU, FLOAT32_CPU, INT8_CPU, ComputeClass
from tinyllava_edge.errors import BackendError, BundleError
from tinyllava_edge.llamacpp_memory import OUTPUT_ROWS

from .access import freed_with
from .base import BackendOptions, Segment, check_open, check_segment
from .openvino_library import compile_model, read_model, said

# Our names of the KV cache's types -> OpenVINO's.
_KV_TYPES = {"f32": "f32", "f16": "f16", "q8_0": "u8"}
DEFAULT_KV_TYPE = "f16"
_ROWS = 4096  # of one call at most, which sizes its working memory
_INPUTS = {"input_ids", "inputs_embeds", "position_ids", "key_positions", "wanted", "beam_idx"}
_UNSEEN = 1 << 30  # the position of a row that was cut off: behind every query
_MOST_UNSEEN = 256  # rows


def _open(compute: ComputeClass, bundle: Bundle, options: BackendOptions) -> "OpenVinoLanguage":
    """Open a bundle's IR variant.

    Raises:
        BackendError: OpenVINO refuses the graph, or this processor computes it otherwise than asked.
        BundleError: no such variant, or its inputs and outputs are not what the manifest says.
        UsageError: the context is longer than the model's, or an option is llama.cpp's alone.
    """
    variant = bundle.variant("language", options.language, target="openvino")
    if variant.target != "openvino":
        raise BundleError(
            f"language variant {variant.name} is {variant.target}; openvino runs its own, which export "
            "--language ov_int8 writes."
        )
    options.check_without_llamacpp("openvino", tuple(_KV_TYPES))
    return OpenVinoLanguage(
        bundle.path(variant.files[0]),
        bundle.manifest.language,
        options,
        name=f"openvino{_SUFFIXES[compute]} {variant.name}",
        compute=compute,
    )


_SUFFIXES = {FLOAT32_CPU: "", BF16_CPU: "-bf16", INT8_CPU: "-int8"}
open_language, open_language_bf16, open_language_int8 = (partial(_open, compute) for compute in _SUFFIXES)


class OpenVinoLanguage:
    """One graph with one context.

    Args:
        path: the IR, which `check_ir` has passed; its weights lie beside it.
        spec: what the manifest says is in it.
        options: KV type, context and threads.
        name: for people; the KV type is added.
        compute: the class of its products.

    Attributes:
        compute_class: the same.
    """

    def __init__(
        self,
        path: Path,
        spec: LanguageSpec,
        options: BackendOptions,
        *,
        name: str,
        compute: ComputeClass = FLOAT32_CPU,
    ) -> None:
        kv_type = options.kv_type or DEFAULT_KV_TYPE
        self.name = f"{name}, {kv_type} KV"
        self.vocab_size = spec.vocab_size
        self.hidden_size = spec.hidden_size
        self.context_length = options.positions(spec)
        self.compute_class = compute
        self._position = 0
        self._keys: npt.NDArray[np.int32] = np.zeros(0, dtype=np.int32)  # of each row in the graph's cache
        self._waiting: list[Segment] = []  # the context's last rows, which are not computed yet
        self._last: npt.NDArray[np.float32] | None = None
        model = read_model(path)
        self._check_ends(path, model)
        self._compiled: Any = compile_model(
            path, model, compute, threads=options.threads, KV_CACHE_PRECISION=_KV_TYPES[kv_type]
        )
        self._free = freed_with(self, self._compiled)

    def evaluate(
        self, segment: Segment, position: int, *, all_logits: bool = False
    ) -> npt.NDArray[np.float32] | None:
        """See `LanguageBackend`."""
        check_open(self.name, self._compiled is not None)
        check_segment(self, segment, position, self._position)
        self._last = None
        if not all_logits:
            self._waiting.append(segment.copy())
            self._position = position + len(segment)
            return None
        self._compute_waiting()
        logits = self._compute([segment], position, step=OUTPUT_ROWS, all_logits=True)
        self._position = position + len(segment)
        self._last = logits[-1]
        return logits

    def last_logits(self) -> npt.NDArray[np.float32]:
        """See `LanguageBackend`."""
        check_open(self.name, self._compiled is not None)
        self._compute_waiting()
        if self._last is None:
            raise BackendError(f"{self.name}: nothing was evaluated, so there are no logits.")
        return self._last.copy()

    def truncate(self, position: int) -> None:
        """See `LanguageBackend`."""
        check_open(self.name, self._compiled is not None)
        if position >= self._position and position > 0:
            return
        if position == 0:
            self._waiting = []
        self._compute_waiting()
        if position == 0:
            try:
                self._compiled.request.reset_state()
            except Exception as error:  # RuntimeError, of C++ exceptions that share no base class
                raise BackendError(f"{self.name}: the context cannot be emptied ({said(error)}).") from None
            self._keys = self._keys[:0]
        self._keys[self._keys >= position] = _UNSEEN
        self._position, self._last = position, None

    def save_state(self) -> bytes:
        """See `KeepsState`."""
        check_open(self.name, self._compiled is not None)
        self._compute_waiting()
        return save(self._seen_rows())

    def load_state(self, state: bytes, positions: int) -> None:
        """See `KeepsState`."""
        self.truncate(0)
        try:
            rows = load(state)
            held = min((one.shape[2] for one in rows.values()), default=0)
            if not 0 < positions <= min(held, self.context_length):
                raise BackendError(f"{held} positions for at least {positions} of {self.context_length}")
            self._put_rows({name: one[:, :, :positions] for name, one in rows.items()})
        except (SafetensorError, BackendError) as error:
            self.truncate(0)
            raise BackendError(f"{self.name}: a saved context cannot be put back: {error}") from None
        self._keys = np.arange(positions, dtype=np.int32)
        self._position = positions

    def close(self) -> None:
        """See `LanguageBackend`."""
        self._compiled = None
        self._free()

    def _make_room(self, count: int) -> None:
        """Take rows out of the graph's cache that are not seen, where they or the context are too many."""
        seen = self._keys[self._keys < _UNSEEN]
        unseen = len(self._keys) - len(seen)
        if unseen > _MOST_UNSEEN or (unseen and len(self._keys) + count > self.context_length):
            self._put_rows(self._seen_rows())
            self._keys = seen

    def _seen_rows(self) -> dict[str, npt.NDArray[Any]]:
        """What the graph's cache holds of the context, [1, heads, positions, head_dim] each."""
        seen = np.flatnonzero(self._keys < _UNSEEN)
        return {
            state.name: np.ascontiguousarray(state.state.data[:, :, seen])
            for state in self._compiled.request.query_state()
        }

    def _put_rows(self, rows: dict[str, npt.NDArray[Any]]) -> None:
        """Put rows of `_seen_rows` in the place of the graph's cache."""
        try:
            for state in self._compiled.request.query_state():
                state.state = openvino.Tensor(np.ascontiguousarray(rows[state.name]))
        except Exception as error:  # RuntimeError, of C++ exceptions that share no base class
            raise BackendError(f"{self.name}: its cache cannot be written ({said(error)}).") from None

    def _compute_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            position = self._position - sum(map(len, waiting))
            self._last = self._compute(waiting, position, step=_ROWS, all_logits=False)[-1]

    def _compute(
        self, segments: Sequence[Segment], position: int, *, step: int, all_logits: bool
    ) -> npt.NDArray[np.float32]:
        """Logits [n, vocab] of all rows, or [1, vocab] of the last one, `step` rows in a call."""
        ids = np.concatenate([one if one.ndim == 1 else np.full(len(one), -1) for one in segments])
        rows = np.zeros((len(ids), self.hidden_size), dtype=np.float32)
        if embedded := [one for one in segments if one.ndim == 2]:
            rows[ids < 0] = np.concatenate(embedded)
        found = [
            self._infer(ids[start : start + step], rows[start : start + step], position + start, all_logits)
            for start in range(0, len(ids), step)
        ]
        return np.concatenate(found) if all_logits else found[-1]

    def _infer(
        self, ids: npt.NDArray[Any], rows: npt.NDArray[np.float32], position: int, all_logits: bool
    ) -> npt.NDArray[np.float32]:
        count = len(ids)
        self._make_room(count)
        positions = np.arange(position, position + count, dtype=np.int32)
        self._keys = np.concatenate([self._keys, positions])
        inputs = {
            "input_ids": ids.astype(np.int32)[None],
            "inputs_embeds": rows[None],
            "position_ids": positions[None],
            "key_positions": self._keys,
            "wanted": np.arange(0 if all_logits else count - 1, count, dtype=np.int32),
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        try:
            logits: npt.NDArray[np.float32] = self._compiled.request.infer(inputs)["logits"][0]
        except Exception as error:  # as above
            raise BackendError(f"{self.name}: OpenVINO failed ({said(error)}).") from None
        return logits

    def _check_ends(self, path: Path, model: Any) -> None:
        inputs = {port.any_name for port in model.inputs}
        ends = [port for port in model.inputs if port.any_name == "inputs_embeds"] + model.outputs[:1]
        sizes = [list(port.partial_shape)[-1] for port in ends if port.partial_shape.rank.is_static]
        found = [size.get_length() if size.is_static else -1 for size in sizes]
        if inputs != _INPUTS or found != [self.hidden_size, self.vocab_size]:
            raise BundleError(
                f"{path}: expected the inputs {sorted(_INPUTS)}, rows of {self.hidden_size} and logits of "
                f"{self.vocab_size}; found {sorted(inputs)} and {found}. Export the bundle again."
            )
