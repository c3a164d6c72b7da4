import numpy as np
import pytest

from hf_genrec.evaluation.baselines import CatalogRanker, ItemKNN, Popularity, SequentialRidge
from hf_genrec.evaluation.baselines.base import Tuning
from hf_genrec.evaluation.metrics import ndcg_at_k, ranks_of_targets, recall_at_k


# The last two items of each user are the validation and the test target; before them is the training part:
# a 3 times, b twice, c and d once, e and f never.
SEQUENCES = {
    "u": ["a", "b", "e", "f"],
    "v": ["a", "b", "f", "e"],
    "w": ["d", "a", "e", "f"],
    "x": ["c", "e", "f"],
}


@pytest.fixture(scope="module")
def prepared(make_prepared):
    return make_prepared(SEQUENCES)


def test_popularity_counts_the_training_part_only(prepared):
    recommendations = Popularity.fit(prepared).recommend([["c"], []], top_k=4)

    assert recommendations.item_ids == [["a", "b", "c", "d"]] * 2
    np.testing.assert_allclose(recommendations.scores, [[3 / 7, 2 / 7, 1 / 7, 1 / 7]] * 2)


def test_equal_counts_keep_the_order_of_the_catalog(prepared):
    assert Popularity.fit(prepared).recommend(["a"], top_k=6).item_ids == ["a", "b", "c", "d", "e", "f"]


def test_similarity_is_the_number_of_common_users_over_a_power_of_the_counts(prepared):
    recommendations = ItemKNN.fit(prepared, alpha=0.5, decay=0.5).recommend([["a"], ["b"], ["d", "b"]], top_k=2)

    assert recommendations.item_ids == [["b", "d"], ["a", "b"], ["a", "b"]]
    b, d = 2 / (3 * 2) ** 0.5, 1 / (3 * 1) ** 0.5
    np.testing.assert_allclose(recommendations.scores, [[b, d], [b, 0], [b + 0.5 * d, 0]])


def test_decay_decides_between_an_early_and_a_late_item(make_prepared):
    log = {"u": ["a", "p", "z", "z"], "v": ["a", "p", "z", "z"], "w": ["b", "q", "z", "z"], "x": ["b", "z", "z"]}
    prepared = make_prepared(log)

    early, late = (ItemKNN.fit(prepared, alpha=0, decay=decay).recommend(["a", "b"], top_k=1) for decay in (1, 0.4))

    assert early.item_ids == ["p"]
    assert late.item_ids == ["q"]


def test_items_without_similarity_follow_in_order_of_popularity(prepared):
    recommendations = ItemKNN.fit(prepared).recommend([["b"], ["c"], []], top_k=6)

    assert recommendations.item_ids[0] == ["a", "b", "c", "d", "e", "f"]
    assert recommendations.item_ids[1] == recommendations.item_ids[2] == ["a", "b", "c", "d", "e", "f"]


def test_number_of_neighbours_cuts_the_similarities(prepared):
    recommendations = ItemKNN.fit(prepared, num_neighbors=1).recommend([["a"]], top_k=2)

    assert recommendations.item_ids == [["b", "a"]]
    assert recommendations.scores[0][1] == 0


@pytest.mark.parametrize("baseline", [Popularity, ItemKNN])
def test_seen_items_are_left_out_on_demand(prepared, baseline):
    recommendations = baseline.fit(prepared).recommend([["a", "c", "a"], []], top_k=5, exclude_seen=True)

    assert recommendations.item_ids == [["b", "d", "e", "f"], ["a", "b", "c", "d", "e"]]
    assert [len(scores) for scores in recommendations.scores] == [4, 5]


@pytest.mark.parametrize("baseline", [Popularity, ItemKNN])
def test_unknown_items_are_ignored_counted_and_logged_once(prepared, baseline, caplog):
    fitted = baseline.fit(prepared)

    recommendations = fitted.recommend([["b", "rock"], ["rock", "stone"]], top_k=3)

    assert recommendations.num_unknown == 3
    assert recommendations.item_ids[1] == ["a", "b", "c"]
    assert [record.getMessage() for record in caplog.records] == [
        "3 history entries are no items of the catalog and were ignored."
    ]


