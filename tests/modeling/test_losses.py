"""Losses that never hold all logits against their definitions in separate operations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hf_genrec.modeling import genrec_encoder
from hf_genrec.modeling.genrec_encoder import item_loss
from hf_genrec.modeling.modeling_rpg import code_loss


# --- the loss of parallel code prediction -------------------------------------------------------------------------


def definition(states, weight, bias, table, codes, *, temperature):
    """Heads, cosines, cross-entropy, one after the other."""
    outputs = states.unsqueeze(1)
    if weight is not None:
        outputs = outputs + functional.silu(torch.einsum("nd,led->nle", states, weight) + bias)
    outputs = functional.normalize(outputs, dim=-1).expand(-1, len(table), -1)
    logits = torch.einsum("nld,lkd->nlk", outputs, functional.normalize(table, dim=-1)) / temperature
    return functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="sum") / len(table)


def example(
    *, heads="separate", num_positions=7, d_model=5, num_levels=3, codebook_size=4, dtype=torch.float64, seed=0
):
    """Random arguments; every one that can needs a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    num_heads = {"separate": num_levels, "shared": 1, "none": 0}[heads]
    weight, bias = (draw(num_heads, d_model, d_model), draw(num_heads, d_model)) if num_heads else (None, None)
    codes = torch.randint(codebook_size, (num_positions, num_levels), generator=generator)
    return draw(num_positions, d_model), weight, bias, draw(num_levels, codebook_size, d_model), codes


def leaves(arguments):
    return [tensor for tensor in arguments[:4] if tensor is not None]


@pytest.mark.parametrize("heads", ["separate", "shared", "none"])
@settings(max_examples=20, deadline=None)
@given(sizes=st.tuples(*[st.integers(1, 6)] * 4), temperature=st.floats(0.01, 3.0), seed=st.integers(0, 99))
def test_loss_and_gradients_are_those_of_the_definition(heads, sizes, temperature, seed):
    num_positions, d_model, num_levels, codebook_size = sizes
    shape = {"num_positions": num_positions, "d_model": d_model + 1, "num_levels": num_levels}
    arguments = example(heads=heads, codebook_size=codebook_size, seed=seed, **shape)

    loss = code_loss(*arguments, temperature=temperature)
    expected = definition(*arguments, temperature=temperature)

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, leaves(arguments)), torch.autograd.grad(expected, leaves(arguments))
    )


@pytest.mark.parametrize("heads", ["separate", "shared", "none"])
def test_gradients_are_those_of_finite_differences(heads):
    *inputs, codes = example(heads=heads)
    given_inputs = [tensor for tensor in inputs if tensor is not None]

    def loss(*tensors):
        tensors = list(tensors)
        return code_loss(*[None if old is None else tensors.pop(0) for old in inputs], codes, temperature=0.3)

    assert torch.autograd.gradcheck(loss, given_inputs)


def test_one_state_by_hand():
    states, table = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[[1.0, 0.0], [0.0, 5.0]]])

    loss = code_loss(states, None, None, table, torch.tensor([[0], [0]]), temperature=0.5)

    at_target, elsewhere = math.exp(2), math.exp(0)  # cosines 1 and 0 over 0.5
    total = at_target + elsewhere
    assert loss.item() == pytest.approx(-math.log(at_target / total) - math.log(elsewhere / total))


