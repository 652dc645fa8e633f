"""What a user may ask of an export, checked before any work is done."""

from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.errors import UsageError
from tinyllava_edge.precisions import ALL_LANGUAGE_TYPES, LANGUAGE_TYPES, PRECISIONS

_NEEDS_IMATRIX = "llama.cpp's quantizer needs an importance matrix for it, and this exporter makes none"
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
        sources: where tokenizer and processor files are that the checkpoint only names.
        template: name of the prompt template, instead of the checkpoint's own.
        calibration: directory of pictures for int8 and for float16's range; the package's own without.
        force: replace an existing output.
        allow_pickle: read `.bin` weights.
        repository: of the hub, where the checkpoint was downloaded from one.
        commit: the repository's, likewise.

    Raises:
        UsageError: a name is not known, is refused, or a part has none.
    """

    vision: tuple[str, ...] = ("fp32", "fp16")
    language: tuple[str, ...] = ("f32", "f16", "q8_0", "q4_k_m")
    interchange: tuple[str, ...] = ()
    sources: Path | None = None
    template: str | None = None
    calibration: Path | None = None
    force: bool = False
    allow_pickle: bool = False
    repository: str = ""
    commit: str = ""

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

    def vision_variants(self) -> list[str]:
        """The vision precisions asked for, each once, most precise first."""
        return [name for name in PRECISIONS if name in self.vision]

    def language_variants(self) -> list[str]:
        """The language types asked for, each once, most precise first."""
        return [name for name in ALL_LANGUAGE_TYPES if name in self.language]


def parse_names(text: str) -> tuple[str, ...]:
    """Split a command line's comma-separated names."""
    return tuple(name.strip().lower() for name in text.split(",") if name.strip())
