"""Every rival on nano, for real: it answers, says its stages, and is as near to torch as it can be.

Needs what `make peers` builds; a rival that is not there is skipped with the line that makes it.
"""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tinyllava_edge.benchmarks.bench.pace import Amount
from tinyllava_edge.benchmarks.bench.peers.planned import with_rivals
from tinyllava_edge.benchmarks.bench.peers.rivals import RIVALS, Places
from tinyllava_edge.benchmarks.bench.plan import Plan, plan_cells
from tinyllava_edge.benchmarks.bench.record import run_plan
from tinyllava_edge.benchmarks.bench.worker import Request
from tinyllava_edge.benchmarks.evals.cells import Wish
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.cli import app
from tinyllava_edge.reference_tensors import reference_pictures

pytestmark = [pytest.mark.network, pytest.mark.slow]
FEW = Amount(sessions=1, blocks=1, warm_up_s=0.0, warm_up_runs=1, alone=False)
# Mean KL from torch float32 on nano's own answer. int4 of so small a model is a guess.
MOST_KL = {
    "mtmd": 0.02,
    "transformers-fp32": 1e-6,
    "transformers-bf16": 0.02,
    "vllm": 0.02,
    "openvino-int8": 0.05,
    "openvino-int4": 2.0,
}


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nano's bundle, its mmproj in it, and nano as LlavaForConditionalGeneration."""
    folder = tmp_path_factory.mktemp("nano")
    for name, options in {
        "bundle": ["--vision", "fp32", "--language", "f16", "--interchange", "mmproj"],
        "llava": ["--interchange", "transformers"],
    }.items():
        found = CliRunner().invoke(app, ["export", "nano", "-o", str(folder / name), *options])
        assert found.exit_code == 0, found.output
    return folder


@pytest.mark.parametrize("name", RIVALS)
def test_rival(name: str, nano: Path) -> None:
    bundle = Bundle.open(nano / "bundle")
    request = Request(
        picture=str(reference_pictures(bundle)[0]),
        question="What is this?",
        second_question="What colour is it?",
        num_tokens=6,
    )
    bundles = {"nano": bundle}
    plan = Plan(bundles=bundles, cells=plan_cells(bundles, Wish()), request=request, amount=FEW)
    with with_rivals(plan, (name,), Places(checkpoint=nano / "llava"), Wish()) as whole:
        if whole.absent and "make peers" in whole.absent[0].why:
            pytest.skip(whole.absent[0].why)
        assert whole.absent == ()
        record, _ = run_plan(whole)
    (row,) = record["rivals"]["rows"]
    assert record["partial"] is None
    assert row["warm"]["runs"] == 2
    assert row["warm"]["same_answer_every_run"]
    ours = record["cells"][0]["warm"]["prompt_tokens"]
    assert abs(row["warm"]["prompt_tokens"] - ours) <= 1  # OpenVINO's line feed
    if name in MOST_KL:
        assert row["accuracy"]["mean_kld"] <= MOST_KL[name]
    if name in ("mtmd", "transformers-fp32", "llama-server"):
        assert row["accuracy"]["same_tokens"] == row["accuracy"]["tokens"]
    if name == "llama-server":
        assert row["cached"]["reused_tokens"] > row["warm"]["prompt_tokens"] // 2
