"""Attention over a user's history and over a beam's own past."""

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_genrec.modeling.genrec_layers import MAX_DIRECT_KEYS, shared_history_attention


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