@pytest.mark.parametrize("baseline", [Popularity, ItemKNN])
def test_batch_and_single_history_give_the_same_list(prepared, baseline, monkeypatch):
    fitted = baseline.fit(prepared)
    histories = [["a"], ["d", "b"], [], ["c", "a", "b"], ["b"]]
    batch = fitted.recommend(histories, top_k=4)

    monkeypatch.setattr("hf_genrec.evaluation.baselines.sparse._USERS_AT_ONCE", 2)

    assert fitted.recommend(histories, top_k=4) == batch
    assert fitted.recommend(histories[1], top_k=4).item_ids == batch.item_ids[1]


def test_long_histories_still_mark_every_item_as_seen(prepared):
    history = ["a"] + ["b"] * 2000

    assert "a" not in ItemKNN.fit(prepared, decay=0.1).recommend(history, top_k=6, exclude_seen=True).item_ids


def test_knn_knows_who_likes_what_in_a_checker_board(make_prepared):
    # Even users take even items and odd users odd ones; each user's own item is withheld, so it is the answer.
    items = [f"i{number:02d}" for number in range(10)]
    log = {}
    for user, own in enumerate(items):
        others = [item for number, item in enumerate(items) if number % 2 == user % 2 and item != own]
        log[own] = [*others, own, own]

    prepared = make_prepared(log)
    recommendations = ItemKNN.fit(prepared).recommend(
        list(prepared.split("validation")["history"]), top_k=1, exclude_seen=True
    )

    assert recommendations.item_ids == [[own] for own in items]


def test_tuning_picks_the_decay_that_the_validation_split_asks_for(make_prepared):
    log = {f"u{n}": ["a", "p", "z", "z"] for n in range(4)} | {f"v{n}": ["b", "q", "z", "z"] for n in range(3)}
    log |= {f"w{n}": ["a", "b", "q", "z"] for n in range(2)}

    knn = ItemKNN.tune(make_prepared(log), alphas=(0.0,), decays=(1.0, 0.01))

    assert (knn.alpha, knn.decay) == (0.0, 0.01)


def test_few_settings_are_tried_on_a_large_catalog(prepared, monkeypatch):
    tried = []
    monkeypatch.setattr(Tuning, "consider", lambda self, knn, columns=None: tried.append((knn.alpha, knn.decay)))

    ItemKNN.for_columns(prepared)
    monkeypatch.setattr("hf_genrec.evaluation.baselines.item_knn._FEW_TRIED", 5)
    ItemKNN.for_columns(prepared)

    assert len(tried[:-6]) == 25
    assert set(tried[-6:]) == {(alpha, decay) for alpha in (0.1, 0.3, 0.5) for decay in (0.35, 0.7)}


def test_bad_arguments_are_named(prepared):
    with pytest.raises(ValueError, match="`top_k` must be at least 1, got 0"):
        Popularity.fit(prepared).recommend(["a"], top_k=0)
    with pytest.raises(ValueError, match="alpha"):
        ItemKNN.fit(prepared, alpha=-0.1)
    with pytest.raises(ValueError, match="decay"):
        ItemKNN.fit(prepared, decay=0)
    with pytest.raises(ValueError, match="num_neighbors"):
        ItemKNN.fit(prepared, num_neighbors=0)
    with pytest.raises(ValueError, match="at least one alpha"):
        ItemKNN.tune(prepared, alphas=())
    with pytest.raises(TypeError, match="a mixture of both"):
        Popularity.fit(prepared).recommend(["a", ["b"]])
    with pytest.raises(TypeError, match="got 'abc' of type str"):
        Popularity.fit(prepared).recommend("abc")


