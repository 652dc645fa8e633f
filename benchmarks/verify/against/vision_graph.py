"""A vision tower that somebody else exported: a bare ONNX file, or an OpenVINO folder of optimum-intel."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.checkpoint.files import PROCESSOR_FILE, read_json_object
from tinyllava_edge.errors import TinyLlavaEdgeError, UsageError
from tinyllava_edge.image import Preprocessing, preprocess, preprocessing_from_processor
from tinyllava_edge.metrics import snr_db
from tinyllava_edge.model.assets import Assets

from .findings import Finding, fact, features, logits, pixels
from .tower_states import all_states, connect, tower_cause

Floats = npt.NDArray[np.float32]
Run = Callable[[Floats], Floats]
VISION_XML = "openvino_vision_embeddings_model.xml"
TEXT_XML = "openvino_text_embeddings_model.xml"
LANGUAGE_XML = "openvino_language_model.xml"


def onnx_findings(path: Path, reference: CheckpointReference) -> Iterator[Finding]:
    """A graph with one input of pixels [batch, 3, h, w].

    Raises:
        UsageError: onnxruntime does not open it, or it has another input.
    """
    import onnxruntime

    with _refused(path, "onnxruntime", str):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = [value for value in session.get_inputs() if len(value.shape) == 4]
    if len(session.get_inputs()) != 1 or not given:
        names = [f"{value.name} {value.shape}" for value in session.get_inputs()]
        raise UsageError(f"--against {path}: expected one input, pixels [batch, 3, h, w]; found {names}.")
    half = given[0].type == "tensor(float16)"
    side = given[0].shape[2]
    if isinstance(side, int):
        yield fact("input size", reference.config.vision.image_size, side)
        if side != reference.config.vision.image_size:
            return

    def run(batch: Floats) -> Floats:
        values = batch.astype(np.float16) if half else batch
        return np.asarray(session.run(None, {given[0].name: values})[0], dtype=np.float32)

    with _refused(path, "onnxruntime", str):
        yield from _rows(run, reference, (0, 3))


def openvino_findings(folder: Path, reference: CheckpointReference, assets: Assets) -> Iterator[Finding]:
    """The folder's processor and its IRs, on OpenVINO's CPU plugin in float32.

    Raises:
        UsageError: the package openvino is not installed, or it does not read the folder's files.
    """
    try:
        import openvino
    except ImportError:
        raise UsageError(f"--against {folder}: needs the package openvino: pip install openvino.") from None
    from tinyllava_edge.runtimes.openvino_library import said

    yield from _processor(folder, reference, assets)
    core = openvino.Core()

    def compiled(name: str) -> Any:
        return core.compile_model(str(folder / name), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    with _refused(folder / VISION_XML, "OpenVINO", said):
        vision = compiled(VISION_XML)
        yield from _rows(lambda batch: np.asarray(vision(batch)[0], dtype=np.float32), reference, (0, 3))
    if (folder / TEXT_XML).is_file() and (folder / LANGUAGE_XML).is_file():
        with _refused(folder / LANGUAGE_XML, "OpenVINO", said):
            yield from _language(compiled(TEXT_XML), compiled(LANGUAGE_XML), reference)


@contextmanager
def _refused(path: Path, library: str, said: Callable[[Exception], str]) -> Iterator[None]:
    """What a library says of a graph that it cannot open, or not compute with a checkpoint's inputs."""
    try:
        yield
    except TinyLlavaEdgeError:
        raise
    except Exception as error:  # the libraries' exceptions share no base class
        words = " ".join(said(error).split())[:200]
        raise UsageError(f"--against {path}: {library} cannot compute it ({words}).") from None


def _processor(folder: Path, reference: CheckpointReference, assets: Assets) -> Iterator[Finding]:
    path = folder / PROCESSOR_FILE
    if not path.is_file():
        yield Finding(stage="pixels", what=PROCESSOR_FILE, passed=None, gate="the folder has none")
        return
    raw = read_json_object(path)
    aspect: Any = "pad" if raw.get("do_pad") else "square"
    try:
        how = preprocessing_from_processor(raw, aspect=aspect, where=str(path))
    except TinyLlavaEdgeError as error:
        yield Finding(stage="pixels", what=PROCESSOR_FILE, passed=False, cause=str(error))
        return
    for number in (0, 3, 5):
        trial = reference.pictures[number]
        found = preprocess(Image.fromarray(trial.upright), how)
        level = assets.preprocessing.rescale_factor / assets.preprocessing.std[0]
        yield pixels(
            f"{trial.name} {trial.size[0]}x{trial.size[1]}",
            reference.pixels(number),
            found,
            level,
            lambda: processor_cause(how, assets.preprocessing),
        )


def processor_cause(found: Preprocessing, expected: Preprocessing) -> str:
    """Which values of a processor are not the checkpoint's."""
    names = ("aspect", "resize", "size", "crop", "resample", "rescale_factor", "mean", "std")
    return "; ".join(
        f"{name} is {getattr(found, name)}, the checkpoint has {getattr(expected, name)}"
        for name in names
        if getattr(found, name) != getattr(expected, name)
    )


def _rows(run: Run, reference: CheckpointReference, numbers: tuple[int, ...]) -> Iterator[Finding]:
    """What comes out is told by its width: the tower's features, or the connector's rows."""
    for number in numbers:
        yield _row(run, reference, number)


def _row(run: Run, reference: CheckpointReference, number: int) -> Finding:
    given = reference.pixels(number)
    found = run(given[None])
    found = found.reshape(-1, found.shape[-1])
    what, vision = f"picture {number}", reference.config.vision
    if found.shape[-1] == vision.hidden_size != reference.config.language.hidden_size:
        expected = reference.tower(number)
        return features("tower", what, expected, found, lambda: tower_cause(reference, given, found, None))
    rows = reference.embeddings(number)
    return features("rows", what, rows, found, lambda: _embedding_cause(reference, given, rows, found))


def _embedding_cause(reference: CheckpointReference, given: Floats, expected: Floats, found: Floats) -> str:
    if len(found) == len(expected) + 1 and snr_db(expected, found[1:]) > 20:
        return f"{len(found)} rows instead of {len(expected)}: token 0, which upstream drops, is kept"
    used = reference.config.vision.num_used_layers
    first = int(reference.config.vision.drop_first)
    for number, state in enumerate(all_states(reference, given)):
        rows = connect(reference, state[first:])
        if number != used and rows.shape == found.shape and snr_db(rows, found) > 25:
            return (
                f"of hidden_states[{number}], the checkpoint uses hidden_states[{used}]: wrong feature layer"
            )
    return "tower or connector compute something else: weights, activation, tokens"


def _language(text: Any, language: Any, reference: CheckpointReference) -> Iterator[Finding]:
    case = next(prompt for prompt in reference.prompts if not prompt.pictures)
    ids = np.array([reference.ids(case)], dtype=np.int64)
    rows = np.asarray(text(ids)[0], dtype=np.float32)
    yield features("ids", "rows of text", reference.splice(case), rows[0])
    count = ids.shape[1]
    values = {
        "inputs_embeds": rows,
        "attention_mask": np.ones((1, count), dtype=np.int64),
        "position_ids": np.arange(count, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, dtype=np.int32),
    }
    names = {name for value in language.inputs for name in value.get_names()}
    found = np.asarray(language({key: value for key, value in values.items() if key in names})[0])[0]
    expected = reference.logits(case)
    cause = "the language model computes something else"
    yield logits(f"prompt {case.name!r}", expected, found, cause=cause)
