"""Attention to rows of a table against the same thing with all rows gathered."""

import pytest
import torch

from hf_genrec.modeling import genrec_layers
from hf_genrec.modeling.genrec_layers import attend_to_rows


def definition(queries, table, places):
    rows = table[places]
    return (queries @ rows.transpose(1, 2)).softmax(-1) @ rows


def example(*, num_items=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(num_items, 2, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    table = torch.randn(11, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    places = torch.randint(9, (num_items, 3), generator=generator)  # rows 9 and 10 belong to nobody
    return queries, table, places


@pytest.mark.parametrize("items_per_block", [1, 3, 32])
def test_values_and_gradients_do_not_depend_on_the_blocks(monkeypatch, items_per_block):
    monkeypatch.setattr(genrec_layers, "ITEMS_PER_BLOCK", items_per_block)
    queries, table, places = example()
    weights = torch.randn(queries.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    mixed, expected = attend_to_rows(queries, table, places), definition(queries, table, places)

    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(
        torch.autograd.grad((mixed * weights).sum(), (queries, table)),
        torch.autograd.grad((expected * weights).sum(), (queries, table)),
    )


def test_gradients_are_those_of_finite_differences():
    queries, table, places = example()

    assert torch.autograd.gradcheck(lambda *tensors: attend_to_rows(*tensors, places), (queries, table))


def test_a_row_that_an_item_has_twice_counts_twice():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)

    mixed = attend_to_rows(torch.zeros(1, 1, 2), table, torch.tensor([[0, 0, 1]]))
    mixed.sum().backward()

    torch.testing.assert_close(mixed, torch.tensor([[[2 / 3, 1 / 3]]]))
    torch.testing.assert_close(table.grad, torch.tensor([[2 / 3, 2 / 3], [1 / 3, 1 / 3]]))


def test_autocast_computes_in_bfloat16_and_gradients_come_in_the_dtype_of_the_inputs():
    queries, table, places = example(dtype=torch.float32)
    expected = definition(queries, table, places)
    expected_gradients = torch.autograd.grad(expected.square().sum(), (queries, table))

    with torch.autocast("cpu", torch.bfloat16):
        mixed = attend_to_rows(queries, table, places)
    mixed.float().square().sum().backward()

    assert mixed.dtype == torch.bfloat16
    assert queries.grad.dtype == table.grad.dtype == torch.float32
    torch.testing.assert_close(mixed.float(), expected, rtol=0.02, atol=0.02)
    for gradient, wanted in zip((queries.grad, table.grad), expected_gradients, strict=True):
        assert (gradient - wanted).norm() < 0.02 * wanted.norm()


def test_no_item_gives_an_empty_result_and_no_gradient():
    queries, table, places = example(num_items=0)

    mixed = attend_to_rows(queries, table, places)
    mixed.sum().backward()

    assert mixed.shape == (0, 2, 5)
    assert not table.grad.any()
