"""The item graph: neighbours, its file, and the search along it."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hf_genrec.modeling.configuration_rpg import RPGConfig
from hf_genrec.modeling.genrec_item_graph import (
    best_items,
    graph_search,
    item_graph_fingerprint,
)
from hf_genrec.modeling.modeling_rpg import RPGForItemGeneration
from hf_genrec.serving import item_graph
from hf_genrec.serving.item_graph import ItemGraph, build_item_graph, code_similarities, write_item_graph


def stand_in(num_items=53, num_levels=4, codebook_size=6, dimension=3, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(codebook_size, (num_items, num_levels), generator=generator).short()
    embeddings = torch.randn(num_levels, codebook_size, dimension, generator=generator)
    return SimpleNamespace(item_codes=codes, code_embeddings=lambda: embeddings)


def similarity_by_hand(model):
    """Mean over levels of (1 + cosine) / 2, from the definition."""
    rows = model.code_embeddings()[torch.arange(model.item_codes.shape[1]), model.item_codes.long()]  # (N, L, D)
    cosines = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
    return ((1 + cosines) / 2).mean(-1)


@pytest.fixture
def rpg():
    torch.manual_seed(0)
    shape = {"num_levels": 5, "codebook_size": 7, "d_model": 8, "d_ff": 12, "num_heads": 2, "num_layers": 1}
    model = RPGForItemGeneration(RPGConfig(num_items=31, **shape)).eval()
    model.set_catalog(torch.randint(7, (31, 5), generator=torch.Generator().manual_seed(1)))
    return model


def test_neighbours_are_the_most_similar_items_by_definition():
    model = stand_in()
    similarity = similarity_by_hand(model)

    graph = build_item_graph(model, num_neighbors=7)

    assert graph.neighbors.dtype == torch.int32
    assert graph.overlap == 1.0
    found = similarity.gather(1, graph.neighbors.long())
    torch.testing.assert_close(found, similarity.topk(7).values)
    assert all(len(set(row)) == 7 for row in graph.neighbors.tolist())


def test_an_item_is_its_own_first_neighbour_and_its_copies_come_next():
    model = stand_in(11)
    model.item_codes[8] = model.item_codes[2]

    neighbors = build_item_graph(model, num_neighbors=2).neighbors.tolist()

    assert neighbors[2] == neighbors[8] == [2, 8]
    assert all(row[0] == item for item, row in enumerate(neighbors) if item != 8)


def test_similarities_of_codes_add_up_to_those_of_items():
    model = stand_in(9)
    levels = torch.arange(4)
    tables = code_similarities(model.code_embeddings())[levels, model.item_codes.long()]  # (N, L, K)

    found = tables.gather(2, model.item_codes.long().T.expand(9, -1, -1)).sum(1)

    torch.testing.assert_close(found, similarity_by_hand(model))


def clustered(num_items=3000, num_levels=8, codebook_size=16, dimension=12):
    """Items in groups of 30 that share most of their codes: what the codes of real items look like."""
    generator = torch.Generator().manual_seed(4)
    centers = torch.randint(codebook_size, (num_items // 30, num_levels), generator=generator)
    codes = centers.repeat_interleave(30, dim=0)
    is_other = torch.rand(codes.shape, generator=generator) < 0.2
    others = torch.randint(codebook_size, codes.shape, generator=generator)
    embeddings = torch.randn(num_levels, codebook_size, dimension, generator=generator)
    return SimpleNamespace(item_codes=torch.where(is_other, others, codes).short(), code_embeddings=lambda: embeddings)


def test_approximate_search_finds_most_neighbours_and_says_how_many():
    model = clustered()
    exact = build_item_graph(model, num_neighbors=20)

    graph = build_item_graph(model, num_neighbors=20, search="approximate")
    narrow = build_item_graph(model, num_neighbors=20, search="approximate", search_width=1)

    is_found = (exact.neighbors.unsqueeze(2) == graph.neighbors.unsqueeze(1)).any(2).float().mean(1)
    assert graph.overlap == pytest.approx(float(is_found.mean()), abs=0.03)  # measured on a third of the items
    assert 0.85 < graph.overlap <= 1
    assert narrow.overlap < graph.overlap
    assert graph.fingerprint == exact.fingerprint


def test_auto_is_exact_up_to_a_number_of_items(monkeypatch):
    model = clustered()
    exact = build_item_graph(model, num_neighbors=20, search="exact").neighbors

    monkeypatch.setattr(item_graph, "MOST_EXACT", 3000)
    assert torch.equal(build_item_graph(model, num_neighbors=20).neighbors, exact)
    monkeypatch.setattr(item_graph, "MOST_EXACT", 2999)
    assert not torch.equal(build_item_graph(model, num_neighbors=20).neighbors, exact)


def test_approximate_search_takes_codebooks_of_any_size():
    model = stand_in(200, 3, 300, 5)

    graph = build_item_graph(model, num_neighbors=9, search="approximate", search_width=200)

    exact = similarity_by_hand(model).topk(9).values
    torch.testing.assert_close(similarity_by_hand(model).gather(1, graph.neighbors.long()), exact)


def test_fingerprint_tells_codes_embeddings_and_number_of_neighbours_apart():
    model = stand_in()
    codes, embeddings = model.item_codes, model.code_embeddings()
    other_codes, other_embeddings = codes.clone(), embeddings.clone()
    other_codes[3, 1] = (codes[3, 1] + 1) % 6
    other_embeddings[2, 1, 0] += 0.1

    fingerprints = [
        item_graph_fingerprint(codes, embeddings, num_neighbors=5),
        item_graph_fingerprint(codes, embeddings, num_neighbors=6),
        item_graph_fingerprint(other_codes, embeddings, num_neighbors=5),
        item_graph_fingerprint(codes, other_embeddings, num_neighbors=5),
    ]

    assert len(set(fingerprints)) == 4
    assert item_graph_fingerprint(codes.long(), embeddings.bfloat16(), num_neighbors=5) == fingerprints[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_neighbors": 54}, r"`num_neighbors` must lie in \[1, 53\] .*got 54"),
        ({"num_neighbors": 0}, "`num_neighbors`"),
        ({"search": "fast"}, "`search` must be 'auto', 'exact' or 'approximate', got 'fast'"),
        ({"search_width": 0}, "`search_width` must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_item_graph(stand_in(), **({"num_neighbors": 5} | arguments))


def test_saved_graph_is_read_again(tmp_path):
    graph = build_item_graph(stand_in(), num_neighbors=3)
    graph.save(tmp_path)

    loaded = ItemGraph.load(tmp_path)

    assert loaded.neighbors.tolist() == graph.neighbors.tolist()
    assert (loaded.fingerprint, loaded.overlap) == (graph.fingerprint, 1.0)


def test_graph_beside_the_weights_is_found_at_first_use(rpg, tmp_path):
    rpg.save_pretrained(tmp_path)
    graph = write_item_graph(tmp_path, num_neighbors=4, device="cpu")

    loaded = RPGForItemGeneration.from_pretrained(tmp_path)

    assert loaded.item_graph.tolist() == graph.neighbors.tolist()
    half = RPGForItemGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.item_graph.tolist() == graph.neighbors.tolist()


def test_graph_of_other_embeddings_is_refused_and_both_fingerprints_are_named(rpg, tmp_path):
    graph = build_item_graph(rpg, num_neighbors=4)
    with torch.no_grad():
        rpg.token_embeddings.weight[-1] += 1
    found = item_graph_fingerprint(rpg.item_codes, rpg.code_embeddings(), num_neighbors=4)

    with pytest.raises(ValueError, match=f"fingerprint {graph.fingerprint}.*fingerprint {found}"):
        rpg.set_item_graph(graph.neighbors, graph.fingerprint)
    rpg.save_pretrained(tmp_path)
    graph.save(tmp_path)
    with pytest.raises(ValueError, match=f"fingerprint {graph.fingerprint}.*fingerprint {found}"):
        _ = RPGForItemGeneration.from_pretrained(tmp_path).item_graph


def test_missing_graph_is_an_error_that_says_what_to_do(rpg, tmp_path):
    with pytest.raises(ValueError, match="not loaded from a folder.*build_item_graph"):
        _ = rpg.item_graph
    rpg.save_pretrained(tmp_path)
    loaded = RPGForItemGeneration.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"no item_graph.safetensors in {tmp_path}"):
        _ = loaded.item_graph
    loaded.config._name_or_path = str(tmp_path / "gone")
    with pytest.raises(ValueError, match="no item_graph.safetensors in .*gone"):
        _ = loaded.item_graph


def test_table_of_another_shape_or_with_unknown_items_is_refused(rpg):
    with pytest.raises(ValueError, match=r"\(num_items, num_neighbors\) = \(31, num_neighbors\)"):
        rpg.set_item_graph(torch.zeros(30, 2, dtype=torch.int32), "none")
    with pytest.raises(ValueError, match=r"`neighbors` must lie in \[0, 31\), got 0 to 31"):
        rpg.set_item_graph(
            torch.arange(1, 32).clamp_min(0).view(31, 1).repeat(1, 2) * torch.tensor([1, 0]),
            item_graph_fingerprint(rpg.item_codes, rpg.code_embeddings(), num_neighbors=2),
        )


def test_graph_is_not_for_models_that_write_code_by_code(tmp_path):
    from invariants.model import make_model, tiny_config

    make_model(tiny_config()).save_pretrained(tmp_path)

    with pytest.raises(ValueError, match="holds a 'latte' model"):
        write_item_graph(tmp_path)


# --- the search ---------------------------------------------------------------------------------------------------


def world(num_users=3, num_items=40, num_neighbors=4, *, seed=0):
    """Distributions, codes, a random graph and starts."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(num_users, 3, 5, generator=generator).log_softmax(-1)
    codes = torch.randint(5, (num_items, 3), generator=generator)
    neighbors = torch.randint(num_items, (num_items, num_neighbors), generator=generator).int()
    start = torch.randint(num_items, (num_users, 2), generator=generator)
    return log_probs, codes, neighbors, start


