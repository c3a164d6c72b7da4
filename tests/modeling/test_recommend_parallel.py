"""`recommend()` of models that predict all codes at once, on a stand-in whose distributions are known."""

import math

import pytest
import torch

from hf_genrec.modeling import genrec_item_graph
from hf_genrec.modeling.configuration_genrec import GenRecConfig
from hf_genrec.modeling.genrec_catalog import CatalogMixin
from hf_genrec.modeling.genrec_item_graph import item_graph_fingerprint
from hf_genrec.modeling.genrec_rank_codes import CodeRankingMixin
from hf_genrec.serving.item_graph import build_item_graph


NUM_ITEMS, NUM_LEVELS, CODEBOOK_SIZE = 37, 5, 6


class Parallel(CodeRankingMixin, CatalogMixin, torch.nn.Module):
    """The distributions of a user follow from the sum of the embeddings of the history, nothing else."""

    def __init__(self, *, num_items=NUM_ITEMS, num_levels=NUM_LEVELS, codebook_size=CODEBOOK_SIZE, seed=0):
        super().__init__()
        self.config = GenRecConfig(num_items=num_items, num_levels=num_levels, codebook_size=codebook_size)
        self.register_catalog()
        generator = torch.Generator().manual_seed(seed)
        shape = (num_levels, codebook_size)
        self.item_logits = torch.nn.Parameter(torch.randn(num_items, *shape, generator=generator))
        self.codes = torch.nn.Parameter(torch.randn(*shape, 4, generator=generator))
        self.set_catalog(torch.randint(codebook_size, (num_items, num_levels), generator=generator))
        self.rows_at_once = []

    def code_log_probs(self, input_ids, attention_mask=None):
        self.rows_at_once.append(len(input_ids))
        is_item = self.is_item(input_ids, attention_mask)
        rows = self.item_logits[(input_ids - self.config.first_item_token).clamp_min(0)]
        logits = (rows * is_item[..., None, None]).sum(1)
        return logits.float().log_softmax(-1)

    def code_embeddings(self):
        return self.codes

    def history_bytes(self, history_length):
        return 100 * history_length


@pytest.fixture
def model():
    return Parallel().requires_grad_(False)


def histories(model, *rows):
    """Item indices per user as tokens, padded on the right."""
    width = max(map(len, rows))
    first = model.config.first_item_token
    return torch.tensor([[item + first for item in row] + [0] * (width - len(row)) for row in rows])


USERS = ([3, 8, 1, 8], [30], [12, 36])


def items_of(model, output):
    return (output.item_tokens - model.config.first_item_token).tolist()


def test_lists_are_the_best_by_exact_scores(model):
    tokens = histories(model, *USERS)
    scores, order = model.score_items(tokens).sort(dim=1, descending=True, stable=True)

    output = model.recommend(tokens, top_k=7)

    assert items_of(model, output) == order[:, :7].tolist()
    assert output.scores.tolist() == scores[:, :7].tolist()
    assert output.num_visited.tolist() == [NUM_ITEMS] * 3


def test_score_is_the_sum_of_the_log_probabilities_of_the_codes(model):
    tokens = histories(model, *USERS)
    log_probs = model.code_log_probs(tokens)

    expected = sum(log_probs[:, level, model.item_codes[:, level].long()] for level in range(NUM_LEVELS))

    torch.testing.assert_close(model.score_items(tokens), expected)


def test_items_with_the_same_codes_stand_in_the_order_of_the_catalog(model):
    codes = model.item_codes.clone()
    codes[[4, 9, 20]] = codes[20].clone()
    model.set_catalog(codes)

    found = items_of(model, model.recommend(histories(model, *USERS), top_k=NUM_ITEMS))

    for row in found:
        place = row.index(4)
        assert row[place : place + 3] == [4, 9, 20]