@pytest.mark.parametrize("heads", ["separate", "shared", "none"])
@pytest.mark.parametrize("has_autocast", [True, False])
def test_bfloat16_is_as_close_to_the_exact_loss_as_the_definition_is(heads, has_autocast):
    sizes = {"num_positions": 37, "d_model": 24, "num_levels": 5, "codebook_size": 17}
    dtype = torch.float32 if has_autocast else torch.bfloat16
    exact_inputs = example(heads=heads, **sizes)
    inputs = example(heads=heads, dtype=dtype, **sizes)

    exact = code_loss(*exact_inputs, temperature=0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=has_autocast):
        loss = code_loss(*inputs, temperature=0.1)
    loss.backward()

    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    for tensor, expected in zip(leaves(inputs), torch.autograd.grad(exact, leaves(exact_inputs)), strict=True):
        assert tensor.grad.dtype == dtype
        assert (tensor.grad - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("heads", ["separate", "shared", "none"])
def test_without_gradients_the_loss_is_the_same(heads):
    arguments = example(heads=heads)

    with torch.no_grad():
        loss = code_loss(*arguments, temperature=0.2)

    assert not loss.requires_grad
    torch.testing.assert_close(loss, code_loss(*arguments, temperature=0.2).detach())


def test_gradients_accumulate_over_parts_of_a_batch():
    states, weight, bias, table, codes = example()
    inputs = (states, weight, bias, table)
    expected = torch.autograd.grad(code_loss(*inputs, codes, temperature=0.2) / 7, inputs)

    for part in (slice(0, 3), slice(3, 7)):
        (code_loss(states[part], weight, bias, table, codes[part], temperature=0.2) / 7).backward()

    torch.testing.assert_close(tuple(tensor.grad for tensor in inputs), expected)


def test_two_backward_passes_over_one_graph_give_twice_the_gradient():
    arguments = example()
    loss = code_loss(*arguments, temperature=0.2)
    expected = [2 * gradient for gradient in torch.autograd.grad(loss, leaves(arguments), retain_graph=True)]

    (2 * loss).backward()

    torch.testing.assert_close([tensor.grad for tensor in leaves(arguments)], expected)


def test_inputs_without_a_gradient_get_none():
    states, weight, bias, table, codes = example()
    expected = torch.autograd.grad(code_loss(states, weight, bias, table, codes, temperature=0.2), weight)

    loss = code_loss(states.detach(), weight, bias.detach(), table.detach(), codes, temperature=0.2)
    loss.backward()

    torch.testing.assert_close((weight.grad,), expected)


def test_no_position_costs_nothing_and_moves_nothing():
    arguments = example(num_positions=0)

    loss = code_loss(*arguments, temperature=0.2)
    loss.backward()

    assert loss.item() == 0
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in leaves(arguments))


def test_improbable_targets_and_zero_states_have_a_finite_loss_and_finite_gradients():
    states = torch.tensor([[1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    table = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]], requires_grad=True)

    loss = code_loss(states, None, None, table, torch.tensor([[1], [1]]), temperature=0.01)
    loss.backward()

    assert loss.item() == pytest.approx(200 + math.log(2))  # cosines 1 and -1 over 0.01; then two equal ones
    assert states.grad.isfinite().all()
    assert table.grad.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_the_same():
    arguments = example(dtype=torch.float32)
    expected = torch.autograd.grad(code_loss(*arguments, temperature=0.2), leaves(arguments))

    moved = [tensor.detach().cuda().requires_grad_() for tensor in arguments[:4]]
    gradients = torch.autograd.grad(code_loss(*moved, arguments[4].cuda(), temperature=0.2), moved)

    torch.testing.assert_close([gradient.cpu() for gradient in gradients], list(expected), rtol=1e-4, atol=1e-5)


# --- the softmax over the catalog, a few targets at a time --------------------------------------------------------


def item_inputs(num_targets=7, num_items=12, width=5, *, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states, table = (torch.randn(size, width, generator=generator, dtype=dtype) for size in (num_targets, num_items))
    items = torch.randint(num_items, (num_targets,), generator=generator)
    return states.requires_grad_(), table.requires_grad_(), items


def plain_loss(states, table, items):
    return torch.nn.functional.cross_entropy(states @ table.t(), items, reduction="sum")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9), st.integers(1, 13), st.integers(1, 4), st.integers(1, 60), st.integers(0, 99))
def test_loss_and_gradients_are_those_of_the_formula(num_targets, num_items, width, num_logits, seed):
    states, table, items = item_inputs(num_targets, num_items, width, seed=seed)
    expected = torch.autograd.grad(plain_loss(states, table, items) * 3, (states, table))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(genrec_encoder, "LOGITS_AT_A_TIME", num_logits)
        loss = item_loss(states, table, items)

    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, plain_loss(states, table, items))
    torch.testing.assert_close(torch.autograd.grad(loss * 3, (states, table)), expected)


def test_large_logits_stay_finite():
    states, table = torch.tensor([[1e4, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])

    assert item_loss(states, table, torch.tensor([0])).item() == 0
    assert item_loss(states, table, torch.tensor([1])).item() == 2e4


def test_products_are_in_the_dtype_of_autocast_and_the_softmax_is_not():
    states, table, items = item_inputs(dtype=torch.float32)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = item_loss(states, table, items)
    loss.backward()

    logits = (states.bfloat16() @ table.bfloat16().t()).float()
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, items, reduction="sum"))
    assert states.grad.dtype == table.grad.dtype == torch.float32


def test_without_gradients_only_the_loss_is_computed():
    states, table, items = item_inputs()

    with torch.no_grad():
        loss = item_loss(states, table, items)

    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain_loss(states, table, items).detach())


def test_only_one_of_the_inputs_may_need_a_gradient():
    states, table, items = item_inputs()

    item_loss(states.detach(), table, items).backward()

    torch.testing.assert_close(table.grad, torch.autograd.grad(plain_loss(states, table, items), table)[0])
