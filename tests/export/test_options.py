"""Names are checked before any work."""

import llama_cpp
import pytest

from tinyllava_edge.errors import UsageError
from tinyllava_edge.export.options import (
    REFUSED_LANGUAGE_TYPES,
    ExportOptions,
    parse_names,
)
from tinyllava_edge.precisions import LANGUAGE_TYPES


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vision": ("fp8",)}, ["'fp8' is not known", "fp32, fp16, bf16, int8, int8_fp16"]),
        ({"language": ("q4_x",)}, ["'q4_x' is not known", "q4_k_m", "iq4_xs"]),
        ({"language": ("iq2_xs",)}, ["iq2_xs", "importance matrix"]),
        ({"language": ("mxfp4_moe",)}, ["experts"]),
        ({"vision": ()}, ["--vision", "at least one"]),
        ({"language": ()}, ["--language", "at least one"]),
        ({"interchange": ("ggml",)}, ["'ggml' is not known", "mmproj, transformers"]),
        ({"interchange": ("mmproj", "transformers")}, ["export twice"]),
        ({"interchange": ("mmproj",), "language": ("ov_int8",)}, ["needs a GGUF file", "q4_k_m"]),
    ],
)
def test_a_name_that_cannot_be_exported_is_refused_with_the_reason(
    options: dict[str, tuple[str, ...]], words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        ExportOptions(**options)  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)


def test_variants_come_once_each_and_most_precise_first() -> None:
    options = ExportOptions(
        vision=("int8", "fp16", "fp32", "bf16", "fp16"), language=("q4_k_m", "f16", "q8_0", "f32")
    )
    assert options.vision_variants() == ["fp32", "fp16", "bf16", "int8"]
    assert options.language_variants() == ["f32", "f16", "q8_0", "q4_k_m"]


def test_every_file_type_of_llama_cpp_is_offered_or_refused_with_a_reason() -> None:
    """The list of types is llama.cpp's own enum, as the installed binding has it."""
    prefix = "LLAMA_FTYPE_MOSTLY_"
    known = {name.removeprefix(prefix).lower() for name in dir(llama_cpp) if name.startswith(prefix)}
    assert known | {"f32"} == {*LANGUAGE_TYPES, *REFUSED_LANGUAGE_TYPES}
    assert not set(LANGUAGE_TYPES) & set(REFUSED_LANGUAGE_TYPES)


def test_a_command_lines_names_may_have_spaces_and_capitals() -> None:
    assert parse_names("F16, q8_0 ,,Q4_K_M") == ("f16", "q8_0", "q4_k_m")
