"""Dropout by the byte, attention that shares a history, attention to rows of a table."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_genrec.modeling import modeling_acerec
from hf_genrec.modeling.genrec_encoder import ByteDropout, use_byte_dropout
from hf_genrec.modeling.genrec_generate import MAX_DIRECT_KEYS, shared_history_attention
from hf_genrec.modeling.modeling_acerec import attend_to_rows


# --- dropout with one random byte per element ---------------------------------------------------------------------


def test_kept_elements_are_scaled_by_the_share_that_is_kept():
    torch.manual_seed(0)
    dropped = ByteDropout(0.1)(torch.ones(7, 11_111))

    assert sorted(set(dropped.flatten().tolist())) == [0.0, torch.tensor(256 / 230).item()]
    share = (dropped == 0).double().mean().item()
    assert abs(share - 26 / 256) < 4 * (26 / 256 * 230 / 256 / dropped.numel()) ** 0.5


def test_a_seed_fixes_the_mask():
    masks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        masks.append(ByteDropout(0.5)(torch.ones(5, 13)))

    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_gradient_is_zero_where_the_element_was_dropped():
    inputs = torch.ones(3, 17, requires_grad=True)
    dropped = ByteDropout(0.5)(inputs)
    dropped.sum().backward()

    assert torch.equal(inputs.grad, dropped.detach())


def test_evaluation_and_probability_zero_change_nothing():
    inputs = torch.randn(3, 5)

    assert torch.equal(ByteDropout(0.5).eval()(inputs), inputs)
    assert torch.equal(ByteDropout(0.0)(inputs), inputs)


def test_a_probability_close_to_one_drops_nearly_everything():
    torch.manual_seed(0)

    assert (ByteDropout(0.999)(torch.ones(2560)) == 0).sum() > 2500


def test_every_dropout_of_a_network_is_replaced_and_keeps_its_probability():
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.3)), nn.Dropout(0.1))
    use_byte_dropout(network)

    assert [(type(module), module.p) for module in network.modules() if isinstance(module, nn.Dropout)] == [
        (ByteDropout, 0.3),
        (ByteDropout, 0.1),
    ]


# --- attention over a user's history and over a beam's own past ---------------------------------------------------


MODULE = SimpleNamespace(training=False, is_causal=False, num_key_value_groups=1)


@pytest.mark.parametrize("num_keys", [1, 5, MAX_DIRECT_KEYS, MAX_DIRECT_KEYS + 1])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize("scaling", [None, 1.0])
def test_one_position_attends_as_the_kernel_does(num_keys, mask, scaling):
    generator = torch.Generator().manual_seed(num_keys)
    query, key, value = (torch.randn(3, 2, n, 7, generator=generator) for n in (1, num_keys, num_keys))
    bias = torch.randn(1, 2, 1, num_keys, generator=generator)
    masks = {
        None: None,
        "bool": torch.arange(num_keys).expand(3, 1, 1, -1) != 2,
        "float": torch.randn(3, 1, 1, num_keys, generator=generator),
    }
    options = {"attention_mask": masks[mask], "position_bias": bias, "scaling": scaling}

    output, _ = shared_history_attention(MODULE, query, key, value, **options)
    expected, _ = sdpa_attention_forward(MODULE, query, key, value, **options)

    assert output.shape == (3, 1, 2, 7)
    torch.testing.assert_close(output, expected)


def test_rows_of_a_user_read_the_users_keys():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(6, 2, 5, 7, generator=generator), torch.randn(3, 2, 11, 7, generator=generator)

    output, _ = shared_history_attention(MODULE, query, key, key, None, scaling=1.0)
    copied = key.repeat_interleave(2, dim=0)
    expected, _ = sdpa_attention_forward(MODULE, query, copied, copied, None, scaling=1.0)

    torch.testing.assert_close(output, expected)


# --- attention to rows of a table against the same thing with all rows gathered -----------------------------------


def attention_with_all_rows(queries, table, places):
    rows = table[places]
    return (queries @ rows.transpose(1, 2)).softmax(-1) @ rows


def rows_example(*, num_items=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(num_items, 2, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    table = torch.randn(11, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    places = torch.randint(9, (num_items, 3), generator=generator)  # rows 9 and 10 are not used
    return queries, table, places


@pytest.mark.parametrize("items_per_block", [1, 3, 32])
def test_values_and_gradients_do_not_depend_on_the_blocks(monkeypatch, items_per_block):
    monkeypatch.setattr(modeling_acerec, "ITEMS_PER_BLOCK", items_per_block)
    queries, table, places = rows_example()
    weights = torch.randn(queries.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    mixed, expected = attend_to_rows(queries, table, places), attention_with_all_rows(queries, table, places)

    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(
        torch.autograd.grad((mixed * weights).sum(), (queries, table)),
        torch.autograd.grad((expected * weights).sum(), (queries, table)),
    )


def test_gradients_are_those_of_finite_differences():
    queries, table, places = rows_example()

    assert torch.autograd.gradcheck(lambda *tensors: attend_to_rows(*tensors, places), (queries, table))


def test_a_row_that_an_item_has_twice_counts_twice():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)

    mixed = attend_to_rows(torch.zeros(1, 1, 2), table, torch.tensor([[0, 0, 1]]))
    mixed.sum().backward()

    torch.testing.assert_close(mixed, torch.tensor([[[2 / 3, 1 / 3]]]))
    torch.testing.assert_close(table.grad, torch.tensor([[2 / 3, 2 / 3], [1 / 3, 1 / 3]]))


def test_autocast_computes_in_bfloat16_and_gradients_come_in_the_dtype_of_the_inputs():
    queries, table, places = rows_example(dtype=torch.float32)
    expected = attention_with_all_rows(queries, table, places)
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
    queries, table, places = rows_example(num_items=0)

    mixed = attend_to_rows(queries, table, places)
    mixed.sum().backward()

    assert mixed.shape == (0, 2, 5)
    assert not table.grad.any()
