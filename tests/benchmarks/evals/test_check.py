"""`eval --check` by its parts."""

import shutil
from pathlib import Path

import pytest

from tests.benchmarks.conftest import Honest
from tinyllava_edge.benchmarks.evals.check import Looked
from tinyllava_edge.bundle import TOKENIZER_FILE, Bundle
from tinyllava_edge.errors import BundleError


def test_a_tokenizer_that_is_no_text_is_named(honest: Honest, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(honest.bundle, root)
    opened = Bundle.open(root)
    (root / TOKENIZER_FILE).write_bytes(b"\xff{}")
    unaware = Bundle(root, opened.manifest, opened.manifest_sha256)  # as if it had changed while it is read
    with pytest.raises(BundleError, match=rf"{TOKENIZER_FILE}: byte 0 is not UTF-8"):
        Looked(file=tmp_path / "q.json", records=[], bundle=unaware, max_tokens=1).check()