def test_users_one_at_a_time_get_the_lists_of_a_batch(model):
    tokens = histories(model, *USERS)
    whole = model.recommend(tokens, sample_seed=3)

    model.rows_at_once.clear()
    pieces = model.recommend(tokens, sample_seed=3, memory_budget=1)

    assert model.rows_at_once == [1, 1, 1]
    assert pieces.item_tokens.tolist() == whole.item_tokens.tolist()
    assert pieces.scores.tolist() == whole.scores.tolist()


def test_nobody_gets_no_lists(model):
    output = model.recommend(torch.zeros(0, 4, dtype=torch.long), top_k=3, return_paths=True)

    assert output.item_tokens.shape == output.scores.shape == (0, 3)
    assert output.paths == output.pruned == []
    assert model.score_items(torch.zeros(0, 4, dtype=torch.long)).shape == (0, NUM_ITEMS)


def test_rules_take_items_out(model):
    tokens = histories(model, *USERS)
    order = model.score_items(tokens).argsort(dim=1, descending=True, stable=True)
    exclude = order[:, [0, 2]] + model.config.first_item_token
    allow = torch.zeros(NUM_ITEMS, dtype=torch.bool).index_fill(0, order[0, [0, 2, 5, 30]], True)

    assert items_of(model, model.recommend(tokens, top_k=2, exclude_items=exclude)) == order[:, [1, 3]].tolist()
    few = model.recommend(tokens[:1], top_k=3, exclude_items=exclude[:1], allow_items=allow)

    assert items_of(model, few)[0][:2] == order[0, [5, 30]].tolist()
    assert few.item_tokens[0, 2] == model.config.pad_token_id
    assert few.scores[0, 2] == -float("inf")


def test_prior_correction_ranks_by_corrected_scores_and_returns_the_others(model):
    tokens = histories(model, *USERS)
    prior = torch.arange(1, NUM_ITEMS + 1)
    scores = model.score_items(tokens)
    corrected = scores - 0.7 * (prior / prior.sum()).log()

    output = model.recommend(tokens, top_k=9, prior_correction=0.7, item_prior=prior)

    found = torch.tensor(items_of(model, output))
    assert found.tolist() == corrected.argsort(dim=1, descending=True)[:, :9].tolist()
    assert output.scores.tolist() == scores.gather(1, found).tolist()


def test_sample_draws_items_in_proportion_to_their_probabilities(model):
    first = model.recommend(histories(model, *[[5, 6]] * 4000), top_k=2, sample_seed=11).item_tokens[:, 0]

    expected = model.score_items(histories(model, [5, 6]))[0].softmax(0)
    share = (first - model.config.first_item_token).bincount(minlength=NUM_ITEMS) / 4000
    assert float((share - expected).abs().max()) < 0.03
    again = model.recommend(histories(model, *[[5, 6]] * 4000), top_k=2, sample_seed=11).item_tokens[:, 0]
    assert again.tolist() == first.tolist()


def test_diverse_list_begins_with_the_best_item_and_shares_fewer_codes(model):
    tokens = histories(model, *USERS)

    def codes_in_common(output):
        codes = model.item_codes[output.item_tokens - model.config.first_item_token]
        return float((codes.unsqueeze(1) == codes.unsqueeze(2)).float().mean())

    plain = model.recommend(tokens, top_k=5, num_beams=30)
    diverse = model.recommend(tokens, top_k=5, num_beams=30, diversity=1.0)

    assert diverse.item_tokens[:, 0].tolist() == plain.item_tokens[:, 0].tolist()
    assert codes_in_common(diverse) < codes_in_common(plain) - 0.05


