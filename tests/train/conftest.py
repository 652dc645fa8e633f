"""What the tests of training share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """The bits of a sum depend on the threads, and the torch runtime sets their number for the process."""
    torch.set_num_threads(1)
