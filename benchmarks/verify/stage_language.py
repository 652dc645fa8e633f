"""Ladder stages 7 to 11: spliced embeddings, prefill logits, teacher-forced distributions, greedy answers.

All of them from the bundle alone: text rows are the file's own token embedding, picture rows come from the
vision backend. The KV cache is float32, so that what is measured is the variant.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tinyllava_edge import metrics
from tinyllava_edge.bounds import Gate, at_least, at_most
from tinyllava_edge.bundle import Variant
from tinyllava_edge.compute_classes import FLOAT32_CPU, ComputeClass, about, vision_precision
from tinyllava_edge.errors import BackendError, TinyLlavaEdgeError
from tinyllava_edge.gates import PROVEN, largest_logit_error, widened
from tinyllava_edge.metrics import kl_divergence, max_abs_difference, nmse, snr_db
from tinyllava_edge.precisions import ALL_LANGUAGE_TYPES, LANGUAGE_CLASSES
from tinyllava_edge.runtimes.model import open_bundle
from tinyllava_edge.verified_rule import held_against

from .ladder import Ladder, StageResult, judge, refused
from .language_files import read_embeddings, rounder
from .language_run import LanguageRun, input_rows
from .reference import PromptCase
from .stage_dequantized import (
    QUANTIZATION,
    check_dequantized,
    cost_of_weights,
    quantization_cause,
    wider_type,
)
from .stage_vision import is_run
from .stage_weights import language_path

Floats = npt.NDArray[np.float32]
OnStage = Callable[[str], None]
OnRun = Callable[[LanguageRun], None]
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
        known = ALL_LANGUAGE_TYPES.get(self.language.name)  # of another, the stages say it has no gates
        quantized = ["dequantized"] if known and LANGUAGE_CLASSES[known].is_quantized else []
        return [*first, "logits", *quantized, "teacher_forced", "greedy"]


def language_stages(ladder: Ladder) -> list[str]:
    """The stages that `check_language` will begin, in order."""
    return [stage for pair in _pairs(ladder) for stage in pair.stages]


def check_language(
    ladder: Ladder, on_stage: OnStage, on_run: OnRun = lambda run: None
) -> Iterator[StageResult]:
    """Stages 7 to 11 of every language variant, and of every further vision variant that can be run.

    Args:
        ladder: as of `climb`.
        on_stage: called with the name of each stage when it begins; a pair's first one opens the model.
        on_run: called with each model behind its stages, before it is closed.
    """
    if not any(map(is_run, ladder.vision)):
        yield StageResult(stage="splice", skipped="no runtime here runs a vision variant that was chosen")
    for pair in _pairs(ladder):
        first, *others = pair.stages
        on_stage(first)
        try:
            options = replace(ladder.options_of(pair.vision, pair.language), kv_type="f32")
            with open_bundle(ladder.bundle, runtime=ladder.runtime, **vars(options)) as model:
                compute = getattr(model.language, "compute_class", FLOAT32_CPU)
                run = LanguageRun(model, ladder.reference)
                judge_of = _Judge(ladder, pair, run, compute)
                yield judge_of.check(first)
                for stage in others:
                    on_stage(stage)
                    yield judge_of.check(stage)
                on_run(run)
        except TinyLlavaEdgeError as error:
            yield refused(first, pair.label, error)


def _pairs(ladder: Ladder) -> Iterator[_Pair]:
    vision = [variant for variant in ladder.vision if is_run(variant)]
    for index, one in enumerate(vision):
        seen = vision_precision(one.name, ladder.vision_compute)
        for language in ladder.language if index == 0 else ladder.language[:1]:
            alone = index == 0 and not ladder.further
            label = language.name if alone else f"{language.name}, vision {one.name}"
            yield _Pair(one, language, label, _gates_with(seen, language.name), index == 0)


def _gates_with(vision: str, language: str) -> str:
    """Whose gates count: a lossy vision tower costs about what a lossy language model does."""
    kind = ALL_LANGUAGE_TYPES.get(language)
    if kind in ("f32", "f16") and vision in ("int8", "bf16"):
        return "q8_0"
    return "f16" if kind == "f32" and vision != "fp32" else language


class _Judge:
    """The stages of one pair of variants, each of which may look at those before it."""

    def __init__(self, ladder: Ladder, pair: _Pair, run: LanguageRun, compute: ComputeClass) -> None:
        self._ladder = ladder
        self._reference = ladder.reference
        self._family = ladder.bundle.manifest.language.architecture
        self._pair = pair
        self._run = run
        self._compute = compute
        self._about = f"; {said}" if (said := about(compute)) else ""
        self._logit_tolerance = 0.0  # largest difference of a logit so far
        self._judged: dict[str, StageResult] = {}

    def check(self, stage: str) -> StageResult:
        """One of the pair's stages, which are computed in their order."""
        checks = {
            "splice": self._splice,
            "logits": self._logits,
            "dequantized": self._dequantized,
            "teacher_forced": self._teacher_forced,
            "greedy": self._greedy,
        }
        try:
            self._judged[stage] = checks[stage]()
        except TinyLlavaEdgeError as error:
            self._judged[stage] = refused(stage, self._pair.label, error)
        return self._judged[stage]

    def _gates(self, stage: str) -> tuple[Gate, ...]:
        return self._ladder.gates(stage, self._pair.gates, self._compute)

    def _splice(self) -> StageResult:
        """Input rows [positions, hidden] of every prompt."""
        reference = self._ladder.file_reference()
        path = language_path(self._ladder, self._pair.language)
        kind, table = read_embeddings(path)
        pairs: list[tuple[Floats, Floats]] = []
        text_pairs: list[tuple[Floats, Floats]] = []
        for prompt in reference.prompts:
            elements = self._run.elements(prompt)
            expected, found = reference.splice(prompt), input_rows(elements, table)
            _check_positions(prompt, expected, found)
            is_text = np.concatenate([[True] if isinstance(e, int) else [False] * len(e) for e in elements])
            pairs.append((expected, found))
            stored, least = held_against(expected[is_text], kind, rounder(path))
            text_pairs.append((stored, found[is_text]))
        snr, text_snr = (min(snr_db(*pair) for pair in some) for some in (pairs, text_pairs))
        return judge(
            "splice",
            self._pair.label,
            {"nmse": max(nmse(*pair) for pair in pairs), "snr_db": snr, "text_snr_db": text_snr},
            detail=f"{len(pairs)} prompts, token embedding {kind}",
            cause=lambda: (
                f"rows of text differ ({text_snr:.1f} dB): token_embd"
                if text_snr < snr + 1
                else f"rows of pictures differ ({snr:.1f} dB): scale, or their place in the prompt"
            ),
            gates=self._gates("splice") or (at_least("text_snr_db", least),),
        )

    def _logits(self) -> StageResult:
        """Prefill logits of every position, through the public `logits`."""
        pairs = [self._logit_pair(prompt) for prompt in self._reference.prompts]
        largest = self._logit_tolerance = max(max_abs_difference(*pair) for pair in pairs)
        is_finite = all(np.isfinite(found).all() for _, found in pairs)
        nothing_passes_nan = () if is_finite else (at_most("nmse", np.inf),)
        return judge(
            "logits",
            self._pair.label,
            {
                "nmse": max(nmse(*pair) for pair in pairs) if is_finite else np.nan,
                "max_abs_difference": largest,
            },
            detail=f"{sum(len(expected) for expected, _ in pairs)} positions of {len(pairs)} prompts"
            + self._about,
            cause=lambda: self._logits_cause(pairs),
            gates=self._gates("logits") or nothing_passes_nan,
        )

    def _logits_cause(self, pairs: Sequence[tuple[Floats, Floats]]) -> str:
        if not all(np.isfinite(found).all() for _, found in pairs):
            return f"NaN or infinite: weights in the file are ({_SEE_WEIGHTS}--checkpoint names the tensor)"
        prompts = list(self._reference.prompts)
        errors = [nmse(*pair) for pair in pairs]
        text_errors = [error for error, prompt in zip(errors, prompts, strict=True) if not prompt.pictures]
        if text_errors and max(errors) > 1000 * max(text_errors):
            return "prompts without a picture are right: the picture rows' scale, number or positions"
        return f"the language model computes something else ({_SEE_WEIGHTS}--checkpoint names the tensor)"

    def _logit_pair(self, prompt: PromptCase) -> tuple[Floats, Floats]:
        """What is expected of a prompt's last positions, and what the runtime gives for them."""
        expected = self._reference.logits(prompt)
        found = self._run.logits(prompt)[-len(expected) :]
        _check_positions(prompt, expected, found)
        return expected, found

    def _teacher_forced(self) -> StageResult:
        """Distributions over the next token, behind pictures, on tokens that the reference chose.

        Where dequantized passed, it says what the weights themselves cost.
        """
        pairs: list[tuple[Floats, Floats]] = []
        for prompt in self._reference.prompts:
            continuation = self._reference.continuation(prompt)
            if continuation is None:
                pairs.append(self._logit_pair(prompt))
            else:
                pairs.append((continuation.logits, self._run.forced_logits(prompt, continuation.ids)))
        expected, found = (np.concatenate(side) for side in zip(*pairs, strict=True))
        self._logit_tolerance = max(self._logit_tolerance, max_abs_difference(expected, found))
        divergence = kl_divergence(expected, found)
        mean_kld = float(divergence.mean())
        gates = self._gates("teacher_forced")
        cost = self._cost()
        if cost and self._pair.language.name in PROVEN:
            gates = widened(gates, cost)
        if len(divergence) < TOKENS_FOR_A_PERCENTILE:
            gates = tuple(gate for gate in gates if gate.metric != "p99_kld")
        return judge(
            "teacher_forced",
            self._pair.label,
            {
                "mean_kld": mean_kld,
                "p99_kld": float(np.percentile(divergence, 99, method="higher")),
                "top1_agreement": metrics.top1_agreement(expected, found),
            },
            detail=f"{len(divergence)} tokens{self._about}",
            cause=lambda: (
                quantization_cause(cost, mean_kld, self._wider())
                or "distributions are too far apart: too coarse a quantization, or what the runtime computes"
            ),
            gates=gates,
        )

    def _cost(self) -> dict[str, float]:
        """What torch loses with the file's values, where the runtime was shown to compute what they give."""
        before = self._judged.get("dequantized")
        return cost_of_weights(before) if before and before.status == "passed" else {}

    def _wider(self) -> str:
        return wider_type(self._ladder.bundle, self._pair.language.name)

    def _dequantized(self) -> StageResult:
        """What teacher_forced will judge, against torch with the values of the file."""
        path = language_path(self._ladder, self._pair.language)
        reference, gates = self._ladder.file_reference(), self._gates("dequantized")
        return check_dequantized(reference, path, self._pair.label, self._run, gates)

    def _greedy(self) -> StageResult:
        """Greedy answers are the reference's up to a step at which two tokens are equally good."""
        logit_stages = ("logits", "dequantized", "teacher_forced")  # wrong logits explain nothing
        excusable = all(self._judged[s].status != "failed" for s in logit_stages if s in self._judged)
        cap = largest_logit_error(self._pair.gates, self._family, self._compute)
        tolerance = min(self._logit_tolerance, cap) if excusable else 0.0
        unexplained: list[tuple[str, float]] = []  # where, and the margin there
        diverged: list[int] = []  # where answers leave the reference's
        for prompt in self._reference.prompts:
            answer = self._reference.greedy(prompt)
            steps = np.flatnonzero(np.not_equal(self._run.greedy(prompt, len(answer.ids)), answer.ids))
            if len(steps) == 0:
                continue
            diverged.append(int(steps[0]))
            margin = answer.margins[steps[0]]
            if margin >= 2 * tolerance:
                unexplained.append((f"{prompt.name} at token {steps[0]}, margin {margin:.3g}", margin))
        num_answers = len(self._reference.prompts)
        return judge(
            "greedy",
            self._pair.label,
            {
                "unexplained_divergences": len(unexplained),
                "exact_answers": num_answers - len(diverged),
                "first_divergence": min(diverged, default=np.inf),
            },
            detail=f"{num_answers} answers, logits within {tolerance:.3g}",
            cause=lambda: self._greedy_cause(*unexplained[0], excusable=excusable),
            gates=(at_most("unexplained_divergences", 0),),
        )

    def _greedy_cause(self, where: str, margin: float, *, excusable: bool) -> str:
        if not excusable:
            return f"{where}: the logits are wrong already"
        if self._cost() and margin < 2 * self._logit_tolerance:
            moved = f"it moves a logit by {self._logit_tolerance:.3g}"
            return f"{where}: {QUANTIZATION}, which torch has too: {moved}; {self._wider()}"
        return f"{where}: decoding by steps differs from one prefill (KV cache, positions)"


def _check_positions(prompt: PromptCase, expected: Floats, found: Floats) -> None:
    if found.shape != expected.shape:
        numbers = f"{len(found)} positions, expected {len(expected)}"
        raise BackendError(f"{prompt.name}: {numbers}: ids, or tokens per picture")
