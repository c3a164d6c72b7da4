"""The softmax over the catalog, a few targets at a time: values and gradients are those of the plain formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec.modeling import genrec_losses
from hf_genrec.modeling.genrec_losses import item_loss


def inputs(num_targets=7, num_items=12, width=5, *, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states, table = (torch.randn(size, width, generator=generator, dtype=dtype) for size in (num_targets, num_items))
    items = torch.randint(num_items, (num_targets,), generator=generator)
    return states.requires_grad_(), table.requires_grad_(), items


def plain_loss(states, table, items):
    return torch.nn.functional.cross_entropy(states @ table.t(), items, reduction="sum")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9), st.integers(1, 13), st.integers(1, 4), st.integers(1, 60), st.integers(0, 99))
def test_loss_and_gradients_are_those_of_the_formula(num_targets, num_items, width, num_logits, seed):
    states, table, items = inputs(num_targets, num_items, width, seed=seed)
    expected = torch.autograd.grad(plain_loss(states, table, items) * 3, (states, table))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(genrec_losses, "LOGITS_AT_A_TIME", num_logits)
        loss = item_loss(states, table, items)

    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, plain_loss(states, table, items))
    torch.testing.assert_close(torch.autograd.grad(loss * 3, (states, table)), expected)


def test_large_logits_stay_finite():
    states, table = torch.tensor([[1e4, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])

    assert item_loss(states, table, torch.tensor([0])).item() == 0
    assert item_loss(states, table, torch.tensor([1])).item() == 2e4


def test_products_are_in_the_dtype_of_autocast_and_the_softmax_is_not():
    states, table, items = inputs(dtype=torch.float32)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = item_loss(states, table, items)
    loss.backward()

    logits = (states.bfloat16() @ table.bfloat16().t()).float()
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, items, reduction="sum"))
    assert states.grad.dtype == table.grad.dtype == torch.float32


def test_without_gradients_only_the_loss_is_computed():
    states, table, items = inputs()

    with torch.no_grad():
        loss = item_loss(states, table, items)

    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain_loss(states, table, items).detach())


def test_only_one_of_the_inputs_may_need_a_gradient():
    states, table, items = inputs()

    item_loss(states.detach(), table, items).backward()

    torch.testing.assert_close(table.grad, torch.autograd.grad(plain_loss(states, table, items), table)[0])


def test_number_of_items_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"`items` must have shape \(2,\), got \(3,\)"):
        item_loss(torch.zeros(2, 5), torch.zeros(7, 5), torch.tensor([0, 1, 2]))
