"""Dropout with one random byte per element."""

import torch
from torch import nn

from hf_genrec.modeling.genrec_layers import ByteDropout, use_byte_dropout


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
