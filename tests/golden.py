"""Where the golden fixtures are: values that the original TinyLLaVA code computed (see their README)."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

_SHARED = Path(os.environ.get("TINYLLAVA_EDGE_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))
_COPIES = Path(__file__).parent / "fixtures"


# The golden checkpoints of the whole set; the repository holds copies of two.
CHECKPOINT_NAMES = (
    "gemma-clip-mlp3x-clspatch",
    "legacy-bench-1.5b-llama-siglip",
    "openelm-siglip-mlp2x-last-fp16",
    "phi-dinov2-resampler",
    "phi-siglip-mlp2x",
    "phi-siglip-mlp2x-lora",
    "qwen2-dinov2-linear-pretrain",
    "qwen2-siglip-mlp2x-bf16-sharded",
    "qwen2i-clip-qformer-last-pad",
    "stablelm-siglip-identity-clspatch-pad",
    "stablelm-siglip-linear-fp16",
    "tinyllama-clip-mlp2x-pad",
    "tinyllama-mof-mofmlp",
)


def shared_fixtures() -> Path:
    """The whole set beside the repository where it is, and else the copies of the small ones in it."""
    if "TINYLLAVA_EDGE_FIXTURES" in os.environ and not _SHARED.is_dir():
        raise FileNotFoundError(f"TINYLLAVA_EDGE_FIXTURES names {_SHARED}, which is not a directory")
    return _SHARED if _SHARED.is_dir() else _COPIES


def golden_checkpoint(name: str) -> Path:
    """The folder of one golden checkpoint; the test is skipped where it is not at hand."""
    folder = shared_fixtures() / "checkpoints" / name
    if not folder.is_dir():
        pytest.skip(f"golden checkpoint {name} is not at {folder}: too large to be copied here")
    return folder


def read_golden(relative: str) -> Any:
    """Read one of the JSON files."""
    return json.loads((shared_fixtures() / relative).read_text(encoding="utf-8"))
