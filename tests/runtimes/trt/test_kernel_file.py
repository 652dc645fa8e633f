"""The file of the kernels that TensorRT-RTX compiled."""

from pathlib import Path

import pytest

from tinyllava_edge.errors import NoEngineError
from tinyllava_edge.runtimes.trt.kernel_file import KernelFile

PLAN, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def file(tmp_path: Path) -> KernelFile:
    return KernelFile(tmp_path / "x.kernels", PLAN)


def test_what_was_kept_is_read_again(file: KernelFile) -> None:
    assert file.read() == b""
    for kernels in (b"", b"some", bytes(range(256)) * 50):
        file.write(kernels)
        assert file.read() == kernels
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.path.parent.iterdir()] == ["x.kernels"]


def test_every_bit_counts(file: KernelFile) -> None:
    file.write(b"k")
    whole = file.path.read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        file.path.write_bytes(changed)
        with pytest.raises(NoEngineError, match=r"x\.kernels is (damaged|of another engine)"):
            file.read()
    for length in range(len(whole)):
        file.path.write_bytes(whole[:length])
        with pytest.raises(NoEngineError, match=r"x\.kernels is (damaged|of another engine)"):
            file.read()


def test_kernels_of_another_engine_are_not_read(file: KernelFile) -> None:
    KernelFile(file.path, OTHER).write(b"kernels")
    with pytest.raises(NoEngineError, match=r"x\.kernels is of another engine"):
        file.read()


def test_what_others_may_write_is_not_read(file: KernelFile) -> None:
    file.write(b"kernels")
    file.path.chmod(0o620)
    with pytest.raises(NoEngineError, match="not private"):
        file.read()
    file.path.unlink()
    file.path.symlink_to("/dev/null")
    with pytest.raises(NoEngineError, match="symbolic links"):
        file.read()