def test_paths_tell_the_codes_of_the_listed_items_and_the_score_after_each(model):
    tokens = histories(model, *USERS)
    output = model.recommend(tokens, top_k=3, return_paths=True)

    for user in range(3):
        assert [path.item_token for path in output.paths[user]] == output.item_tokens[user].tolist()
        for path, score in zip(output.paths[user], output.scores[user].tolist(), strict=True):
            assert path.codes == model.item_codes[path.item_token - model.config.first_item_token].tolist()
            assert len(path.scores) == NUM_LEVELS
            assert path.scores[-1] == pytest.approx(score)
            assert path.scores[0] == pytest.approx(float(model.code_log_probs(tokens)[user, 0, path.codes[0]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 38}, r"`top_k` must lie in \[1, 37\]"),
        ({"decoding": "fast"}, "`decoding` must be one of 'exact', 'graph', 'beam', got 'fast'"),
        ({"latent_aggregation": "mean"}, "`latent_aggregation` must be 'max' or 'sum'"),
        ({"prior_correction": 0.5}, "`prior_correction` and `item_prior` go together"),
        ({"sample_seed": 1, "diversity": 0.5}, "`sample_seed` and `diversity` cannot be combined"),
        ({"prior_correction": 0.5, "item_prior": torch.zeros(37)}, "`item_prior` must be positive"),
    ],
)
def test_arguments_out_of_range_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.recommend(histories(model, *USERS), **arguments)


# --- along the graph ----------------------------------------------------------------------------------------------


def with_graph(model, num_neighbors):
    graph = build_item_graph(model, num_neighbors=num_neighbors)
    model.set_item_graph(graph.neighbors, graph.fingerprint)
    return model


def start_at(model, monkeypatch, items):
    """Let all walks begin at these items."""
    start = torch.tensor([items])
    monkeypatch.setattr(model, "start_items", lambda tokens, *_, **__: start.expand(len(tokens), -1))


def set_neighbors(model, neighbors):
    """Any graph, marked as one of this model."""
    of_model = model.item_codes, model.code_embeddings()
    model.set_item_graph(neighbors, item_graph_fingerprint(*of_model, num_neighbors=neighbors.shape[1]))


def test_one_step_along_a_graph_of_all_items_gives_the_exact_lists(model):
    tokens = histories(model, *USERS)
    exact = model.recommend(tokens, top_k=9)

    output = with_graph(model, NUM_ITEMS).recommend(tokens, top_k=9, num_beams=1, decoding="graph", num_propagations=1)

    assert output.item_tokens.tolist() == exact.item_tokens.tolist()
    assert output.scores.tolist() == exact.scores.tolist()
    assert output.num_visited.tolist() == [NUM_ITEMS] * 3


def test_walk_scores_few_items_exactly(model):
    tokens = histories(model, *USERS)

    output = with_graph(model, 4).recommend(tokens, top_k=2, num_beams=2, decoding="graph", num_propagations=2)

    assert max(output.num_visited.tolist()) <= 2 + 2 * 2 * 4
    found = output.item_tokens - model.config.first_item_token
    assert output.scores.tolist() == model.score_items(tokens).gather(1, found).tolist()


def test_random_start_depends_on_the_history_and_the_seed_alone(model):
    options = {"top_k": 2, "num_beams": 2, "decoding": "graph", "num_propagations": 1}
    tokens = histories(model, *USERS, *USERS)
    together = with_graph(model, 3).recommend(tokens, **options)

    assert together.item_tokens[:3].tolist() == together.item_tokens[3:].tolist()
    for user in range(3):
        history = torch.nn.functional.pad(tokens[user : user + 1, : len(USERS[user])], (2, 1))
        alone = model.recommend(history, **options)
        assert alone.item_tokens.tolist() == together.item_tokens[user : user + 1].tolist()
    others = [model.recommend(tokens, **options, start_seed=seed).num_visited.tolist() for seed in range(5)]
    assert len(set(map(tuple, others))) > 1


def test_empty_history_starts_anywhere(model):
    output = with_graph(model, 3).recommend(torch.zeros(1, 0, dtype=torch.long), top_k=4, decoding="graph")

    assert len(set(items_of(model, output)[0])) == 4


def test_walk_leads_through_excluded_items(model, monkeypatch):
    ring = (torch.arange(NUM_ITEMS) + 1) % NUM_ITEMS
    set_neighbors(model, ring.unsqueeze(1))
    start_at(model, monkeypatch, [5])
    first = model.config.first_item_token

    output = model.recommend(
        histories(model, *USERS),
        top_k=1,
        num_beams=NUM_ITEMS,
        decoding="graph",
        num_propagations=2,
        exclude_items=torch.arange(5) + first,
        allow_items=torch.tensor([first + 2, first + 7]),
    )

    assert items_of(model, output) == [[7]] * 3


