"""Where the time of a training step goes: that every operator has its group, and the shares of a real step."""

import pytest
import torch


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("step_shares")


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::bmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "fused attention"),
        ("aten::_embedding_bag_dense_backward", "rows taken and written"),
        ("aten::_log_softmax", "softmax and loss"),
        ("aten::_fused_adamw_", "optimizer and clipping"),
        ("aten::_foreach_norm", "optimizer and clipping"),
        ("aten::native_dropout", "dropout"),
        ("aten::copy_", "copies and casts"),
        ("aten::fill_", "new memory"),
        ("aten::masked_fill_", "element by element"),
        ("aten::mul", "element by element"),
        ("AddmmBackward0", "Python between operators"),
    ],
)
def test_an_operator_is_of_the_group_that_its_name_says(script, name, group):
    assert script.group_of(name) == group


def test_a_step_of_products_is_mostly_products(script):
    left, right = torch.randn(500, 600), torch.randn(600, 700)  # thousands of times what one row of it takes then

    milliseconds, shares = script.shares_of(lambda: len((left @ right)[0].tanh_()), 5)

    assert milliseconds > 0
    assert next(iter(shares)) == "matrix products"
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["element by element"] > 0
    assert shares["optimizer and clipping"] == 0
