"""Catalog: the trie as tensors, against a trie of Python dictionaries."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec.modeling import genrec_catalog
from hf_genrec.modeling.configuration_genrec import GenRecConfig
from hf_genrec.modeling.genrec_catalog import Catalog, CatalogMixin
from hf_genrec.modeling.genrec_folder import catalog_fingerprint


@st.composite
def catalogs(draw):
    """Distinct tuples in any order, their codebook size, which levels are dense, and how wide a key of the sort is."""
    codebook_size = draw(st.sampled_from([1, 2, 3, 5, 40, 300]))
    num_levels = draw(st.integers(1, 4))
    tuples = st.tuples(*[st.integers(0, codebook_size - 1)] * num_levels)
    codes = draw(st.lists(tuples, min_size=1, max_size=17, unique=True))
    return codes, codebook_size, draw(st.sampled_from([0, 7, 40, 1 << 25])), draw(st.sampled_from([1, 6, 62]))


def build(example):
    codes, codebook_size, max_dense_entries, max_key_bits = example
    with mock.patch.multiple(genrec_catalog, MAX_KEY_BITS=max_key_bits, ROWS_AT_A_TIME=5):
        return Catalog(torch.tensor(codes), codebook_size, max_dense_entries=max_dense_entries)


def prefixes_of(codes, depth):
    """The brute-force trie: all prefixes of a length in order, which is how nodes are numbered."""
    return sorted({item[:depth] for item in codes})


@settings(max_examples=25, deadline=None)
@given(catalogs())
def test_nodes_are_the_prefixes_in_order(example):
    codes, codebook_size, *_ = example
    catalog = build(example)

    assert catalog.num_nodes == [len(prefixes_of(codes, depth)) for depth in range(len(codes[0]) + 1)]
    for depth in range(1, len(codes[0]) + 1):
        prefixes = prefixes_of(codes, depth)
        assert catalog.node_of(torch.tensor(prefixes)).tolist() == list(range(len(prefixes)))


@settings(max_examples=25, deadline=None)
@given(catalogs())
def test_children_are_those_of_the_brute_force_trie(example):
    codes, codebook_size, *_ = example
    catalog = build(example)

    for depth in range(len(codes[0])):
        parents, children = prefixes_of(codes, depth), prefixes_of(codes, depth + 1)
        is_child = [[(*parent, code) in children for code in range(codebook_size)] for parent in parents]
        nodes = torch.arange(len(parents))

        assert catalog.child_mask(depth, nodes).tolist() == is_child
        assert catalog.max_children[depth] == max(map(sum, is_child))

        number = {child: node for node, child in enumerate(children)}
        tried = torch.arange(-1, codebook_size + 2).expand(len(parents), -1)
        expected = [
            [number.get((*parent, code), -1) for code in row]
            for parent, row in zip(parents, tried.tolist(), strict=True)
        ]
        assert catalog.child(depth, nodes.unsqueeze(1).expand_as(tried), tried).tolist() == expected
        assert bool((catalog.child(depth, torch.full_like(tried, -1), tried) == -1).all())


@settings(max_examples=25, deadline=None)
@given(catalogs(), st.integers(0, 2**32 - 1))
def test_lists_of_children_and_masks_agree_for_living_and_dead_nodes(example, seed):
    codes, codebook_size, *_ = example
    catalog = build(example)

    for depth in range(len(codes[0])):
        generator = torch.Generator().manual_seed(seed)
        nodes = torch.randint(-1, catalog.num_nodes[depth], (3, 5), generator=generator)
        child_codes, child_nodes, is_child = catalog.children(depth, nodes)
        mask = catalog.child_mask(depth, nodes)

        assert is_child.shape == (3, 5, max(1, int(mask.sum(-1).max())))
        assert is_child.sum(-1).tolist() == mask.sum(-1).tolist()
        listed = [
            [c for c, ok in zip(*pair, strict=True) if ok]
            for pair in zip(child_codes.flatten(0, 1).tolist(), is_child.flatten(0, 1).tolist(), strict=True)
        ]
        assert listed == [row.nonzero()[:, 0].tolist() for row in mask.flatten(0, 1)]
        found = catalog.child(depth, nodes.unsqueeze(-1).expand_as(child_codes), child_codes)
        assert child_nodes.tolist() == torch.where(is_child, found, -1).tolist()
        assert int(child_codes.masked_fill(is_child, 0).max()) == 0


@settings(max_examples=25, deadline=None)
@given(catalogs(), st.integers(0, 2**32 - 1))
def test_items_are_found_by_their_codes_and_by_nothing_else(example, seed):
    codes, codebook_size, *_ = example
    catalog = build(example)

    assert catalog.item_of(torch.tensor(codes)).tolist() == list(range(len(codes)))
    generator = torch.Generator().manual_seed(seed)
    guesses = torch.randint(-1, codebook_size + 1, (4, 5, len(codes[0])), generator=generator)
    expected = [[codes.index(tuple(g)) if tuple(g) in codes else -1 for g in row] for row in guesses.tolist()]
    assert catalog.item_of(guesses).tolist() == expected


@settings(max_examples=25, deadline=None)
@given(catalogs(), st.integers(0, 2**32 - 1))
def test_prefix_is_open_exactly_where_an_allowed_item_lies_below(example, seed):
    codes, *_ = example
    catalog = build(example)
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(3, len(codes), generator=generator) < torch.tensor([[0.4], [0.0], [0.9]])

    with mock.patch.object(genrec_catalog, "MAX_COUNTS", 2 * len(codes) if seed % 2 else 1):
        nodes = catalog.allowed_nodes(allowed)

    assert len(nodes) == len(codes[0]) + 1
    for depth, table in enumerate(nodes):
        expected = [
            [
                any(ok and item[:depth] == p for item, ok in zip(codes, row, strict=True))
                for p in prefixes_of(codes, depth)
            ]
            for row in allowed.tolist()
        ]
        assert table.tolist() == expected


@settings(max_examples=25, deadline=None)
@given(catalogs())
def test_items_below_a_node_are_one_range(example):
    codes, *_ = example
    catalog = build(example)
    ordered = sorted(codes)

    assert catalog.items_in_order.tolist() == [codes.index(item) for item in ordered]
    for depth in range(len(codes[0]) + 1):
        first = catalog.first_item(depth).tolist()
        for node, prefix in enumerate(prefixes_of(codes, depth)):
            below = ordered[first[node] : first[node + 1]]
            assert below == [item for item in ordered if item[:depth] == prefix]


@pytest.mark.parametrize("max_dense_entries", [0, 1 << 25])
def test_no_node_has_no_children(max_dense_entries):
    catalog = Catalog(torch.tensor([[0, 1], [2, 0]]), 3, max_dense_entries=max_dense_entries)

    assert catalog.child_mask(0, torch.tensor([-1])).tolist() == [[False, False, False]]
    assert catalog.child_mask(1, torch.tensor([[-1, 1], [0, -1]])).tolist() == [
        [[False, False, False], [True, False, False]],
        [[False, True, False], [False, False, False]],
    ]
    assert catalog.child(1, torch.tensor([-1]), torch.tensor([0])).tolist() == [-1]


@pytest.mark.parametrize("max_dense_entries", [0, 1 << 25])
def test_catalog_of_one_item(max_dense_entries):
    catalog = Catalog(torch.tensor([[3, 0, 2]]), 4, max_dense_entries=max_dense_entries)

    assert catalog.num_nodes == [1, 1, 1, 1]
    assert catalog.item_of(torch.tensor([[3, 0, 2], [3, 0, 1]])).tolist() == [0, -1]
    assert catalog.child_mask(1, torch.tensor([0])).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("max_dense_entries", [0, 1 << 25])
def test_catalog_of_one_level(max_dense_entries):
    catalog = Catalog(torch.tensor([[4], [1], [2]]), 6, max_dense_entries=max_dense_entries)

    assert catalog.child_mask(0, torch.tensor([0])).tolist() == [[False, True, True, False, True, False]]
    assert catalog.item_of(torch.tensor([[1], [4], [0]])).tolist() == [1, 0, -1]


@pytest.mark.parametrize("max_dense_entries", [0, 1 << 25])
def test_lists_of_children_have_the_width_that_is_asked_for(max_dense_entries):
    catalog = Catalog(torch.tensor([[0, 4], [2, 0], [0, 1], [0, 3]]), 6, max_dense_entries=max_dense_entries)

    codes, nodes, is_child = catalog.children(1, torch.tensor([1, 0, -1]), width=2)

    assert codes.tolist() == [[0, 0], [1, 3], [0, 0]]
    assert nodes.tolist() == [[3, -1], [0, 1], [-1, -1]]
    assert is_child.tolist() == [[True, False], [True, True], [False, False]]
    assert catalog.max_children == [2, 3]
    assert [part.shape[-1] for part in catalog.children(1, torch.tensor([-1]))] == [1, 1, 1]
    assert catalog.children(1, torch.zeros(0, 7, dtype=torch.long))[0].shape == (0, 7, 1)
    assert catalog.child_mask(1, torch.zeros(0, 7, dtype=torch.long)).shape == (0, 7, 6)


def test_semantic_ids_too_long_for_one_key_are_sorted_all_the_same():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 300, (53, 41), generator=generator)
    codes[:, :38] = codes[0, :38]  # what tells items apart is in the last group of levels
    codes[::3, 2] = 7

    catalog = Catalog(codes, 300)

    assert catalog.items_in_order.tolist() == sorted(range(53), key=lambda item: codes[item].tolist())
    assert catalog.item_of(codes).tolist() == list(range(53))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_type_of_the_codes_does_not_matter(dtype):
    codes = torch.tensor([[255, 0], [0, 255], [128, 127]])

    catalog = Catalog(codes.to(dtype), 256)

    assert catalog.items_in_order.tolist() == [1, 2, 0]
    assert catalog.item_of(codes).tolist() == [0, 1, 2]
    outputs = [catalog.items_in_order, catalog.first_item(1), catalog.first_item(2), catalog.node_of(codes)]
    assert {output.dtype for output in [*outputs, *catalog.children(0, codes[:2, 1] * 0)[:2]]} == {torch.long}


def test_forms_above_the_bound_take_no_dense_memory():
    codes = torch.stack([torch.arange(9), torch.arange(9)], dim=1)

    def num_dense_rows(max_dense_entries):
        catalog = Catalog(codes, 9, max_dense_entries=max_dense_entries)
        return [
            [0 if table is None else len(table) for table in tables] for tables in (catalog._legal, catalog._child)
        ]

    assert num_dense_rows(1) == [[0, 0], [0, 0]]
    assert num_dense_rows(2) == [[2, 0], [0, 0]]  # all 9 codes of the root are legal: 8 times the bound
    assert num_dense_rows(80) == [[2, 0], [2, 0]]  # only 9 of the 81 at the next depth
    assert num_dense_rows(81) == [[2, 10], [2, 0]]
    assert num_dense_rows(8 * 81) == [[2, 10], [2, 10]]


def test_node_of_the_empty_prefix_is_the_root():
    catalog = Catalog(torch.tensor([[4], [1]]), 6)

    assert catalog.node_of(torch.zeros(3, 0, dtype=torch.long)).tolist() == [0, 0, 0]


def test_items_that_share_their_codes_stand_at_one_leaf_in_ascending_order():
    codes = torch.tensor([[0, 1], [2, 0], [0, 1], [1, 1], [0, 1]])

    catalog = Catalog(codes, 3)

    assert (catalog.num_items, catalog.num_ids, catalog.is_unique) == (5, 3, False)
    assert catalog.items_in_order.tolist() == [0, 2, 4, 3, 1]
    assert catalog.first_item(2).tolist() == [0, 3, 4, 5]
    assert catalog.item_of(codes).tolist() == [0, 1, 0, 3, 0]
    assert catalog.item_at(torch.tensor([2, -1, 0])).tolist() == [1, -1, 0]


def test_shared_id_is_closed_when_all_its_items_are():
    catalog = Catalog(torch.tensor([[0, 1], [2, 0], [0, 1], [1, 1], [0, 1]]), 3)

    tables = catalog.allowed_nodes(torch.tensor([[False, True, False, True, True], [False, True, False, True, False]]))

    assert [table.int().tolist() for table in tables] == [[[1], [1]], [[1, 1, 1], [0, 1, 1]], [[1, 1, 1], [0, 1, 1]]]


@pytest.mark.parametrize("codes", [[[0, 3]], [[-1, 0]]])
def test_codes_out_of_range_are_refused(codes):
    with pytest.raises(ValueError, match=r"Codes must lie in \[0, 3\)"):
        Catalog(torch.tensor(codes), 3)


@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (5,), (2, 3, 4)])
def test_tables_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="must have shape"):
        Catalog(torch.zeros(shape, dtype=torch.long), 3)


def test_fingerprint_tells_codes_order_and_shape_apart_but_not_their_type():
    codes = torch.tensor([[0, 1, 2], [2, 0, 1]])

    assert catalog_fingerprint(codes) == catalog_fingerprint(codes.to(torch.int16)) == "fb45492faa503314"
    assert len({catalog_fingerprint(c) for c in (codes, codes.flip(0), codes.flip(1), codes.view(3, 2))}) == 4


class ItemsByTheirCodes(CatalogMixin, torch.nn.Module):
    """A model that is only a catalog."""

    def __init__(self):
        super().__init__()
        self.config = GenRecConfig(num_items=3, num_levels=2, codebook_size=4)
        self.register_catalog()


def test_trie_of_a_model_is_not_built_before_it_is_needed():
    model = ItemsByTheirCodes()
    codes = torch.tensor([[1, 0], [3, 2], [1, 0]])

    with mock.patch.object(genrec_catalog, "Catalog", side_effect=AssertionError("the trie was built")):
        model.set_catalog(codes)
        model.check_catalog()

    assert model.item_codes.tolist() == codes.tolist()
    assert model.config.catalog_fingerprint == catalog_fingerprint(codes)
    assert model.catalog.num_ids == 2


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[1, 0], [3, 2]], r"must have shape \(num_items, num_levels\) = \(3, 2\), got \(2, 2\)"),
        ([[1.0, 0.0]] * 3, "must be integers, got torch.float32"),
        ([[1, 0], [3, 4], [1, 0]], r"must lie in \[0, 4\), got values from 0 to 4"),
        ([[1, 0], [-1, 2], [1, 0]], r"must lie in \[0, 4\), got values from -1 to 2"),
    ],
)
def test_codes_of_such_a_model_are_checked_all_the_same(codes, message):
    with pytest.raises(ValueError, match=message):
        ItemsByTheirCodes().set_catalog(torch.tensor(codes))
