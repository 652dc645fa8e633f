"""A browser for the tests of the page: Debian's Chromium, driven by Playwright over the DevTools protocol.

`make browser` puts Playwright and axe-core into a folder of their own; neither is part of any extra.
"""

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = os.environ.get("TINYLLAVA_EDGE_BROWSER", "/usr/bin/chromium")
AXE = os.environ.get("TINYLLAVA_EDGE_AXE", "")
# What every tab is told before its page's own scripts: to remember what the policy refused, and any dialog.
_WATCH = """
window.refused = [];
document.addEventListener("securitypolicyviolation", (event) =>
  refused.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
_TRANSFER = """([name, type, text]) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  return transfer;
}"""


@contextmanager
def browser_at(program: str = PROGRAM) -> Iterator[Any]:
    """The browser, with a camera that shows a test card."""
    from playwright.sync_api import sync_playwright

    options = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    if os.name == "posix" and os.geteuid() == 0:
        options.append("--no-sandbox")  # it has none as root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tab(browser: Any, url: str, *, ready: bool = True, **options: Any) -> Iterator[Any]:
    """The page in a tab of its own; at the end it has asked nobody else, and broken no rule.

    Args:
        browser: that runs.
        url: of the server.
        ready: wait until the models are there.
        options: of the browser's context, such as `color_scheme` and `viewport`.
    """
    context = browser.new_context(**{"viewport": {"width": 1120, "height": 760}, **options})
    context.add_init_script(_WATCH)
    page = context.new_page()
    page.set_default_timeout(10_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))

    def on_dialog(dialog: Any) -> None:
        faults.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    page.on("dialog", on_dialog)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}/")
    if ready:
        page.wait_for_selector("#model:enabled")
    try:
        yield page
        assert faults == []
        assert page.evaluate("refused") == []
        assert [one for one in asked if not one.startswith((f"{url}/", "blob:", "data:"))] == []
    finally:
        context.close()


def hand(page: Any, event: str, file: Path, kind: str = "image/webp") -> None:
    """Drop a file on the page, or paste it."""
    content = base64.b64encode(file.read_bytes()).decode()
    transfer = page.evaluate_handle(_TRANSFER, [file.name, kind, content])
    if event == "drop":
        for step in ("dragover", "drop"):
            page.dispatch_event("#drop", step, {"dataTransfer": transfer})
    else:
        page.evaluate(
            "(data) => document.activeElement.dispatchEvent("
            "new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true }))",
            transfer,
        )
    page.wait_for_selector("#preview:visible")


def ask(page: Any, question: str) -> str:
    """The whole answer."""
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector(".entry:last-child .answer:not(.going)")
    page.wait_for_selector("#send:visible")
    return str(page.text_content(".entry:last-child .answer"))


def faults_of_access(page: Any) -> list[str]:
    """What axe-core finds wrong with the page as it stands."""
    page.evaluate(Path(AXE).read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{fault['id']}: {node['html'][:120]} {node['failureSummary']}"
        for fault in found["violations"]
        for node in fault["nodes"]
    ]