def search_by_hand(log_probs, codes, neighbors, start, num_beams, num_propagations):
    """One user with Python sets: the items visited."""
    score = [float(sum(log_probs[level, code] for level, code in enumerate(item))) for item in codes.tolist()]
    visited = set(start.tolist())
    for _ in range(num_propagations):
        beams = sorted(visited, key=lambda item: (-score[item], item))[:num_beams]
        visited |= {neighbor for item in beams for neighbor in neighbors[item].tolist()}
    return sorted(visited)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 999),
    num_items=st.integers(1, 60),
    num_neighbors=st.integers(1, 6),
    num_beams=st.integers(1, 9),
    num_propagations=st.integers(0, 4),
)
def test_search_visits_what_a_search_with_sets_visits(seed, num_items, num_neighbors, num_beams, num_propagations):
    log_probs, codes, neighbors, start = world(4, num_items, num_neighbors, seed=seed)

    visited = graph_search(log_probs, codes, neighbors, start, num_beams=num_beams, num_propagations=num_propagations)

    counts = visited.counts().tolist()
    for user in range(4):
        expected = search_by_hand(log_probs[user], codes, neighbors, start[user], num_beams, num_propagations)
        assert visited.items[user, : counts[user]].tolist() == expected
        assert visited.items[user, counts[user] :].tolist() == [num_items] * (len(visited.items[0]) - len(expected))


