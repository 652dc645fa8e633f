"""What a user may ask of an export, checked before any work is done."""

import re
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.errors import UsageError
from tinyllava_edge.precisions import (
    ALL_LANGUAGE_TYPES,
    LANGUAGE_TYPES,
    PRECISIONS,
    TENSOR_SNR_DB,
    matrix_types,
)

_NEEDS_IMATRIX = "llama.cpp's quantizer needs an importance matrix for it, and no gate of it was measured"
_FLOATS = ("f32", "f16", "bf16")
UNWEIGHTED = (*_FLOATS, "q8_0", "tq2_0", "tq1_0")  # whose quantizer weighs no errors (ggml-quants.c)
TENSOR_TYPES = tuple(name.lower() for name in TENSOR_SNR_DB if name != "F32")
MMPROJ, TRANSFORMERS = "mmproj", "transformers"
INTERCHANGE = (MMPROJ, TRANSFORMERS)
REFUSED_LANGUAGE_TYPES = {
    **dict.fromkeys(("iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs"), _NEEDS_IMATRIX),
    **dict.fromkeys(("iq1_m", "iq1_s", "q2_k_s"), _NEEDS_IMATRIX),
    "mxfp4_moe": "it changes only the experts of a mixture of experts, of which there are none here",
    "nvfp4": "llama.cpp's quantizer does not write it",
    "q1_0": "the gguf package cannot read it back, so it could not be verified",
    "q2_0": "the gguf package cannot read it back, so it could not be verified",
}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to make of a checkpoint.

    Attributes:
        vision: names from `precisions.PRECISIONS`.
        language: names from `precisions.ALL_LANGUAGE_TYPES`.
        interchange: names from `INTERCHANGE`: files for other programs.
        calibration: directory of pictures for int8 and for float16's range; the package's own without.
        imatrix: file or folder of prompts (`imatrix.read_prompts`) that say how much errors of quantized
            types weigh; without, all weigh the same.
        images: folder of the pictures that the file names; its own without.
        tensor_types: "REGEX=TYPE"; the first that is found in a tensor's GGUF name says its type.
        force: replace an existing output.

    Raises:
        UsageError: a name is not known, is refused, or a part has none.
    """

    vision: tuple[str, ...] = ("fp32", "fp16")
    language: tuple[str, ...] = ("f32", "f16", "q8_0", "q4_k_m")
    interchange: tuple[str, ...] = ()
    calibration: Path | None = None
    imatrix: Path | None = None
    images: Path | None = None
    tensor_types: tuple[str, ...] = ()
    force: bool = False

    def __post_init__(self) -> None:
        for part, names, known in (
            ("vision", self.vision, PRECISIONS),
            ("language", self.language, ALL_LANGUAGE_TYPES),
        ):
            if not names:
                raise UsageError(f"--{part}: name at least one of {', '.join(known)}.")
            for name in names:
                if part == "language" and name in REFUSED_LANGUAGE_TYPES:
                    raise UsageError(f"--language {name}: {REFUSED_LANGUAGE_TYPES[name]}.")
                if name not in known:
                    raise UsageError(f"--{part} {name!r} is not known. Known: {', '.join(known)}.")

        if odd := next((name for name in self.interchange if name not in INTERCHANGE), None):
            raise UsageError(f"--interchange {odd!r} is not known. Known: {', '.join(INTERCHANGE)}.")
        if MMPROJ in self.interchange and not set(self.language) & {*LANGUAGE_TYPES}:
            raise UsageError(
                "--interchange mmproj: llama.cpp needs a GGUF file beside it: add one of "
                f"{', '.join(LANGUAGE_TYPES)} to --language."
            )
        if TRANSFORMERS in self.interchange and len(self.interchange) > 1:
            raise UsageError(
                "--interchange transformers writes a directory that is no bundle, and mmproj into a bundle: "
                "export twice, to two outputs."
            )

        self._check_recipes()

    def _check_recipes(self) -> None:
        if TRANSFORMERS in self.interchange and (self.imatrix or self.tensor_types):
            raise UsageError(
                "--imatrix and --tensor-type make GGUF files: --interchange transformers has none."
            )
        if self.images and (self.imatrix is None or self.imatrix.is_dir()):
            raise UsageError(
                "--images: is for the pictures that a file of --imatrix names; there is no file."
            )
        if self.imatrix and not any(map(self.is_weighted, self.language)):
            raise UsageError(
                f"--imatrix: of no use to --language {','.join(self.language)}, which weighs no errors. Add "
                "a type that does, as q4_k_m or q4_0."
            )
        kinds = {parse_tensor_type(rule)[1] for rule in self.tensor_types}
        if kinds and not any(map(self.is_mixed, self.language)):
            raise UsageError(
                f"--tensor-type: no type of --language {','.join(self.language)} can hold "
                f"{' and '.join(sorted(kinds))}. Add a quantized GGUF type, as q4_k_m: tensors may be more "
                "precise than their file's type, never less."
            )

    def is_weighted(self, name: str) -> bool:
        """Whether a language variant is quantized by the importance matrix."""
        return self.imatrix is not None and name in LANGUAGE_TYPES and name not in UNWEIGHTED

    def is_mixed(self, name: str) -> bool:
        """Whether `tensor_types` hold for a language variant: none of them is less precise than its own."""
        kinds = {parse_tensor_type(rule)[1].upper() for rule in self.tensor_types}
        return bool(kinds) and name in LANGUAGE_TYPES and name not in _FLOATS and kinds <= matrix_types(name)

    def vision_variants(self) -> list[str]:
        """The vision precisions asked for, each once, most precise first."""
        return [name for name in PRECISIONS if name in self.vision]

    def language_variants(self) -> list[str]:
        """The language types asked for, each once, most precise first."""
        return [name for name in ALL_LANGUAGE_TYPES if name in self.language]


def parse_names(text: str) -> tuple[str, ...]:
    """Split a command line's comma-separated names."""
    return tuple(name.strip().lower() for name in text.split(",") if name.strip())


def parse_tensor_type(rule: str) -> tuple[re.Pattern[str], str]:
    """A regular expression of tensors' names in GGUF, and the type that they get.

    Raises:
        UsageError: it is not REGEX=TYPE, or one of them is not known.
    """
    pattern, equals, kind = rule.rpartition("=")
    if not (pattern and equals):
        raise UsageError(f"--tensor-type {rule!r}: expected REGEX=TYPE, as attn_v=q8_0.")
    if kind.lower() not in TENSOR_TYPES:
        raise UsageError(
            f"--tensor-type {rule!r}: type {kind!r} is not known. Known: {', '.join(TENSOR_TYPES)}."
        )
    try:
        return re.compile(pattern), kind.lower()
    except re.error as error:
        raise UsageError(f"--tensor-type {rule!r}: not a regular expression ({error}).") from None
