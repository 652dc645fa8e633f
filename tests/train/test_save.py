"""Saving weights where the disk does not take them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tinyllava_edge.atomic_files import full_disk_named
from tinyllava_edge.errors import OutputError


def test_a_disk_that_fails_while_weights_are_saved_is_one_line(tmp_path: Path) -> None:
    """What the system says comes as text of a library that is no Python; here, that a file is a directory."""
    expected = r"out: Is a directory, while it was written\. Look at its disk"
    with pytest.raises(OutputError, match=expected), full_disk_named(tmp_path / "out"):
        save_file({"a": torch.zeros(1)}, tmp_path)
