"""The input keeps up with a device."""

from pathlib import Path

import pytest

from tests.train.measure_input import measure_input


@pytest.mark.long
@pytest.mark.slow
def test_two_workers_give_twenty_batches_of_eight_a_second(tmp_path: Path) -> None:
    found = measure_input(tmp_path, rows=5000, batches=200)
    assert found["batches_per_second"] >= 20, found
