"""An mmproj file of llama.cpp, run by libmtmd with its graph tapped."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.errors import ExportError
from tinyllava_edge.export.interchange.bundle_files import as_picture
from tinyllava_edge.export.interchange.mtmd import PIXELS_NODE
from tinyllava_edge.export.interchange.mtmd_process import Encoded, encode_pictures
from tinyllava_edge.export.interchange.picture_prompt import picture_prompt
from tinyllava_edge.export.interchange.widened import PER_HEAD, Stream, tower_tensors
from tinyllava_edge.metrics import snr_db
from tinyllava_edge.model.assets import Assets

from .findings import LEAST_SNR_DB, Finding, fact, features, lowest_snr, pixels, tensor_snr_db
from .gguf_fields import field_values
from .tower_states import all_states, connect, tower_cause

Floats = npt.NDArray[np.float32]
_LAYER = re.compile(r"layer_out-(\d+)")
_CLIP = "clip_vision_model"


class MmprojFile:
    """Findings about an mmproj file.

    Args:
        path: the file.
        language: a GGUF file with the language model's vocabulary.
        reference: the checkpoint.
        assets: its prompt and preprocessing.
        picture_numbers: of the reference's pictures.
    """

    def __init__(
        self,
        path: Path,
        language: Path,
        reference: CheckpointReference,
        assets: Assets,
        picture_numbers: tuple[int, ...],
    ) -> None:
        self._path, self._language = path, language
        self._reference, self._assets = reference, assets
        self._numbers = picture_numbers
        self._keys = field_values(path)
        tower = reference.config.vision
        widened = tower.hidden_size + PER_HEAD * tower.num_attention_heads
        extra = PER_HEAD if self._keys.get("clip.vision.embedding_length") == widened else 0
        self._stream = Stream(hidden=tower.hidden_size, heads=tower.num_attention_heads, extra=extra)

    def findings(self) -> Iterator[Finding]:
        """Stage by stage."""
        yield from self._files()
        yield from self._weights()
        try:
            yield from self._pixels()
            yield from self._graph()
        except ExportError as error:
            yield Finding(stage="pixels", what="libmtmd", passed=False, cause=str(error))

    def _files(self) -> Iterator[Finding]:
        tower, how = self._reference.config.vision, self._assets.preprocessing
        vision = {
            "embedding_length": self._stream.width,
            "feed_forward_length": tower.intermediate_size,
            "attention.head_count": tower.num_attention_heads,
            "attention.layer_norm_epsilon": self._stream.epsilon(tower.layer_norm_eps),
            "patch_size": tower.patch_size,
            "image_size": how.image_size,
            "projection_dim": self._reference.config.language.hidden_size,
            "image_mean": list(how.mean),
            "image_std": list(how.std),
        }
        for key, expected in vision.items():
            yield fact(f"clip.vision.{key}", expected, self._keys.get(f"clip.vision.{key}"))
        is_gelu = bool(self._keys.get("clip.use_gelu", False))
        activation = "GELU" if is_gelu else "QuickGELU"
        wanted = "QuickGELU" if tower.hidden_act == "quick_gelu" else "GELU"
        yield fact("clip.use_gelu", wanted, activation)

    def _weights(self) -> Iterator[Finding]:
        """Tensors by llama.cpp's names, where they have the checkpoint's shape; the worst one."""
        if self._reference.config.vision.architecture == _CLIP:
            return
        tower = dict(self._reference.model.vision_tower.upstream_items())
        expected = tower_tensors(
            self._reference.config.vision, lambda name: tower[name].detach().double(), self._stream
        )
        stored = {tensor.name: tensor for tensor in gguf.GGUFReader(self._path).tensors}
        worst: tuple[float, str] = (np.inf, "every tensor is equal")
        for name, tensor in expected:
            if name in stored:
                values = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)
                wanted = tensor.numpy().astype(np.float32)
                if values.size != wanted.size:
                    yield features("weights", name, wanted, np.asarray(values, dtype=np.float32))
                    return
                worst = min(worst, (tensor_snr_db(wanted, values.reshape(wanted.shape)), name))
        yield lowest_snr(worst, least=LEAST_SNR_DB)

    def _pixels(self) -> Iterator[Finding]:
        trial = [self._reference.pictures[number] for number in self._numbers]
        made = encode_pictures(self._path, self._language, [one.upright for one in trial], [PIXELS_NODE])
        how = self._assets.preprocessing
        for number, one, encoded in zip(self._numbers, trial, made, strict=True):
            level = how.rescale_factor / how.std[0]
            expected, found = self._reference.pixels(number), encoded.taps[PIXELS_NODE]
            yield pixels(
                f"{one.name} {one.size[0]}x{one.size[1]}",
                expected,
                found,
                level,
                lambda: self._pixels_cause(),
            )

    def _pixels_cause(self) -> str:
        how = self._assets.preprocessing
        wants = "stretches to a square" if how.aspect == "square" else "pads before resizing"
        return f"llama.cpp resizes and pads in its own way, the checkpoint {wants}"

    def _graph(self) -> Iterator[Finding]:
        number = self._numbers[0]
        given = self._reference.pixels(number)
        picture = as_picture(given, self._assets.preprocessing)
        (encoded,) = encode_pictures(self._path, self._language, [picture], [_LAYER.pattern])
        taps = {int(_LAYER.fullmatch(name)[1]): value for name, value in encoded.taps.items()}  # type: ignore[index]
        last = max(taps)
        rows = self._narrow(taps[last])
        yield self._tower(given, rows, last + 1)
        yield from self._connector(encoded, rows)
        yield self._rows(encoded, number)

    def _narrow(self, rows: Floats) -> Floats:
        """Rows of the tower's own width."""
        return self._stream.restore(rows)

    def _tower(self, given: Floats, rows: Floats, layers_run: int) -> Finding:
        used = self._reference.config.vision.num_used_layers
        expected = all_states(self._reference, given)[used]
        in_front = np.concatenate([rows[-1:], rows[:-1]])  # a class token may stand behind the patches
        is_clip = self._reference.config.vision.architecture == _CLIP and rows.shape == expected.shape
        is_behind = is_clip and snr_db(expected, in_front) > snr_db(expected, rows)
        return features(
            "tower",
            f"{layers_run} layers",
            expected,
            in_front if is_behind else rows,
            lambda: tower_cause(self._reference, given, rows, layers_run),
        )

    def _connector(self, encoded: Encoded, rows: Floats) -> Iterator[Finding]:
        """On the file's own features."""
        kept = rows[len(rows) - len(encoded.embeddings) :]
        skipped = int(self._stream.extra > 0)  # the row that stands for a token of text
        yield features(
            "connector", "mm.*", connect(self._reference, kept)[skipped:], encoded.embeddings[skipped:]
        )

    def _rows(self, encoded: Encoded, number: int) -> Finding:
        expected, found = self._reference.embeddings(number), encoded.embeddings
        if len(found) == len(expected) + 1:
            row_id = picture_prompt(self._assets, self._reference.config.vision).row_id
            if row_id is not None and np.allclose(
                found[0], self._reference.embedding_table()[row_id], rtol=0, atol=1e-3
            ):
                what = "row 0 is the token in front of the picture, which the chat template leaves out"
                return features("rows", what, expected, found[1:])
        return features(
            "rows",
            "rows that reach the language model",
            expected,
            found,
            lambda: self._row_cause(expected, found),
        )

    @staticmethod
    def _row_cause(expected: Floats, found: Floats) -> str:
        if len(found) == len(expected) + 1 and snr_db(expected, found[1:]) > 20:
            return f"{len(found)} rows instead of {len(expected)}: token 0, which upstream drops, is kept"
        if found.shape == expected.shape and snr_db(expected[1:], found[:-1]) > 20:
            return "patch 0 is missing and a class token stands behind the patches: llama.cpp's issue 25814"
        return ""


def is_mmproj(keys: dict[str, Any]) -> bool:
    """Whether a GGUF file's keys are of an mmproj file."""
    return keys.get("general.architecture") == "clip"
