"""The emulated products, against bits and sums that numpy has."""

import numpy as np
import pytest
import torch
from torch import nn

from tools.compute_gates.products import (
    EMULATIONS,
    Emulation,
    Products,
    cut_to_tf32,
    in_float16,
    rounded_to_tf32,
    stored_values,
    with_q8_activations,
)

SEED = torch.Generator().manual_seed(0)


def test_tf32_keeps_ten_bits_of_mantissa() -> None:
    """1 + 2^-10 is the next value after 1; half of that step is rounded away from zero, and cut off."""
    step = 2.0**-10
    values = torch.tensor([1 + step, 1 + step / 2, 1 + 0.49 * step, -1 - step / 2, 3.0, 0.0])
    assert rounded_to_tf32(values).tolist() == [1 + step, 1 + step, 1.0, -1 - step, 3.0, 0.0]
    assert cut_to_tf32(values).tolist() == [1 + step, 1.0, 1.0, -1.0, 3.0, 0.0]


def test_sums_in_float16_are_numpys_one_by_one() -> None:
    a, b = torch.randn(5, 96, generator=SEED), torch.randn(96, 7, generator=SEED)
    total = np.zeros((5, 7), dtype=np.float16)
    for column, row in zip(a.numpy().astype(np.float16).T, b.numpy().astype(np.float16), strict=True):
        total = (total + column.astype(np.float32)[:, None] * row.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(in_float16(1)(a, b).numpy(), total.astype(np.float32))


def test_activations_of_eight_bits_have_one_scale_a_block() -> None:
    a = torch.tensor([[127.0, 64.4] + [0.0] * 30 + [12.7, 0.06] + [0.0] * 30])
    found = with_q8_activations(32)(a, torch.eye(64))
    np.testing.assert_allclose(found[0, [0, 1, 32, 33]], [127, 64, 12.7, 0.1], rtol=1e-3)
    zeros = torch.zeros(1, 32)
    assert torch.equal(with_q8_activations(32)(zeros, torch.eye(32)), zeros)


def test_every_product_of_a_model_is_replaced() -> None:
    """A product that gives zeros: what is left is the bias of the last layer."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).train()
    head = nn.Linear(16, 4)
    nothing = Emulation(
        name="nothing",
        stored="F32",
        linear=lambda a, b: torch.zeros(*a.shape[:-1], b.shape[-1]),
        attention=lambda a, b: torch.zeros(*a.shape[:-1], b.shape[-1]),
    )
    rows = torch.randn(1, 3, 16, generator=SEED)
    with torch.no_grad(), Products(nothing) as products:
        found = head(layer(rows))
    assert products.replaced == 7  # query, key and value at once; two of attention; output; two; head
    assert torch.equal(found, head.bias.detach().expand(1, 3, 4))


def test_a_product_without_a_replacement_is_refused() -> None:
    with pytest.raises(AssertionError, match="convolution"), Products(EMULATIONS[0]), torch.no_grad():
        nn.Conv2d(1, 1, 2)(torch.zeros(1, 1, 4, 4))


def test_stored_values_are_those_of_the_type() -> None:
    matrix, norm = torch.randn(4, 64, generator=SEED), torch.ones(64)
    found = stored_values([("matrix", matrix), ("norm", norm)], "F16")
    assert list(found) == ["matrix"]
    assert torch.equal(found["matrix"], matrix.half().float())
