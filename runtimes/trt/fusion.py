"""What an engine's inspector says of attention: is each block one kernel?

The inspector answers with JSON, `{"Layers": [...]}`: objects where the engine was built with detailed
profiling verbosity, names alone where not; a verbose build prints the same as lines. Where a whole region is
one opaque node nothing can be told (docs/sources/tensorrt.md#engine-inspector).
"""

import json
import re
from dataclasses import dataclass

# Kernels that compute QK^T, softmax and PV at once. A graph's own nodes may have "mha" in their names too.
_FUSED = re.compile(r"_gem[mv]_mha|\bfmha_|fused_multihead_attention", re.IGNORECASE)
_OPAQUE = re.compile(r"ForeignNode\[")
_LINE = re.compile(r"^Name: (.+?), LayerType: (?:.*, TacticName: ([^,\n]*))?", re.MULTILINE)


@dataclass(frozen=True)
class Fusion:
    """What was found.

    Attributes:
        layers: kernels in the engine, or layers where it shows no kernels.
        fused: attention blocks that are one kernel, or None where that cannot be told.
    """

    layers: int
    fused: int | None

    def text(self, blocks: int | None) -> str:
        """For people; `blocks` is how many attention blocks the graph has, None where nobody counted."""
        if self.fused is None:
            return "fusion not shown by the inspector"
        return f"attention fused in {self.fused}" + ("" if blocks is None else f" of {blocks}")


def is_fused_attention(name: str) -> bool:
    """Whether a kernel of that name computes a whole attention block."""
    return _FUSED.search(name) is not None


def read_fusion(text: str) -> Fusion:
    """Read an inspector's answer, JSON or lines; one in a form that is not known tells nothing."""
    layers = _json_layers(text) or [f"{name} {tactic}" for name, tactic in _LINE.findall(text)]
    fused = sum(is_fused_attention(layer) for layer in layers)
    hidden = not layers or (fused == 0 and any(_OPAQUE.search(layer) for layer in layers))
    return Fusion(len(layers), None if hidden else fused)


def _json_layers(text: str) -> list[str]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return []
    layers = content.get("Layers") if isinstance(content, dict) else None
    return [_described(layer) for layer in layers] if isinstance(layers, list) else []


def _described(layer: object) -> str:
    """Name and tactic of a layer, by which its kernel is known."""
    if not isinstance(layer, dict):
        return str(layer)
    return f"{layer.get('Name')} {layer.get('TacticName')}"
