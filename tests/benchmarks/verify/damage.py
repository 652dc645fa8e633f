"""Seeded damage to what a bundle says is right: `verify` ends with 0, 1 or 2, and never falls.

By hand: `python -m tests.benchmarks.verify.damage SEED COUNT`.
"""

import io
import json
import random
import shutil
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tests.core.small_bundle import change_manifest, file_entry, tree
from tinyllava_edge import cli
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import BundleError
from tinyllava_edge.parity_files import read_parity

SMALL = Path(__file__).parents[2] / "fixtures" / "bundles" / "2026-11-22.zip"
PROMPTS, TENSORS = "reference/reference.json", "reference/reference.npz"
RUNTIME = "onnxruntime+llamacpp"
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**70, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "<image>",
    "../x", "\x00", "\ud800", "\N{EURO SIGN}" * 400, [], [[]], [None], [1], {}, {"a": 1}, [0] * 5000,
)  # fmt: skip
HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 99999999999), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (4,), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (4, 450), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (4, 450), }",
    "{'descr': [('a', '<f4')], 'fortran_order': 1, 'shape': (4, 450), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4L, 450L), }",
    "{'descr': '<f4', 'shape': (), ",
    "{'descr': '<f4\\q', 'fortran_order': False, 'shape': (0,), }",
    "((((((((((", "'''", "1if 2else 3", "\x00", "__import__('os').abort()", "[" * 5000, "",
)  # fmt: skip


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
            (root / name).write_bytes(damaged(name, honest[name], chance))
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


def damaged(name: str, content: bytes, chance: random.Random) -> bytes:
    """Another content of a file."""
    kinds: list[Callable[[bytes, random.Random], bytes]] = [_bytes_changed]
    if name.endswith(".json"):
        kinds += [_value_changed] * 4
    elif name == TENSORS:
        kinds += [_array_changed] * 4
    return chance.choice(kinds)(content, chance)


def _bytes_changed(content: bytes, chance: random.Random) -> bytes:
    changed, place = bytearray(content), chance.randrange(len(content))
    match chance.randrange(5):
        case 0:
            changed[place] ^= 1 << chance.randrange(8)
        case 1:
            del changed[place:]
        case 2:
            changed[place:place] = chance.randbytes(chance.randrange(1, 40))
        case 3:
            changed = bytearray(b"[" * 100_000)
        case _:
            changed[place : place + 4] = b"\xff" * 4
    return bytes(changed)


def _value_changed(content: bytes, chance: random.Random) -> bytes:
    """One value anywhere, or its key."""
    contents = json.loads(content)
    holder: Any = contents
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            holder = contents
            continue
        key = chance.choice(keys)
        if isinstance(holder[key], dict | list) and holder[key] and chance.random() < 0.85:
            holder = holder[key]
            continue
        break
    match chance.randrange(4):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[chance.choice(["name", "extra", "turns"])] = chance.choice(ODD)
        case 2 if isinstance(holder[key], int):
            holder[key] += chance.choice([-1, 1, 7])
        case _:
            holder[key] = chance.choice(ODD)
    return json.dumps(contents).encode()


def _array_changed(content: bytes, chance: random.Random) -> bytes:
    """One array of the archive: its header, its values, its compression, or its absence."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice(list(entries))
    values = np.load(io.BytesIO(entries[name])).copy()
    kind = chance.randrange(7)
    if kind == 0:
        del entries[name]
    elif kind == 1:
        text = chance.choice(HEADERS).encode("latin1") + b"\n"
        version = chance.choice([1, 1, 1, 2, 3, 9])
        head = (
            b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text
        )
        entries[name] = head + values.tobytes()
    elif kind == 2:
        values.flat[chance.randrange(values.size)] = chance.choice([np.nan, np.inf, -np.inf])
        entries[name] = saved(values)
    elif kind == 3:
        values.flat[chance.randrange(values.size)] += chance.choice([1e-3, 1.0, 1e30])
        entries[name] = saved(values)
    elif kind == 4:
        other = chance.choice([values[:-1], values.T, values[None], values.astype(np.float64), values[:0]])
        entries[name] = saved(other)
    written = io.BytesIO()
    stored = chance.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]) if kind == 5 else 0
    with zipfile.ZipFile(written, "w", stored) as archive:
        for name, array in entries.items():
            archive.writestr(name, array)
    return _bytes_changed(written.getvalue(), chance) if kind == 6 else written.getvalue()


def saved(values: Any) -> bytes:
    """An array as a file of `np.save`."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(values))
    return file.getvalue()


if __name__ == "__main__":
    for end, times in sorted(damaged_verifications(int(sys.argv[1]), int(sys.argv[2])).items()):
        sys.stdout.write(f"{times:6} {end}\n")