def test_one_step_to_all_items_is_exact_scoring():
    log_probs, codes, _, start = world(num_items=40)
    everybody = torch.arange(40).flip(0).expand(40, -1)

    visited = graph_search(log_probs, codes, everybody, start, num_beams=1, num_propagations=1)

    exact = best_items(log_probs, codes, top_k=40)
    found = visited.best(40)
    assert visited.counts().tolist() == [40] * 3
    assert [values.tolist() for values in found] == [values.tolist() for values in exact]


def test_best_items_stay_although_the_walk_goes_on():
    log_probs = torch.tensor([[[-1.0, -9.0, -8.0, -7.0]]])
    line = torch.tensor([[1, 1], [2, 2], [3, 3], [3, 3]])  # from the best item away, none leads back

    visited = graph_search(
        log_probs, torch.arange(4).view(4, 1), line, torch.tensor([[0]]), num_beams=4, num_propagations=3
    )

    assert visited.best(2)[0].tolist() == [[0, 3]]


def test_penalty_decides_where_the_walk_goes():
    log_probs = torch.tensor([[[-5.0, -1.0, -2.0, -9.0, -9.0]]])
    graph = torch.tensor([[1, 2], [3, 3], [4, 4], [3, 3], [4, 4]])
    options = {"start": torch.tensor([[0]]), "num_beams": 1, "num_propagations": 2}
    codes = torch.arange(5).view(5, 1)

    plain = graph_search(log_probs, codes, graph, **options)
    turned = graph_search(log_probs, codes, graph, **options, penalty=torch.tensor([0.0, 7.0, 0.0, 0.0, 0.0]))

    assert plain.items.tolist() == [[0, 1, 2, 3]]
    assert turned.items.tolist() == [[0, 1, 2, 4]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_propagations": -1}, "`num_propagations` must be at least 0"),
        ({"num_neighbors": 0}, "`num_neighbors` must be at least 1"),
        ({"start_seed": -1}, "`start_seed` must be an integer"),
    ],
)
def test_options_out_of_range_are_refused(rpg, options, message):
    with pytest.raises(ValueError, match=message):
        rpg.recommend(torch.zeros(1, 1, dtype=torch.long), decoding="graph", **options)


