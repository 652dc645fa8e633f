"""Seeded damage to what a bundle says is right: `verify` ends with 0, 1 or 2, and never falls.

By hand: `python -m tests.benchmarks.verify.damage SEED COUNT`.
"""

import io
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tests.core.small_bundle import change_manifest, file_entry, tree
from tests.fuzz.damage_bytes import Damage, archive_damaged, array_damaged, bytes_damaged
from tests.fuzz.damage_json import json_damaged
from tinyllava_edge import cli
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import BundleError
from tinyllava_edge.parity_files import read_parity

SMALL = Path(__file__).parents[2] / "fixtures" / "bundles" / "2026-11-22.zip"
PROMPTS, TENSORS = "reference/reference.json", "reference/reference.npz"
RUNTIME = "onnxruntime+llamacpp"
DAMAGE: dict[str, Damage] = {
    ".json": json_damaged,
    ".npz": archive_damaged(array_damaged),
    ".png": bytes_damaged,
}


def damaged_verifications(seed: int, count: int) -> Counter[str]:
    """Damage one part of a small bundle at a time, and verify it; how often each end was seen.

    Raises:
        AssertionError: an end that may not be; the message has the seed, the number and the part.
    """
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "bundle"
        shutil.unpack_archive(SMALL, root)
        honest = tree(root)
        for number in range(count):
            chance = random.Random(f"{seed} {number}")
            name = chance.choice([*[PROMPTS, TENSORS] * 4, "reference/one.png", "parity/export.json"])
            for path, content in honest.items():
                (root / path).write_bytes(content)
            (root / name).write_bytes(DAMAGE[Path(name).suffix](chance, honest[name]))
            try:
                end = read_result(root) if name.startswith("parity/") else verified(root, name)
            except Exception as error:
                raise AssertionError(f"seed {seed}, number {number}: {name}: {error!r}") from error
            ends[f"{Path(name).name} {end}"] += 1
    return ends


def verified(root: Path, name: str) -> int:
    """Exit code of `verify`, of a bundle whose manifest fits the changed file."""

    def list_anew(manifest: dict[str, Any]) -> None:
        for entry in manifest["files"]:
            if entry["path"] == name:
                entry.update(file_entry(name, (root / name).read_bytes()))

    change_manifest(root, list_anew)
    return exit_code_of_verify(root)


def exit_code_of_verify(root: Path) -> int:
    """Run the command in this process; what it says fits its exit code."""
    out, err = io.StringIO(), io.StringIO()
    arguments = ["tinyllava-edge", "verify", str(root), "--json", "--threads", "1"]
    with mock.patch.object(sys, "argv", arguments), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as error:
            code = error.code
    assert code in (0, 1, 2), code
    if code == 2:
        assert len([line for line in err.getvalue().splitlines() if "had a digest" not in line]) == 1
        assert out.getvalue() == ""
    else:
        assert json.loads(out.getvalue())["passed"] is (code == 0)
    return int(code)


def read_result(root: Path) -> str:
    """Whether a result in parity/ is read, as export's and as verify's, or refused."""
    bundle = Bundle.open(root)
    shutil.copyfile(root / "parity/export.json", root / f"parity/{RUNTIME}.json")
    try:
        found = [read_parity(bundle, name) for name in ("export", RUNTIME)]
    except BundleError:
        return "refused"
    return "of another" if found == [None, None] else "read"


def saved(values: Any) -> bytes:
    """An array as a file of `np.save`."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(values))
    return file.getvalue()


if __name__ == "__main__":
    for end, times in sorted(damaged_verifications(int(sys.argv[1]), int(sys.argv[2])).items()):
        sys.stdout.write(f"{times:6} {end}\n")
