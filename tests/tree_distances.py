"""The distance in the tree of codes by its definition, beside which the library's counts are tested."""

import numpy as np


def tree_distance(codes_a, codes_b):
    """Edges between two leaves: twice the number of codes after the common prefix; shapes are broadcast."""
    num_shared = np.cumprod(np.asarray(codes_a) == np.asarray(codes_b), axis=-1).sum(axis=-1)
    return 2 * (np.shape(codes_a)[-1] - num_shared)
