"""Ladder stages 7 to 11: spliced embeddings, prefill logits, teacher-forced distributions, greedy answers.

All of them from the bundle alone: text rows are the GGUF's own `token_embd`, picture rows come from the
vision backend. The KV cache is float32, so that what is measured is the variant.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import Variant
from tinyllava_edge.errors import TinyLlavaEdgeError
from tinyllava_edge.gates import (
    PROVEN,
    gates_of,
    language_class_of,
    largest_logit_error,
    widened,
)
from tinyllava_edge.metrics import (
    at_least,
    at_most,
    kl_divergence,
    max_abs_difference,
    nmse,
    snr_db,
    top1_agreement,
)
from tinyllava_edge.runtimes.context import Context, Element, PictureRows
from tinyllava_edge.runtimes.model import Model, open_bundle

from .ladder import Ladder, StageResult, judge, refused
from .reference import PromptCase
from .reference_checkpoint import CheckpointReference
from .stage_dequantized import check_dequantized, cost_of_weights
from .stage_vision import is_run
from .stage_weights import NEEDS_CHECKPOINT, as_stored, gguf_path

Floats = npt.NDArray[np.float32]
OnStage = Callable[[str], None]
TOKENS_FOR_A_PERCENTILE = 200  # of fewer, the largest two values are the 99th
_SEE_WEIGHTS = "weights, RoPE order, norm eps, K and V; "


@dataclass(frozen=True)
class _Pair:
    """A vision and a language variant that are run together, and whose gates count."""

    vision: Variant
    language: Variant
    label: str
    gates: str
    is_first_vision: bool

    @property
    def stages(self) -> list[str]:
        """What is computed of it, in order: the input rows once, dequantized values where there are some."""
        first = ["splice"] if self.is_first_vision else []
        quantized = ["dequantized"] if language_class_of(self.language.name).is_quantized else []
        return [*first, "logits", *quantized, "teacher_forced", "greedy"]


def language_stages(ladder: Ladder) -> list[str]:
    """The stages that `check_language` will begin, in order."""
    return [stage for pair in _pairs(ladder) for stage in pair.stages]


def check_language(ladder: Ladder, on_stage: OnStage) -> Iterator[StageResult]:
    """Stages 7 to 11 of every language variant, and of every further vision variant that can be run.

    Args:
        ladder: as of `climb`.
        on_stage: called with the name of each stage when it begins; a pair's first one opens the model.
    """
    if not any(map(is_run, ladder.vision)):
        yield StageResult(stage="splice", skipped="no runtime here runs a vision variant that was chosen")
    for pair in _pairs(ladder):
        first, *others = pair.stages
        stage = first
        on_stage(stage)
        try:
            options = replace(ladder.options_of(pair.vision, pair.language), kv_type="f32")
            with open_bundle(ladder.bundle.root, runtime=ladder.runtime, **vars(options)) as model:
                run = _Run(ladder, pair, model)
                yield run.check(stage)
                for stage in others:
                    on_stage(stage)
                    yield run.check(stage)
        except TinyLlavaEdgeError as error:
            yield refused(stage, pair.label, error)


def _pairs(ladder: Ladder) -> Iterator[_Pair]:
    vision = [variant for variant in ladder.vision if is_run(variant)]
    for index, one in enumerate(vision):
        for language in ladder.language if index == 0 else ladder.language[:1]:
            label = language.name if index == 0 else f"{language.name}, vision {one.name}"
            yield _Pair(one, language, label, _gates_with(one.name, language.name), index == 0)


def _gates_with(vision: str, language: str) -> str:
    """Whose gates count: a lossy vision tower costs about what a lossy language model does."""
    if language == "f32" and vision != "fp32":
        language = "f16"
    return "q8_0" if vision == "int8" and language == "f16" else language


def _rows(elements: Sequence[Element], table: Floats) -> Floats:
    """Input rows [positions, hidden]."""
    return np.concatenate([table[e : e + 1] if isinstance(e, int) else e.rows for e in elements])


class _Run:
    """One pair of variants, opened."""

    def __init__(self, ladder: Ladder, pair: _Pair, model: Model) -> None:
        self._ladder = ladder
        self._reference = ladder.reference
        self._pair = pair
        self._model = model
        self._logit_tolerance = 0.0  # largest difference of a logit so far
        self._forced: dict[PromptCase, Floats] = {}
        self._judged: dict[str, StageResult] = {}

    def check(self, stage: str) -> StageResult:
        """One of the pair's stages, which are computed in their order."""
        checks = {
            "splice": self.check_splice,
            "logits": self.check_logits,
            "dequantized": self.check_dequantized,
            "teacher_forced": self.check_teacher_forced,
            "greedy": self.check_greedy,
        }
        self._judged[stage] = checks[stage]()
        return self._judged[stage]

    def check_splice(self) -> StageResult:
        """Input rows [positions, hidden] of every prompt."""
        if not self._ladder.reads_gguf:
            reason = f"runtime {self._ladder.runtime} reads no GGUF"
            return StageResult(stage="splice", variant=self._pair.label, skipped=reason)
        if self._reference.splice(self._reference.prompts[0]) is None:
            return StageResult(stage="splice", variant=self._pair.label, skipped=NEEDS_CHECKPOINT)
        from .gguf_files import read_tensor

        kind, table = read_tensor(gguf_path(self._ladder, self._pair.language), "token_embd.weight")
        pairs: list[tuple[Floats, Floats]] = []
        text_pairs: list[tuple[Floats, Floats]] = []
        for prompt in self._reference.prompts:
            expected = self._reference.splice(prompt)
            assert expected is not None
            elements = self._elements(prompt)
            found = _rows(elements, table)
            if found.shape != expected.shape:
                return self._wrong_shape("splice", prompt, found.shape, expected.shape)
            is_text = np.concatenate([[True] if isinstance(e, int) else [False] * len(e) for e in elements])
            pairs.append((expected, found))
            stored, least = as_stored(expected[is_text], kind)
            text_pairs.append((stored, found[is_text]))
        snr, text_snr = (min(snr_db(*pair) for pair in some) for some in (pairs, text_pairs))
        return judge(
            "splice",
            self._pair.label,
            {"nmse": max(nmse(*pair) for pair in pairs), "snr_db": snr, "text_snr_db": text_snr},
            detail=f"{len(pairs)} prompts, token_embd {kind}",
            cause=lambda: (
                f"rows of text differ ({text_snr:.1f} dB): token_embd"
                if text_snr < snr + 1
                else f"rows of pictures differ ({snr:.1f} dB): scale, or their place in the prompt"
            ),
            gates=gates_of("splice", self._pair.gates) or (at_least("text_snr_db", least),),
        )

    def check_logits(self) -> StageResult:
        """Prefill logits of every position, through the public `logits`."""
        pairs: list[tuple[Floats, Floats]] = []
        for prompt in self._reference.prompts:
            expected, found = self._logits(prompt)
            if found.shape != expected.shape:
                return self._wrong_shape("logits", prompt, found.shape, expected.shape)
            pairs.append((expected, found))
        largest = max(max_abs_difference(*pair) for pair in pairs)
        self._logit_tolerance = largest
        return judge(
            "logits",
            self._pair.label,
            {"nmse": max(nmse(*pair) for pair in pairs), "max_abs_difference": largest},
            detail=f"{sum(len(expected) for expected, _ in pairs)} positions of {len(pairs)} prompts",
            cause=lambda: self._logits_cause(pairs),
            gates=gates_of("logits", self._pair.gates, self._ladder.bundle.manifest.language.architecture),
        )

    def _logits_cause(self, pairs: Sequence[tuple[Floats, Floats]]) -> str:
        prompts = list(self._reference.prompts)
        errors = [nmse(*pair) for pair in pairs]
        text_errors = [error for error, prompt in zip(errors, prompts, strict=True) if not prompt.pictures]
        if text_errors and max(errors) > 1000 * max(text_errors):
            return "prompts without a picture are right: the picture rows' scale, number or positions"
        return f"the language model computes something else ({_SEE_WEIGHTS}--checkpoint names the tensor)"

    def check_teacher_forced(self) -> StageResult:
        """Distributions over the next token, behind pictures, on tokens that the reference chose.

        Where dequantized passed, it says what the weights themselves cost.
        """
        pairs: list[tuple[Floats, Floats]] = []
        for prompt in self._reference.prompts:
            continuation = self._reference.continuation(prompt)
            if continuation is None:
                pairs.append(self._logits(prompt))
            else:
                pairs.append((continuation.logits, self._forced_logits(prompt, continuation.ids)))
        expected, found = (np.concatenate(side) for side in zip(*pairs, strict=True))
        self._logit_tolerance = max(self._logit_tolerance, max_abs_difference(expected, found))
        divergence = kl_divergence(expected, found)
        gates = gates_of("teacher_forced", self._pair.gates)
        before = self._judged.get("dequantized")
        cost = cost_of_weights(before) if before and before.status == "passed" else {}
        if cost and self._pair.language.name in PROVEN:
            gates = widened(gates, cost)
        if len(divergence) < TOKENS_FOR_A_PERCENTILE:
            gates = tuple(gate for gate in gates if gate.metric != "p99_kld")
        return judge(
            "teacher_forced",
            self._pair.label,
            {
                "mean_kld": float(divergence.mean()),
                "p99_kld": float(np.percentile(divergence, 99, method="higher")),
                "top1_agreement": top1_agreement(expected, found),
            },
            detail=f"{len(divergence)} tokens",
            cause=lambda: "distributions are too far apart: too coarse a quantization, or an earlier stage",
            gates=gates,
        )

    def check_dequantized(self) -> StageResult:
        """What teacher_forced judged, against torch with the values of the file."""
        if not isinstance(self._reference, CheckpointReference):
            return StageResult(stage="dequantized", variant=self._pair.label, skipped=NEEDS_CHECKPOINT)
        if not self._ladder.reads_gguf:
            reason = f"runtime {self._ladder.runtime} reads no GGUF"
            return StageResult(stage="dequantized", variant=self._pair.label, skipped=reason)
        from .gguf_files import read_tensor

        path = gguf_path(self._ladder, self._pair.language)
        _, table = read_tensor(path, "token_embd.weight")
        return check_dequantized(
            self._reference,
            path,
            self._pair.label,
            {
                prompt: self._forced_logits(prompt, self._reference.continuation(prompt).ids)
                for prompt in self._reference.prompts
            },
            lambda prompt, ids: _rows([*self._elements(prompt), *ids], table),
        )

    def check_greedy(self) -> StageResult:
        """Greedy answers are the reference's up to a step at which two tokens are equally good."""
        logit_stages = ("logits", "dequantized", "teacher_forced")  # wrong logits explain nothing
        excusable = all(self._judged[s].status != "failed" for s in logit_stages if s in self._judged)
        cap = largest_logit_error(self._pair.gates, self._ladder.bundle.manifest.language.architecture)
        tolerance = min(self._logit_tolerance, cap) if excusable else 0.0
        unexplained: list[str] = []
        exact = 0
        shortest = np.inf
        answers = [(prompt, self._reference.greedy(prompt)) for prompt in self._reference.prompts]
        for prompt, answer in answers:
            found = self._greedy(prompt, len(answer.ids))
            step = next(
                (i for i, pair in enumerate(zip(found, answer.ids, strict=True)) if len(set(pair)) > 1), None
            )
            if step is None:
                exact += 1
                continue
            shortest = min(shortest, step)
            if answer.margins[step] >= 2 * tolerance:
                unexplained.append(f"{prompt.name} at token {step}, margin {answer.margins[step]:.3g}")
        return judge(
            "greedy",
            self._pair.label,
            {
                "unexplained_divergences": len(unexplained),
                "exact_answers": exact,
                "first_divergence": float(shortest),
            },
            detail=f"{len(answers)} answers, logits within {tolerance:.3g}",
            cause=lambda: (
                f"{unexplained[0]}: decoding by steps differs from one prefill (KV cache, positions)"
                if excusable
                else f"{unexplained[0]}: the logits are wrong already"
            ),
            gates=(at_most("unexplained_divergences", 0),),
        )

    def _wrong_shape(
        self, stage: str, prompt: PromptCase, found: tuple[int, ...], expected: tuple[int, ...]
    ) -> StageResult:
        return judge(
            stage,
            self._pair.label,
            {"wrong_shapes": 1},
            detail=f"prompt {prompt.name!r}",
            cause=lambda: (
                f"{prompt.name}: {found[0]} positions, expected {expected[0]}: ids, or tokens per picture"
            ),
            gates=(at_most("wrong_shapes", 0),),
        )

    def _files(self, prompt: PromptCase) -> list[bytes]:
        return [self._reference.pictures[index].file for index in prompt.pictures]

    def _logits(self, prompt: PromptCase) -> tuple[Floats, Floats]:
        """What is expected of the last positions, and what the runtime gives for them."""
        expected = self._reference.logits(prompt)
        return expected, self._model.logits(prompt.turns, self._files(prompt))[-len(expected) :]

    def _elements(self, prompt: PromptCase) -> list[Element]:
        rows = iter(self._model.encode(self._files(prompt)))
        ids = self._model.tokenize(prompt.turns, num_pictures=len(prompt.pictures))
        return [PictureRows(b"", next(rows)) if token < 0 else token for token in ids]

    def _prefill(self, prompt: PromptCase) -> Context:
        """The backend's context with a prompt in it, evaluated from nothing."""
        context = Context(self._model.language)
        context.prefill(self._elements(prompt))
        return context

    def _forced_logits(self, prompt: PromptCase, ids: Sequence[int]) -> Floats:
        """Logits [tokens, vocab] from which each of `ids`, the reference's, is to be predicted; kept."""
        if prompt not in self._forced:
            self._forced[prompt] = self._evaluate_forced(prompt, ids)
        return self._forced[prompt]

    def _evaluate_forced(self, prompt: PromptCase, ids: Sequence[int]) -> Floats:
        context = self._prefill(prompt)
        first = context.last_logits()[None]
        return np.concatenate([first, context.extend(ids[:-1])]) if len(ids) > 1 else first

    def _greedy(self, prompt: PromptCase, num_tokens: int) -> list[int]:
        context = self._prefill(prompt)
        ids: list[int] = []
        for _ in range(num_tokens):
            ids.append(int(context.last_logits().argmax()))
            context.append(ids[-1])
        return ids