@pytest.mark.slow
def test_item_knn_reaches_its_known_floor_on_beauty(shared_data, tmp_path):
    from hf_genrec.data.prepare import prepare

    folder = shared_data / "amazon2014_beauty"
    prepared = prepare(
        tmp_path / "beauty",
        sequences=folder / "sequences.tsv",
        items=folder / "items.jsonl",
        protocol="amazon2014",
    )
    knn = ItemKNN.fit(prepared)

    for split, ndcg, recall in (("test", 0.0379, 0.0650), ("validation", 0.0462, 0.0794)):
        rows = prepared.split(split)
        ranks = ranks_of_targets(knn.recommend(list(rows["history"]), top_k=10).item_ids, list(rows["target"]))
        assert ndcg_at_k(ranks, k=10) == pytest.approx(ndcg, abs=1e-4)
        assert recall_at_k(ranks, k=10) == pytest.approx(recall, abs=1e-4)


@pytest.mark.parametrize("baseline", [Popularity, ItemKNN])
def test_target_ranks_are_those_of_the_whole_lists(prepared, baseline):
    fitted = baseline.fit(prepared)
    histories, targets = [["a"], ["d", "b"], [], ["c", "a", "b"], ["b"]], ["d", "e", "a", "a", "rock"]

    for exclude_seen, ranks in enumerate(fitted.target_ranks(histories, targets)):
        lists = fitted.recommend(histories, top_k=6, exclude_seen=bool(exclude_seen)).item_ids
        assert ranks.tolist() == ranks_of_targets(lists, targets).tolist()


def test_neighbours_do_not_depend_on_the_blocks_in_which_they_are_counted(prepared, monkeypatch):
    whole = [ItemKNN.fit(prepared, num_neighbors=number).similarity.toarray() for number in (None, 1)]

    monkeypatch.setattr("hf_genrec.evaluation.baselines.item_knn._BLOCK_PAIRS", 3)

    for number, expected in zip((None, 1), whole, strict=True):
        np.testing.assert_array_equal(ItemKNN.fit(prepared, num_neighbors=number).similarity.toarray(), expected)


def test_where_there_are_too_many_pairs_the_most_similar_items_are_kept(prepared, monkeypatch):
    monkeypatch.setattr("hf_genrec.evaluation.baselines.item_knn.MAX_PAIRS", 5)
    monkeypatch.setattr("hf_genrec.evaluation.baselines.item_knn.NUM_NEIGHBORS", 1)

    knn = ItemKNN.fit(prepared)

    assert knn.settings == {"alpha": 0.3, "decay": 0.35, "num_neighbors": 1}
    assert np.diff(knn.similarity.indptr).max() == 1


@pytest.mark.parametrize("baseline", [Popularity, ItemKNN, SequentialRidge])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_lists_and_ranks_from_sparse_scores_are_those_of_the_whole_matrix(make_prepared, baseline, exclude_seen):
    draw = np.random.default_rng(5)
    log = {f"u{user}": [f"i{item}" for item in draw.integers(30, size=6)] for user in range(50)}
    fitted = baseline.fit(make_prepared(log))
    num_items = len(fitted.item_ids)
    histories = [*list(log.values())[:20], [], list(fitted.item_ids)]
    weights, own = fitted._weights(histories), draw.integers(num_items, size=len(histories))

    for top_k in (1, 7, num_items):
        found = fitted._lists(weights, top_k, exclude_seen)
        whole = CatalogRanker._lists(fitted, weights, top_k, exclude_seen)
        for (items, scores), (expected, expected_scores) in zip(found, whole, strict=True):
            assert items.tolist() == expected.tolist()
            if baseline is not Popularity:
                assert scores.tolist() == expected_scores.tolist()
    for one, other in zip(fitted._before(weights, own), CatalogRanker._before(fitted, weights, own), strict=True):
        assert one.tolist() == other.tolist()
    if baseline is SequentialRidge:
        assert (fitted.item_weights.data < 0).any()
