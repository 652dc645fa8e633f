"""The released TinyLLaVA checkpoints, and what their authors published of them.

Figures: spec/tinyllava.md section 4 (README of TinyLLaVA Factory and of TinyLLaVABench). No revision could be
looked up where this was written, so none is pinned here: a report records the commit that it resolved, and
`owner/name@commit` on the command line pins it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Released:
    """One checkpoint of the hub; a score is None where none was published."""

    repository: str
    pope: float | None = None  # mean F1 of the three splits, in per cent
    textvqa: float | None = None  # accuracy with OCR tokens in the prompt, in per cent
    note: str = ""


RELEASED = (
    Released(
        repository="tinyllava/TinyLLaVA-Phi-2-SigLIP-3.1B", pope=87.2, textvqa=60.3, note="recipe share"
    ),
    Released(repository="tinyllava/TinyLLaVA-Gemma-SigLIP-2.4B", pope=86.4, textvqa=53.6),
    Released(repository="jiajunlong/TinyLLaVA-0.89B", pope=85.4, textvqa=44.0, note="OpenELM-450M"),
    Released(repository="Zhang199/TinyLLaVA-Qwen2-0.5B-SigLIP", pope=86.6, textvqa=45.2),
    Released(repository="Zhang199/TinyLLaVA-Qwen2.5-3B-SigLIP", pope=87.4, textvqa=58.3),
    Released(repository="bczhou/TinyLLaVA-3.1B", textvqa=59.1, note="TinyLLaVABench"),
    Released(repository="bczhou/TinyLLaVA-2.0B", textvqa=56.4, note="TinyLLaVABench"),
    Released(repository="bczhou/TinyLLaVA-1.5B", textvqa=51.7, note="TinyLLaVABench"),
)
