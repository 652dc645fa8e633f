"""What a bundle holds for llama.cpp's own programs and Ollama: `mmproj.gguf`, checked, and a Modelfile."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tinyllava_edge.errors import ExportError
from tinyllava_edge.export.language_gguf import LanguageSource
from tinyllava_edge.image import Preprocessing
from tinyllava_edge.manifest import MMPROJ_FILE
from tinyllava_edge.metrics import feature_figures
from tinyllava_edge.model.vlm import TinyLlava
from tinyllava_edge.reference_tensors import ReferenceTensors
from tinyllava_edge.verified_rule import features_fault

from .mmproj import MmprojSource, write_mmproj
from .mtmd_process import encode_pictures
from .picture_prompt import MODELFILE, modelfile

Floats = npt.NDArray[np.float32]
_ROW_TOLERANCE = 1e-5  # of float32 sums of three numbers
_GATES = "fp16"  # the file's tower is float16, and so is llama.cpp's table of GELU


class LlamaCppFiles:
    """`mmproj.gguf` and a Modelfile in a bundle that is being written.

    Args:
        root: the bundle.
        source: the checkpoint.
    """

    def __init__(self, root: Path, source: LanguageSource) -> None:
        self._root, self._source = root, source
        self._prompt = source.picture_prompt()
        self._row: Floats | None = None

    def write(self, model: TinyLlava) -> None:
        """Write `mmproj.gguf`."""
        if self._prompt.row_id is not None:
            nothing = torch.zeros(0, 0, model.config.language.hidden_size)
            self._row = model.splice([self._prompt.row_id], nothing).detach()[0].float().numpy()
        how = self._source.assets.preprocessing
        source = MmprojSource(model=model, preprocessing=how, name=self._source.name, row=self._row)
        write_mmproj(self._root / MMPROJ_FILE, source)

    def finish(self, language: str, reference: ReferenceTensors) -> dict[str, Any]:
        """Write the Modelfile, and hold what libmtmd makes of the reference pictures against torch's rows.

        Args:
            language: name of a language model's file in the bundle.
            reference: torch's pixels, whose bytes go in so that nothing is resized, and embeddings.

        Returns:
            number of rows, and figures of the embeddings.

        Raises:
            ExportError: the rows are not the checkpoint's.
        """
        assets = self._source.assets
        text = modelfile(assets.template, self._prompt, language, MMPROJ_FILE)
        (self._root / MODELFILE).write_text(text, encoding="utf-8")
        path = self._root / MMPROJ_FILE
        pictures = [as_picture(one, assets.preprocessing) for one in reference.pixels]
        made = encode_pictures(path, self._root / language, pictures)
        return self._judge(path, np.stack([one.embeddings for one in made]), reference.embeddings)

    def _judge(self, path: Path, rows: Floats, expected: Floats) -> dict[str, Any]:
        """`rows`: [pictures, rows, hidden]; those in front of torch's are of token 0."""
        kept = rows[:, rows.shape[1] - expected.shape[1] :]
        if kept.shape != expected.shape:
            raise ExportError(f"{path}: llama.cpp gives rows {rows.shape}, expected {expected.shape}.")
        if self._row is not None and not np.allclose(rows[:, 0], self._row, rtol=0, atol=_ROW_TOLERANCE):
            raise ExportError(f"{path}: row 0 is not the embedding of the token in front of a picture.")
        figures = feature_figures(expected, kept)
        if fault := features_fault("connector", _GATES, figures):
            raise ExportError(f"{path}: what llama.cpp makes of it is not equal to the checkpoint: {fault}.")
        return {"rows": rows.shape[1], **{key: float(value) for key, value in figures.items()}}


def as_picture(pixels: Floats, how: Preprocessing) -> npt.NDArray[np.uint8]:
    """The bytes [h, w, 3] that pixels [3, h, w] were made of."""
    mean, std = (np.array(value, dtype=np.float32)[:, None, None] for value in (how.mean, how.std))
    bytes_ = np.rint((pixels * std + mean) / how.rescale_factor)
    return np.ascontiguousarray(bytes_.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
