"""docs/python.md is the docstrings', and has every public name. No model."""

import tinyllava_edge
from tools.api_page import PAGE, documented, filled

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_reference_is_current() -> None:
    assert filled(TEXT) == TEXT, "run python -m tools.api_page"


def test_every_public_name_is_there_with_its_methods() -> None:
    for name in tinyllava_edge.__all__:
        assert name.startswith("_") or f"\n### {name}\n" in TEXT
    for method in ("ask", "ask_each", "answer", "chat", "prepare", "forget", "close"):
        assert f"\n#### `{method}(" in TEXT
    assert len(documented()) > 10


def test_sections_are_lists_and_what_is_our_own_is_left_out() -> None:
    assert "\n*Raises:*\n\n- `BundleError`: the bundle is damaged, or has no such variant.\n" in TEXT
    assert "Args:\n    " not in TEXT
    for internal in ("end_running", "in_worker", "_answer"):
        assert f"#### `{internal}" not in TEXT
