"""An export to a disk that fills up ends with one typed error, at whatever byte, and never with SIGBUS."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXPORT = """
import shutil, sys, tempfile
from pathlib import Path
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.errors import DiskFullError
from tinyllava_edge.export import pipeline
from tinyllava_edge.checkpoint.opened import Checkpoint
disk, folder = map(Path, sys.argv[1:3])
checkpoint = write_tiny_checkpoint(folder / "checkpoint")
options = pipeline.ExportOptions(vision=("fp32",), language=("f32", "q8_0"))
print(pipeline.bytes_needed(Checkpoint(checkpoint), options))
pipeline.export_bundle(Checkpoint(checkpoint), folder / "out", options)
print(sum(path.stat().st_size for path in (folder / "out").rglob("*")))
pipeline.bytes_needed = lambda *arguments: 0  # so that it begins
tempfile.tempdir = str(disk)
for size in map(int, sys.argv[3:]):
    (disk / "mine").write_bytes(bytes(shutil.disk_usage(disk).free - size))
    try:
        pipeline.export_bundle(Checkpoint(checkpoint), disk / "out", options)
    except DiskFullError as error:
        assert str(disk) in str(error) and "bytes are needed" in str(error), error
    else:
        raise AssertionError(f"{size} bytes were enough")
    assert [path.name for path in disk.iterdir()] == ["mine"]
    (disk / "mine").unlink()
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user cannot mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_wherever_the_disk_fills_up_it_is_one_error_and_nothing_is_left(disk: Path, tmp_path: Path) -> None:
    sizes = (0, 8_192, 300_000, 600_000, 900_000, 1_300_000, 1_400_000)
    command = [sys.executable, "-c", EXPORT, disk, tmp_path, *sizes]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    needed, written = map(int, done.stdout.split())
    assert needed < written < 2 * needed  # it never asks for more than there will be