def test_list_that_holds_all_allowed_items_is_not_searched_again(model, monkeypatch):
    set_neighbors(model, torch.arange(NUM_ITEMS).unsqueeze(1))  # leads nowhere
    start_at(model, monkeypatch, [34, 35, 36])
    options = {"decoding": "graph", "num_beams": 3}

    output = model.recommend(
        histories(model, *USERS), top_k=3, allow_items=torch.tensor([36]) + model.config.first_item_token, **options
    )

    assert output.num_visited.tolist() == [3, 3, 3]
    assert output.item_tokens[:, 1:].tolist() == [[model.config.pad_token_id] * 2] * 3


def test_user_whose_walk_finds_too_few_items_gets_the_exact_list(model, monkeypatch):
    set_neighbors(model, torch.arange(NUM_ITEMS).unsqueeze(1))  # leads nowhere
    tokens = histories(model, *USERS)
    start_at(model, monkeypatch, [34, 35, 36])
    options = {"decoding": "graph", "num_beams": 3}
    exclude = torch.tensor([[0], [36], [0]]) + model.config.first_item_token  # of the second user, one of the three

    output = model.recommend(tokens, top_k=3, exclude_items=exclude, **options)
    exact = model.recommend(tokens, top_k=3, exclude_items=exclude)

    assert output.num_visited.tolist() == [3, NUM_ITEMS, 3]
    assert output.item_tokens[1].tolist() == exact.item_tokens[1].tolist()
    assert sorted(items_of(model, output)[0]) == [34, 35, 36]


# --- beam search --------------------------------------------------------------------------------------------------


def beams_by_hand(log_probs, codes, num_beams, penalty=None):
    """The ids that one user's beams end at, with prefixes as tuples; `penalty` maps a prefix to what it costs."""
    ids = {tuple(row) for row in codes.tolist()}
    beams = {(): 0.0}
    for level in range(codes.shape[1]):
        longer = {
            prefix[: level + 1]: beams[prefix[:level]] + float(log_probs[level, prefix[level]])
            for prefix in ids
            if prefix[:level] in beams
        }
        order = sorted(longer, key=lambda prefix: (penalty(prefix) if penalty else 0) - longer[prefix])
        beams = {prefix: longer[prefix] for prefix in order[:num_beams]}
    return set(beams)


@pytest.mark.parametrize("num_beams", [3, 8])
@pytest.mark.parametrize("prior_correction", [0.0, 0.8])
def test_beams_end_where_a_search_with_tuples_ends(model, num_beams, prior_correction):
    tokens = histories(model, *USERS)
    log_probs, scores = model.code_log_probs(tokens), model.score_items(tokens)
    prior = torch.arange(1, NUM_ITEMS + 1) ** 2
    codes = [tuple(row) for row in model.item_codes.tolist()]

    def penalty(prefix):
        below = sum(int(prior[item]) for item in range(NUM_ITEMS) if codes[item][: len(prefix)] == prefix)
        return prior_correction * math.log(below / int(prior.sum()))

    options = {"prior_correction": prior_correction, "item_prior": prior} if prior_correction else {}
    output = model.recommend(tokens, top_k=3, num_beams=num_beams, decoding="beam", **options)

    for user, found in enumerate(items_of(model, output)):
        ids = beams_by_hand(log_probs[user], model.item_codes, num_beams, penalty)
        held = [item for item in range(NUM_ITEMS) if codes[item] in ids]
        assert found == sorted(held, key=lambda item: penalty(codes[item]) - float(scores[user, item]))[:3]
        assert int(output.num_visited[user]) == len(held)


