"""The tables of docs/tensorrt.md are those of the code and of the record."""

import json

from tests.runtimes.trt.measure_engines import GRAPHS, RESULTS, SMS
from tests.runtimes.trt.write_docs import DOCS, device_tests, filled


def test_the_page_is_current() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert filled(text) == text, "run: python -m tests.runtimes.trt.write_docs"


def test_every_engine_of_the_record_is_as_it_must_be() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["engines"]
    assert [(row["graph"], row["sm"]) for row in rows] == [(graph, sm) for graph in GRAPHS for sm in SMS]
    for row in rows:
        assert row["plan"]["fused_attention"] == row["softmax_layers"] > 0
        assert row["plan"]["float32_gemms"] == 0
        assert row["status"] == "built, not run"


def test_every_device_test_says_why() -> None:
    found = list(device_tests())
    assert found
    assert [test.name for test in found if len(test.reason) < 20] == []
