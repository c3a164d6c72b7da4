"""The number of threads of a training follows from the model's size."""

import pytest
import torch

from hf_genrec import LatteConfig, SASRecConfig
from hf_genrec.training.threads import num_threads_for, threads


@pytest.mark.parametrize(
    ("config", "targets", "expected"),
    [
        (LatteConfig(num_items=1349, num_levels=2, codebook_size=64, d_model=64, d_ff=256), 512, 1),  # the quick start
        (LatteConfig(num_items=12_101, num_levels=3, codebook_size=256, d_model=128, d_ff=512), 256, 1),
        (LatteConfig(num_items=12_101, num_levels=3, codebook_size=256, d_model=256, d_ff=1024), 1024, 3),
        (LatteConfig(num_items=12_101, num_levels=3, codebook_size=256, d_model=512, d_ff=2048), 4096, 16),
        (SASRecConfig(num_items=1349, d_model=64), 512, 1),
        (SASRecConfig(num_items=12_101, d_model=64), 256, 1),
        (SASRecConfig(num_items=12_101, d_model=256), 512, 5),
    ],
)
def test_small_products_get_one_thread_and_large_ones_more(config, targets, expected):
    assert num_threads_for(config, targets_per_step=targets, available=16) == expected
    assert num_threads_for(config, targets_per_step=targets, available=2) == min(2, expected)


def test_threads_are_as_before_afterwards():
    before = torch.get_num_threads()

    with threads(before + 2):
        assert torch.get_num_threads() == before + 2

    assert torch.get_num_threads() == before
