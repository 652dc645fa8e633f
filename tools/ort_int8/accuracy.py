"""What a language model loses where ONNX Runtime computes its products: KL and top-1 against torch."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache

from tinyllava_edge.benchmarks.verify.reference import PromptCase
from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.checkpoint.config import IMAGE_MARKER
from tinyllava_edge.console import note
from tinyllava_edge.metrics import kl_divergence, top1_agreement
from tinyllava_edge.model.language_model import continued_logits
from tinyllava_edge.runtimes.threads import thread_budget

from .graphs import Floats, open_products
from .smooth import smooth, watched_inputs

ChooseKind = Callable[[str], str]  # name of a linear layer -> its kind
Swapped = dict[str, "Product"]
Record = dict[str, Any]
CALIBRATED, JUDGED = "calibration", "verify's prompts"
CALIBRATION = (
    PromptCase("a story", ((f"{IMAGE_MARKER}\nTell a story about it.", None),), (2,)),
    PromptCase("the sea", (("Write about the sea.", None),), ()),
    PromptCase("why", ((f"{IMAGE_MARKER}\nWhat is to be seen?", "A thing."), ("Why?", None)), (9,)),
)
ALPHAS = (0.5, 0.7)
SMOOTHED = ("tensor", "rows", "tensor, down rows")
DECODES = ("blocks8", "blocks4")
HEADS = {"blocks8": "blocks8", "blocks4": "blocks8"}  # each token reads it; other heads are float32


@dataclass(frozen=True)
class Trial:
    """A prompt with an answer, and what torch in float32 says at the answer's tokens.

    Attributes:
        rows: [positions, hidden], those of the prompt and of all tokens but the last.
        answer: tokens.
        expected: [tokens, vocab].
    """

    rows: torch.Tensor
    answer: int
    expected: Floats


class Product(nn.Module):
    """A linear layer in a session of ONNX Runtime."""

    def __init__(self, kind: str, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().numpy()
        self._session = open_products(kind, {"x": {"y": weight}}, thread_budget(None))
        self._bias = linear.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., columns in] -> [..., columns out]."""
        flat = rows.detach().flatten(0, -2).contiguous().numpy()
        found = torch.from_numpy(self._session.run(["y"], {"x": flat})[0]).view(*rows.shape[:-1], -1)
        return found if self._bias is None else found + self._bias


def trials(reference: CheckpointReference, prompts: tuple[PromptCase, ...]) -> list[Trial]:
    """Of prompts, each with the answer that `verify` would sample behind it."""
    language: Any = reference.model.language_model
    table = language.get_input_embeddings().weight.detach()
    found = []
    for prompt in prompts:
        answer = reference.continuation(prompt)
        rows = torch.cat([torch.from_numpy(reference.splice(prompt)), table[list(answer.ids[:-1])]])
        found.append(Trial(rows, len(answer.ids), reference.logits_with({}, rows)[-len(answer.ids) :]))
    return found


def products_of(language: nn.Module, choose: ChooseKind) -> Swapped:
    """A product for every linear layer, of its weights as they are now, but for "float32"."""
    layers = [(name, layer) for name, layer in language.named_modules() if isinstance(layer, nn.Linear)]
    return {name: Product(choose(name), layer) for name, layer in layers if choose(name) != "float32"}


@contextmanager
def swapped(language: nn.Module, products: Swapped) -> Iterator[None]:
    """The model with these products in the place of its linear layers."""
    before = {name: language.get_submodule(name) for name in products}
    try:
        for name, product in products.items():
            language.set_submodule(name, product)
        yield
    finally:
        for name, layer in before.items():
            language.set_submodule(name, layer)


@torch.no_grad()
def figures(language: Any, found: list[Trial], prefill: Swapped, decode: Swapped | None) -> dict[str, float]:
    """Divergence and agreement over the tokens of all answers.

    Args:
        language: transformers' causal model.
        found: what it is held against.
        prefill: computes the prompts, and the answers too where `decode` is None.
        decode: computes the answers, behind the keys and values that the prefill left.
    """
    divergences, agreements = [], []
    for trial in found:
        cache = DynamicCache()
        split = len(trial.rows) - (trial.answer - 1 if decode is not None else 0)
        with swapped(language, prefill):
            keep = 1 if decode is not None else trial.answer
            logits = continued_logits(language, trial.rows[None, :split], cache, keep=keep)
        if decode is not None:
            with swapped(language, decode):
                behind = continued_logits(language, trial.rows[None, split:], cache)
            logits = torch.cat([logits, behind], dim=1)
        divergences.append(kl_divergence(trial.expected, logits[0].numpy()))
        agreements.append(top1_agreement(trial.expected, logits[0].numpy()))
    every = np.concatenate(divergences)
    return {
        "mean_kld": float(every.mean()),
        "p99_kld": float(np.percentile(every, 99, method="higher")),
        "top1_agreement": float(np.average(agreements, weights=[trial.answer for trial in found])),
        "tokens": len(every),
    }


def kinds_of(way: str) -> ChooseKind:
    """Kinds of the layers, by a way's name: "tensor", or "tensor, down rows".

    The head makes logits of a prompt's last row alone, so it stays float32 where it may.
    """
    others, _, down = way.partition(", down ")

    def choose(name: str) -> str:
        if name == "lm_head":
            return HEADS.get(way, "float32")
        return down if down and name.endswith("down_proj") else others

    return choose


def measure_accuracy(reference: CheckpointReference) -> list[Record]:
    """Figures of every way with every alpha, on prompts of its own and on those of `verify`.

    Returns:
        a record each: on, prefill, decode (None: as the prefill), alpha (None: not smoothed), `figures`; and
        is_chosen, where the way has this alpha for its figures on the prompts of its own. The best way of all
        is measured with each decode, too.
    """
    language: Any = reference.model.language_model
    held = {CALIBRATED: trials(reference, CALIBRATION), JUDGED: trials(reference, reference.prompts)}
    with watched_inputs(language) as largest:
        for trial in held[CALIBRATED]:
            reference.logits_with({}, trial.rows)
    exact = {name: value.clone() for name, value in language.state_dict().items()}
    rows: list[Record] = []

    def measure(way: str, alpha: float | None, *decodes: str) -> None:
        language.load_state_dict(exact)
        if alpha is not None:
            smooth(language, largest, alpha)
        prefill = products_of(language, kinds_of(way))
        for decode in decodes or (None,):
            second = None if decode is None else products_of(language, kinds_of(decode))
            for on in (JUDGED,) if decode else held:
                head = {"on": on, "prefill": way, "decode": decode, "alpha": alpha, "is_chosen": False}
                rows.append({**head, **figures(language, held[on], prefill, second)})
                note(str(rows[-1]))

    for way in SMOOTHED:
        for alpha in (None, *ALPHAS):
            measure(way, alpha)
    tried = [row for row in rows if row["on"] == CALIBRATED]
    for way in SMOOTHED:
        _best(row for row in tried if row["prefill"] == way)["is_chosen"] = True
    best = _best(tried)
    measure(best["prefill"], best["alpha"], *DECODES)
    for way in DECODES:
        measure(way, None)
    measure("float32", None, *DECODES)
    language.load_state_dict(exact)
    return rows


def _best(rows: Iterable[Record]) -> Record:
    return min(rows, key=lambda row: float(row["mean_kld"]))
