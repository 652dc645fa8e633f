"""What makes a quantized GGUF variant another than its type alone would: imatrix and types of tensors."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tinyllava_edge.errors import UsageError
from tinyllava_edge.manifest import Recipe

from .imatrix import Imatrix
from .options import ExportOptions, parse_tensor_type


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """Of all variants of an export.

    Attributes:
        options: of the export.
        types: of `resolve_types`.
        imatrix: where `options` ask for one.
    """

    options: ExportOptions = field(default_factory=ExportOptions)
    types: dict[str, str] = field(default_factory=dict)
    imatrix: Imatrix | None = None

    def types_of(self, name: str) -> dict[str, str]:
        """Types that a variant's tensors were asked to have, by their names in GGUF."""
        return self.types if self.options.is_mixed(name) else {}

    def arguments(self, name: str) -> dict[str, Any]:
        """For `quantize_gguf`."""
        measured = self._imatrix_of(name)
        return {"types": self.types_of(name), "imatrix": measured.mean_squares if measured else None}

    def recorded(self, name: str) -> Recipe | None:
        """For the manifest; None for a variant of its type alone."""
        rules = self.options.tensor_types if self.options.is_mixed(name) else ()
        measured = self._imatrix_of(name)
        if measured is None:
            return Recipe(tensor_types=rules) if rules else None
        return Recipe(
            imatrix_prompts=measured.prompts, imatrix_positions=measured.positions, tensor_types=rules
        )

    def _imatrix_of(self, name: str) -> Imatrix | None:
        return self.imatrix if self.options.is_weighted(name) else None


def resolve_types(rules: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Types of the matrices that rules are for, by name; the first that is found in a name counts.

    Raises:
        UsageError: a rule is for none.
    """
    left, types = list(names), dict[str, str]()
    for rule in rules:
        pattern, kind = parse_tensor_type(rule)
        found = [name for name in left if pattern.search(name)]
        if not found:
            raise UsageError(
                f"--tensor-type {rule!r}: no matrix has such a name, or an earlier rule took all that have. "
                f"Some names: {', '.join(left[:8])}."
            )
        types |= dict.fromkeys(found, kind)
        left = [name for name in left if name not in types]
    return types
