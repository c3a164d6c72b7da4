"""Balanced, aligned hierarchical k-means: sizes of clusters, names of children, new items."""

import numpy as np

from hf_genrec.tokenizers.gaoq import GAOQ
from invariants.quantizer import QuantizerInvariants


class TestGAOQ(QuantizerInvariants):
    QUANTIZER = GAOQ
    OTHER_SIZE = "num_levels"
    WRONG = {"num_iterations": 0}
    LEAST_ROWS = 0


def test_clusters_are_of_about_equal_size_where_those_of_k_means_are_not():
    random = np.random.default_rng(3)
    rows = np.concatenate([random.normal(size=(300, 5)), 9 + random.normal(size=(20, 5))]).astype(np.float32)

    codes = GAOQ(num_levels=1, codebook_size=4).fit(rows, show_progress=False).encode(rows)

    sizes = np.bincount(codes[:, 0], minlength=4)
    assert sizes.min() >= 70
    assert sizes.max() <= 90


def test_the_same_step_has_the_same_name_under_every_parent():
    random = np.random.default_rng(3)
    parents, steps = 50 * random.normal(size=(8, 12)), 3 * np.linalg.qr(random.normal(size=(12, 8)))[0].T
    kinds = np.array([(parent, step) for parent in range(8) for step in range(8)] * 4)
    rows = parents[kinds[:, 0]] + steps[kinds[:, 1]] + 0.01 * random.normal(size=(256, 12))

    codes = GAOQ(num_levels=2, codebook_size=8).fit(rows.astype(np.float32)).encode(rows.astype(np.float32))

    for step in range(8):
        assert len(set(codes[kinds[:, 1] == step, 1].tolist())) == 1
    for parent in range(8):
        assert len(set(codes[kinds[:, 0] == parent, 0].tolist())) == 1


def test_default_size_leaves_room_for_the_code_that_is_appended():
    sizes = [GAOQ.default_codebook_size(num_levels=2, num_items=n, num_rows=n) for n in (40, 4344, 12101, 100000)]

    assert sizes == [8, 32, 32, 64]
