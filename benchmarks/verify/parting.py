"""Why answers part although every stage is within its gates: torch with one part of the bundle at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tinyllava_edge.gates import language_class_of
from tinyllava_edge.metrics import max_abs_difference, top1_margin
from tinyllava_edge.runtimes.context import Element

from .ladder import Ladder, number
from .language_files import read_embeddings
from .language_run import input_rows
from .reference import Continuation
from .reference_question import QuestionReference
from .stage_dequantized import QUANTIZATION, wider_type
from .stage_weights import dequantized_parameters, language_path


def parting_cause(
    ladder: Ladder, reference: QuestionReference, elements: Sequence[Element], ours: Continuation, at: int
) -> str:
    """Which part of the bundle makes torch answer as the bundle does, at token `at`."""
    vision, language = ladder.vision[0], ladder.language[0]
    is_quantized = language_class_of(language.name).is_quantized
    answer, token = reference.answer, ours.ids[at]
    if ladder.reads_language and _token_with(reference, at, path=language_path(ladder, language)) == token:
        if is_quantized:
            return (
                f"{QUANTIZATION}: torch with the values of language {language.name} answers so, too; the "
                f"file is what it should be; {wider_type(ladder.bundle, language.name)}"
            )
        return (
            f"rounding of the weights to {language.name}, with which torch answers so, too{_tie(answer, at)}"
        )
    if _token_with(reference, at, elements=elements) == token:
        return (
            f"rounding of vision {vision.name}: torch with its embeddings answers so, too{_tie(answer, at)}; "
            "take a more precise --vision"
        )
    if is_quantized:
        return (
            f"{QUANTIZATION}: every stage is within its gates, so the runtime computes what language "
            f"{language.name} gives{_tie(answer, at)}; {wider_type(ladder.bundle, language.name)}"
        )
    error = max_abs_difference(answer.logits[at], ours.logits[at])
    return f"rounding while computing, which moves a logit by {number(error)} here{_tie(answer, at)}"


def _tie(answer: Continuation, at: int) -> str:
    return f" (the checkpoint's best two logits are {number(float(top1_margin(answer.logits)[at]))} apart)"


def _token_with(
    reference: QuestionReference, at: int, *, path: Path | None = None, elements: Sequence[Element] = ()
) -> int:
    """Torch's token `at` of the answer, with the weights of a file or the bundle's picture rows."""
    import torch

    parameters: Mapping[str, torch.Tensor] = {}
    table = reference.embedding_table()
    if path is not None:
        parameters = dequantized_parameters(reference, path)
        _, table = read_embeddings(path)
    prompt = input_rows(elements, table) if elements else reference.splice_with(table, reference.question)
    rows = np.concatenate([prompt, table[list(reference.answer.ids[:at])]])
    return int(reference.logits_with(parameters, torch.from_numpy(rows))[-1].argmax())
