"""The page in a real browser, before a real server with nano: what people see and do. `make browser`."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.runtimes.serve.browsing import ask, browser_at, faults_of_access, hand, tab
from tests.runtimes.serve.serving import CAT, EMOJI, LONG, ROOT, Running, asked, running
from tests.runtimes.serve.test_cli import started
from tests.runtimes.serve.test_page import proof
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import NANO, bundle_path
from tinyllava_edge.parity_files import write_parity
from tinyllava_edge.runtimes.serve.gate import Rules
from tinyllava_edge.runtimes.serve.images import KnownPictures

pytestmark = pytest.mark.browser
KEY = "k" * 32
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script><b>bold</b> &amp; [a](javascript:alert(3))"
CHAT = "**/v1/chat/completions"
PHONE = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browser_at() as found:
        print(f"\nbrowser: Chromium {found.version}")  # noqa: T201
        yield found


@pytest.fixture(scope="module")
def known() -> KnownPictures:
    return KnownPictures()


@pytest.fixture(scope="module")
def server(known: KnownPictures) -> Iterator[Running]:
    with running(pictures=known) as found:
        yield found


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    with tab(browser, server.url) as found:
        yield found


@pytest.fixture(scope="module")
def verified() -> None:
    """What `verify` finds of nano, in the cache of the tests."""
    command = [sys.executable, "-m", "tinyllava_edge", "verify", NANO, "--checkpoint", NANO, "--json"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


def bodies(page: Any) -> list[dict[str, Any]]:
    """What the page asks from now on."""
    found: list[dict[str, Any]] = []
    page.on(
        "request",
        lambda request: found.append(request.post_data_json) if request.method == "POST" else None,
    )
    return found


def with_grammar(page: Any, grammar: str) -> None:
    """Let the model itself say what a grammar has: the real request, and one field more."""
    page.route(
        CHAT,
        lambda route: route.continue_(
            post_data=json.dumps({**route.request.post_data_json, "grammar": grammar})
        ),
    )


def parts(body: dict[str, Any]) -> list[str]:
    return [part["type"] for message in body["messages"] for part in message["content"] if "type" in part]


def test_a_dropped_picture_is_asked_about_and_known_from_then_on(
    page: Any, server: Running, known: KnownPictures
) -> None:
    sent = bodies(page)
    hand(page, "drop", EMOJI)
    assert ask(page, "What is this?") == server.model.ask("What is this?", [EMOJI]) == "blueberries"
    assert ask(page, "What kind of thing is this?") == "fruit"
    assert [parts(body) for body in sent] == [["image_url", "text"], ["image_id", "text"]]
    known._files.clear()  # as after a restart: the page sends it again by itself
    assert ask(page, "Is this a fruit?") == server.model.ask("Is this a fruit?", [EMOJI])
    assert [parts(body) for body in sent[2:]] == [["image_id", "text"], ["image_url", "text"]]
    assert page.locator("#log .problem").count() == 0
    assert page.locator("#log .question img").count() == 1


def test_a_pasted_picture_and_a_photo_are_taken(page: Any) -> None:
    hand(page, "paste", CAT, "image/jpeg")
    assert "451 \u00d7 300" in page.text_content("#about-picture")
    assert ask(page, "What is this?") == "dolphin"
    page.click("#photograph")
    page.wait_for_selector("#take:enabled")
    page.click("#take")
    page.wait_for_selector("#camera", state="hidden")
    assert page.text_content("#about-picture").startswith("photo, ")
    assert page.evaluate("document.getElementById('video').srcObject") is None
    assert ask(page, "What is this?")


def test_a_picture_that_is_too_large_is_made_smaller_and_no_picture_is_said(
    page: Any, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2000, 3000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.bmp")
    page.set_input_files("#file", tmp_path / "large.bmp")
    page.wait_for_selector("#preview:visible")
    assert re.search(r"3000 \u00d7 2000, 18\.0 MB; sent as a JPEG of \d", page.text_content("#about-picture"))
    assert ask(page, "What is this?")
    (tmp_path / "text.png").write_text("no picture")
    page.set_input_files("#file", tmp_path / "text.png")
    page.get_by_text("text.png is no picture that this browser can read.").wait_for()


def test_an_answer_streams_and_stop_ends_it_on_the_server(browser: Any) -> None:
    with running(slow_s=0.02) as server, tab(browser, server.url, reduced_motion="reduce") as page:
        with_grammar(page, LONG)
        page.fill("#question", "Say a lot.")
        page.press("#question", "Enter")
        answer = page.locator("#log .answer")
        server.wait_until(lambda: len(answer.text_content()) > 5)
        first = answer.text_content()
        server.wait_until(lambda: len(answer.text_content()) > len(first) + 5)
        assert answer.text_content().startswith(first)
        assert page.get_attribute("#log", "aria-busy") == "true"
        assert page.evaluate(
            "getComputedStyle(document.querySelector('.going'), '::after').animationName"
        ) == ("none")
        page.click("#stop")
        page.get_by_text("Stopped.").wait_for()
        server.wait_until(lambda: not server.served.num_answering)
        assert server.language.evaluated < 300
        assert page.get_attribute("#log", "aria-busy") == "false"
        page.unroute(CHAT)
        assert ask(page, "What is this?")


def test_the_bar_has_the_servers_times(page: Any) -> None:
    hand(page, "drop", EMOJI)
    ask(page, "What is this?")
    names = page.locator("#log .legend li").all_text_contents()
    assert [name.split()[0] for name in names if not name.startswith("waiting")] == (
        ["text", "picture", "vision", "prefill", "decode"]
    )
    shown = [float(name.split()[1]) for name in names]
    widths = [box["width"] for box in (one.bounding_box() for one in page.locator("#log .bar span").all())]
    assert len(widths) == len(shown)
    longest = max(range(len(shown)), key=shown.__getitem__)
    assert widths[longest] == max(widths)
    assert re.search(r"ms in all · first token after \d", page.text_content("#log .times > p"))


def test_what_a_model_says_is_text_whatever_it_says(page: Any) -> None:
    with_grammar(page, f"root ::= {json.dumps(HOSTILE)}")
    assert ask(page, HOSTILE) == HOSTILE
    assert page.text_content("#log .question") == HOSTILE
    assert page.locator(".answer *, .question script, .question b").count() == 0


def test_even_a_script_of_the_page_cannot_make_html_of_a_text(page: Any) -> None:
    refused = page.evaluate("try { document.body.innerHTML = '<b>x</b>'; '' } catch (error) { error.name }")
    assert refused == "TypeError"
    assert page.evaluate("refused.splice(0)") == ["require-trusted-types-for trusted-types-sink"]


def test_the_proofs_are_one_click_away_and_hostile_ones_are_text(browser: Any, tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(bundle_path(NANO), tmp_path / "copy"))
    stages = proof()["stages"]
    stages[0]["detail"] = stages[0]["checks"][0]["metric"] = HOSTILE
    write_parity(bundle, "onnxruntime+llamacpp", proof(verdict="different: first at logits", stages=stages))
    with running(bundle=bundle.root) as server, tab(browser, server.url) as page:
        page.click("#show-proof")
        page.locator("#proof .verdict.failed", has_text="Different: first at logits").wait_for()
        rows = [row.all_text_contents() for row in (r.locator("th, td") for r in page.locator("tr").all())]
        assert ["Metric", "Value", "Gate", "Result"] in rows
        assert [HOSTILE, "1.0e-9", "≤ 1.0e-6", "within"] in rows
        assert ["nmse", "1", "≤ 1.0e-6", "OUTSIDE"] in rows
        assert ["snr_db", "∞", "", "no gate"] in rows
        assert ["language", "q8_0", "2.2 MB", "verified"] in rows
        assert page.locator("#proof img, #proof script").count() == 0
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.id") == "show-proof"


def test_the_page_is_used_by_keyboard_alone(page: Any) -> None:
    page.mouse.click(1, 1)
    order = []
    for _ in range(14):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        visible = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert visible != "none", order
        if order[-1] == "Options":
            break
    assert order == [
        *("Skip to the question", "model", "show-proof", "choose", "photograph", "example", "log"),
        *("What is this?", "What kind of thing is this?", "Describe the picture."),
        *("question", "send", "Options"),
    ]
    page.focus("#example")
    page.keyboard.press("Enter")
    page.wait_for_selector("#preview:visible")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("What kind of thing is this?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Backspace")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_selector("#log .answer:not(.going)")
    assert page.text_content("#log .answer") == "flower"
    page.wait_for_selector("#send:visible")
    assert page.evaluate("document.activeElement.id") == "question"


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(browser: Any) -> None:
    with running(rules=Rules(keys=[KEY])) as server, tab(browser, server.url, ready=False) as page:
        for given in ("not-the-key", KEY):
            page.wait_for_selector("#key[open]")
            page.fill("#key-text", given)
            page.keyboard.press("Enter")
            if given != KEY:
                page.get_by_text("That is not a key of this server.").wait_for()
        page.wait_for_selector("#model:enabled")
        page.click("#example")
        page.wait_for_selector("#preview:visible")
        assert ask(page, "What kind of thing is this?") == "flower"
        assert page.evaluate("Object.values(sessionStorage)") == [KEY]
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        page.reload()
        page.wait_for_selector("#model:enabled")
        page.click("#forget-key")
        page.wait_for_selector("#key[open]")
        assert page.evaluate("sessionStorage.length") == 0
        page.keyboard.press("Escape")
        page.get_by_text("The API key is missing or wrong.").wait_for()


def test_errors_of_the_server_are_said_in_words(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(slow_s=0.02, max_waiting=1) as server, tab(browser, server.url) as page:
        problem = page.locator(".entry:last-child .problem")

        def ask_in_vain(question: str) -> str:
            page.fill("#question", question)
            page.press("#question", "Enter")
            page.wait_for_selector("#send:visible")
            assert page.input_value("#question") == question.strip(), "nothing is lost"
            return str(problem.text_content())

        said = ask_in_vain("a b " * 1000)
        assert re.search(r"does not fit into the model's context\..*1024.*Ask for fewer tokens", said)
        long = asked(grammar=LONG)
        others = [
            Thread(target=httpx.post, args=[f"{server.url}/v1/chat/completions"], kwargs={"json": long})
            for _ in range(2)
        ]
        for number, other in enumerate(others):
            other.start()
            server.wait_until(lambda: server.served.num_answering)
            server.wait_until(lambda number=number: server.served.num_waiting == number)
        said = ask_in_vain("Me too?")
        assert re.search(
            r"The server is busy: 1 requests wait already; try again in \d+ s\. Your question is kept", said
        )
        server.served.end_running()
        server.wait_until(lambda: not server.served.num_waiting and server.served.num_answering)
        server.served.end_running()
        for other in others:
            other.join()
        monkeypatch.setattr("tinyllava_edge.runtimes.serve.body.MAX_BODY_BYTES", 50)
        assert re.search(r"more than the server takes at once.*50", ask_in_vain("Too large?"))
        monkeypatch.undo()
        server.language.failure = RuntimeError("broken")
        assert "The model failed on this request" in ask_in_vain("What?")
        assert ask(page, "And now?")
        page.context.set_offline(True)
        assert "The server does not answer." in ask_in_vain("Are you there?")


def test_a_model_is_picked_from_those_that_are_served(browser: Any) -> None:
    with started("--language", "q8_0,f16") as (_, url), tab(browser, url) as page:
        sent = bodies(page)
        picker = page.locator("#model")
        assert picker.locator("option").all_text_contents() == [
            "nano:q8_0: onnxruntime fp16 + llamacpp q8_0",
            "nano:f16: onnxruntime fp16 + llamacpp f16",
        ]
        page.click("#example")
        page.wait_for_selector("#preview:visible")
        for number in range(2):
            picker.select_option(index=number)
            assert page.locator("#about-model").text_content().count(("q8_0", "llamacpp f16")[number]) == 1
            assert ask(page, "What kind of thing is this?") == "flower"
        assert [body["model"] for body in sent] == ["nano:q8_0", "nano:f16"]
        assert [parts(body) for body in sent] == [["image_url", "text"], ["image_id", "text"]]
        assert "nano:f16" in page.locator(".entry:last-child > p.small").first.text_content()
        page.click("#show-proof")
        page.get_by_role("heading", name="Proof of nano:f16").wait_for()
        page.locator("#proof table").first.wait_for()


def test_earlier_questions_go_along_where_they_are_to_be_remembered(page: Any) -> None:
    sent = bodies(page)
    hand(page, "drop", EMOJI)
    ask(page, "What is this?")
    page.click("summary")
    page.check("#remember")
    page.fill("#max-tokens", "1")
    ask(page, "And its kind?")
    roles = [message["role"] for message in sent[1]["messages"]]
    assert (roles, sent[1]["max_tokens"]) == (["user", "assistant", "user"], 1)
    assert parts(sent[1]).count("image_id") == 1
    page.click("#clear")
    assert page.locator(".entry").count() == 0
    ask(page, "What is this?")
    assert len(sent[2]["messages"]) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{}, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_wrong(browser: Any, server: Running, scheme: str, size: dict[str, Any]) -> None:
    with tab(browser, server.url, color_scheme=scheme, **size) as page:
        assert faults_of_access(page) == []
        page.click("#example")
        page.wait_for_selector("#preview:visible")
        ask(page, "What is this?")
        page.click("summary")
        assert faults_of_access(page) == []
        width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1]
        page.click("#show-proof")
        page.wait_for_selector("#proof table")
        assert faults_of_access(page) == []
        page.keyboard.press("Escape")
        page.evaluate("document.getElementById('key').showModal()")
        assert faults_of_access(page) == []


SHOTS: dict[str, dict[str, Any]] = {
    "page-light": {"viewport": {"width": 1040, "height": 720}, "device_scale_factor": 1},
    "page-dark": {
        "viewport": {"width": 1040, "height": 720},
        "device_scale_factor": 1,
        "color_scheme": "dark",
    },
    "page-phone": {"viewport": {"width": 390, "height": 800}, "device_scale_factor": 1.25},
    "page-proof": {"viewport": {"width": 1040, "height": 720}, "device_scale_factor": 1},
}


@pytest.mark.skipif("TINYLLAVA_EDGE_SHOTS" not in os.environ, reason="TINYLLAVA_EDGE_SHOTS names no folder")
@pytest.mark.parametrize("name", SHOTS)
@pytest.mark.usefixtures("verified")
def test_pictures_of_the_page_are_small(browser: Any, name: str) -> None:
    """Those of docs/serve.md, each of a server that has not seen the picture before."""
    path = ROOT / os.environ["TINYLLAVA_EDGE_SHOTS"] / f"{name}.png"
    with running() as server, tab(browser, server.url, **SHOTS[name]) as page:
        page.click("#example")
        page.wait_for_selector("#preview:visible")
        for question in ("What kind of thing is this?", "Is this a flower?"):
            ask(page, question)
        if name == "page-proof":
            page.click("#show-proof")
            page.wait_for_selector("#proof .verdict.passed")
        page.mouse.move(1, 1)
        page.screenshot(path=path, full_page=name == "page-phone")
    Image.open(path).convert("RGB").save(path, optimize=True)
    assert path.stat().st_size < 150_000
