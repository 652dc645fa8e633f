"""Where the golden fixtures are: values that the original TinyLLaVA code computed (see their README)."""

import json
import os
from pathlib import Path
from typing import Any

_SHARED = Path(os.environ.get("TINYLLAVA_EDGE_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))
_COPIES = Path(__file__).parent / "fixtures"


def shared_fixtures() -> Path:
    """The whole set beside the repository where it is, and else the copies of the small ones in it."""
    return _SHARED if _SHARED.is_dir() else _COPIES


def read_golden(relative: str) -> Any:
    """Read one of the JSON files."""
    return json.loads((shared_fixtures() / relative).read_text(encoding="utf-8"))