def test_enough_beams_give_the_exact_lists_and_items_that_share_an_id_all_come_out(model):
    codes = model.item_codes.clone()
    codes[[4, 9, 20]] = codes[20].clone()
    model.set_catalog(codes)
    tokens = histories(model, *USERS)
    prior = torch.arange(1, NUM_ITEMS + 1)
    allow = torch.arange(NUM_ITEMS) != 9

    for options in ({}, {"prior_correction": 0.5, "item_prior": prior}, {"allow_items": allow}):
        exact = model.recommend(tokens, top_k=35, **options)
        output = model.recommend(tokens, top_k=35, num_beams=NUM_ITEMS, decoding="beam", **options)

        assert output.item_tokens.tolist() == exact.item_tokens.tolist()
        assert output.scores.tolist() == exact.scores.tolist()


def test_user_whose_beams_hold_too_few_items_gets_the_exact_list(model):
    tokens = histories(model, *USERS)

    output = model.recommend(tokens, top_k=6, num_beams=2, decoding="beam")

    assert output.item_tokens.tolist() == model.recommend(tokens, top_k=6).item_tokens.tolist()
    assert output.num_visited.tolist() == [NUM_ITEMS] * 3


def test_beams_tell_what_they_left_behind(model):
    output = model.recommend(histories(model, *USERS), top_k=2, num_beams=4, decoding="beam", return_paths=True)

    assert [len(paths) for paths in output.paths] == [2, 2, 2]
    for user, pruned in enumerate(output.pruned):
        first = [path for path in pruned if len(path.codes) == 1]
        assert len(first) == 2  # six codes, four beams
        best = [path.scores[0] for path in output.paths[user]]
        assert max(path.scores[0] for path in first) <= min(best)


@pytest.mark.parametrize("decoding", ["graph", "beam"])
def test_users_in_pieces_get_the_same_lists_from_a_search(model, decoding, monkeypatch):
    tokens = histories(model, *USERS)
    with_graph(model, 3)
    exclude = torch.tensor([[3, 9], [30, 1], [2, 2]]) + model.config.first_item_token
    options = {"top_k": 2, "num_beams": 3, "decoding": decoding, "exclude_items": exclude}

    whole, pieces = model.recommend(tokens, **options), [model.recommend(tokens, **options, memory_budget=1)]
    monkeypatch.setattr(genrec_item_graph, "USERS_PER_TABLE", 2)
    pieces.append(model.recommend(tokens, **options))

    for piece in pieces:
        assert piece.item_tokens.tolist() == whole.item_tokens.tolist()
        assert piece.num_visited.tolist() == whole.num_visited.tolist()
    options.pop("exclude_items")
    assert model.recommend(tokens[:0], **options).item_tokens.shape == (0, 2)


@pytest.mark.parametrize("decoding", ["graph", "beam"])
def test_diverse_list_is_picked_from_what_a_search_found(model, decoding):
    tokens = histories(model, *USERS)
    with_graph(model, 9)
    options = {"top_k": 4, "num_beams": 20, "decoding": decoding}

    plain, diverse = model.recommend(tokens, **options), model.recommend(tokens, **options, diversity=1.0)

    assert diverse.item_tokens[:, 0].tolist() == plain.item_tokens[:, 0].tolist()
    assert diverse.item_tokens.tolist() != plain.item_tokens.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample_seed": 1, "decoding": "beam"}, "`sample_seed` is for `decoding='exact'`.*'beam'"),
        ({"num_propagations": 2}, "`num_propagations` is for `decoding='graph'`"),
        ({"start_seed": 2, "decoding": "beam"}, "`start_seed` is for `decoding='graph'`.*'beam'"),
        ({"num_neighbors": 6, "decoding": "graph"}, "`num_neighbors` must be at most 5, as the graph, got 6"),
        ({"item_prior": torch.ones(37), "decoding": "graph"}, "`prior_correction` and `item_prior` go together"),
    ],
)
def test_options_of_another_decoding_are_refused(model, arguments, message):
    with_graph(model, 5)
    with pytest.raises(ValueError, match=message):
        model.recommend(histories(model, *USERS), **arguments)
