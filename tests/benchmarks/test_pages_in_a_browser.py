"""A report and a card as a browser shows them: whole, by themselves, readable by all. `make browser`."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.runtimes.serve.browsing import browser_at, faults_of_access
from tinyllava_edge.module_process import module_command

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browser_at() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages, each in a folder where nothing else is."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copy(RESULTS / "qwen2-0.5b-siglip-random" / "report.html", folder)
    asked = ("card", "nano", "-o", str(folder / "card"), "--bench", str(RESULTS / "nano"), "--quiet")
    subprocess.run(module_command("tinyllava_edge", *asked), check=True)
    return {"report": folder / "report.html", "card": folder / "card" / "card.html"}


@pytest.mark.parametrize("name", ["report", "card"])
@pytest.mark.parametrize("width", [390, 1040])
def test_a_page_is_whole_and_asks_nobody(browser: Any, pages: dict[str, Path], name: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(pages[name].as_uri())
    assert [url for url in asked if not url.startswith(("data:", pages[name].as_uri()))] == []
    assert faults == []
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert faults_of_access(page) == []
    if width == 1040 and (shots := os.environ.get("TINYLLAVA_EDGE_SHOTS")):
        path = ROOT / shots / f"{name}.png"
        page.screenshot(path=path)
        Image.open(path).convert("RGB").save(path, optimize=True)
        assert path.stat().st_size < 150_000
    context.close()