@pytest.mark.parametrize("options", [{"num_propagations": 2}, {"num_neighbors": 5}, {"start_seed": 1}])
def test_options_without_a_graph_are_refused(rpg, options):
    with pytest.raises(ValueError, match="is for `decoding='graph'`; this is `decoding='exact'`"):
        rpg.recommend(torch.zeros(1, 1, dtype=torch.long), **options)


def test_graph_of_a_model_that_was_trained_on_is_refused(rpg):
    graph = build_item_graph(rpg, num_neighbors=5)
    rpg.set_item_graph(graph.neighbors, graph.fingerprint)
    history = torch.tensor([[rpg.config.first_item_token]])
    rpg.recommend(history, top_k=3, num_beams=3, decoding="graph")

    with torch.no_grad():
        rpg.code_embeddings().add_(torch.randn_like(rpg.code_embeddings()))

    with pytest.raises(ValueError, match="was not built from the codes and code embeddings"):
        rpg.recommend(history, top_k=3, num_beams=3, decoding="graph")


def test_graph_of_a_model_that_was_given_other_codes_is_refused(rpg):
    graph = build_item_graph(rpg, num_neighbors=5)
    rpg.set_item_graph(graph.neighbors, graph.fingerprint)
    history = torch.tensor([[rpg.config.first_item_token]])

    rpg.set_catalog(rpg.item_codes.flip(0).clone())

    with pytest.raises(ValueError, match="was not built from the codes and code embeddings"):
        rpg.recommend(history, top_k=3, num_beams=3, decoding="graph")


def test_graph_of_wider_weights_is_refused_in_float16_with_the_reason(rpg, tmp_path):
    rpg.save_pretrained(tmp_path)
    build_item_graph(rpg, num_neighbors=5).save(tmp_path)

    with pytest.raises(ValueError, match="rounded to float16: load them in float32 or bfloat16"):
        _ = RPGForItemGeneration.from_pretrained(tmp_path, dtype=torch.float16).item_graph


def test_file_without_a_fingerprint_is_no_item_graph(tmp_path):
    save_file({"neighbors": torch.zeros(3, 2, dtype=torch.int32)}, tmp_path / "item_graph.safetensors")

    with pytest.raises(ValueError, match="item_graph.safetensors.*is no item graph.*fingerprint"):
        ItemGraph.load(tmp_path)
