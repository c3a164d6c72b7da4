import numpy as np
import pytest

from hf_genrec.evaluation.baselines import SequentialRidge, TextSimilarity


# The last two items of each user are the validation and the test target; before them is the training part.
SEQUENCES = {
    "u": ["a", "b", "c", "e", "f"],
    "v": ["a", "b", "d", "a", "f", "e"],
    "w": ["b", "d", "a", "e", "f"],
    "x": ["c", "e", "f"],
}


def written_out(ridge, regularization, decay, *, near=None):
    """The weights by the formula of the module, position by position, in the order of `ridge.item_ids`."""
    index = {item: number for number, item in enumerate(ridge.item_ids)}
    rows, targets = [], []
    for items in SEQUENCES.values():
        known = [index[item] for item in items[:-2]]
        for end in range(1, len(known)):
            row, target = np.zeros(len(index)), np.zeros(len(index))
            for age in range(end):
                row[known[end - 1 - age]] += decay**age
            target[known[end]] = 1
            rows.append(row)
            targets.append(target)
    x, y = np.array(rows), np.array(targets)
    weights = np.zeros((len(index), len(index)))
    for item in range(len(index)):
        right = x.T @ y[:, item]
        inside = np.flatnonzero(right) if near is not None else np.arange(len(index))
        system = (x.T @ x)[np.ix_(inside, inside)] + regularization * np.eye(len(inside))
        weights[inside, item] = np.linalg.solve(system, right[inside])
    return weights


def test_ridge_solves_the_regularised_least_squares_of_all_positions(make_prepared):
    ridge = SequentialRidge.fit(make_prepared(SEQUENCES), regularization=1.5, decay=0.4)

    np.testing.assert_allclose(ridge.item_weights.toarray(), written_out(ridge, 1.5, 0.4), atol=1e-6)


def test_restricted_ridge_solves_for_each_target_with_the_items_before_it(make_prepared):
    ridge = SequentialRidge.fit(make_prepared(SEQUENCES), regularization=1.5, decay=0.4, num_neighbors=5)

    np.testing.assert_allclose(ridge.item_weights.toarray(), written_out(ridge, 1.5, 0.4, near=5), atol=1e-12)


def test_targets_that_are_solved_many_at_a_time_get_the_weights_of_each_alone(make_prepared, monkeypatch):
    draw = np.random.default_rng(0)
    prepared = make_prepared({f"u{n}": [f"i{item}" for item in draw.integers(30, size=9)] for n in range(40)})
    monkeypatch.setattr("hf_genrec.evaluation.baselines.ridge._ENTRIES_AT_ONCE", 100)
    together = SequentialRidge.fit(prepared, num_neighbors=29)
    monkeypatch.setattr("hf_genrec.evaluation.baselines.ridge._FEW_NEIGHBORS", 0)
    alone = SequentialRidge.fit(prepared, num_neighbors=29)

    np.testing.assert_allclose(together.item_weights.toarray(), alone.item_weights.toarray(), atol=1e-13)


def test_a_dense_system_that_memory_would_not_hold_is_refused(make_prepared, monkeypatch):
    monkeypatch.setattr("hf_genrec.evaluation.baselines.ridge.MOST_NEIGHBORS", 4)

    assert SequentialRidge.fit(make_prepared(SEQUENCES), num_neighbors=4).item_weights.nnz
    with pytest.raises(ValueError, match="`num_neighbors` is 9, and a dense system of 6 items .* at most 4"):
        SequentialRidge.fit(make_prepared(SEQUENCES), num_neighbors=9)


def test_restriction_keeps_the_neighbours_with_most_weight_before_the_target(make_prepared):
    log = {f"u{n}": ["a", "c", "y", "z"] for n in range(3)} | {"v": ["b", "c", "y", "z"]}
    ridge = SequentialRidge.fit(make_prepared(log), regularization=2, num_neighbors=1)

    index = list(ridge.item_ids).index
    assert ridge.item_weights[index("a"), index("c")] == pytest.approx(3 / (3 + 2))
    assert ridge.item_weights.nnz == 1


def test_ridge_keeps_the_largest_weights_of_each_item(make_prepared):
    every = SequentialRidge.fit(make_prepared(SEQUENCES), regularization=1.5, num_weights=None).item_weights.toarray()
    ridge = SequentialRidge.fit(make_prepared(SEQUENCES), regularization=1.5, num_weights=2).item_weights.toarray()

    for row, kept in zip(every, ridge, strict=True):
        order = np.argsort(-np.abs(row), kind="stable")
        np.testing.assert_allclose(kept[order[:2]], row[order[:2]], atol=1e-6)
        assert not kept[order[2:]].any()


def test_ridge_scores_are_the_weights_of_the_decayed_history(make_prepared):
    ridge = SequentialRidge.fit(make_prepared(SEQUENCES), regularization=1.5, decay=0.4)
    weights, index = ridge.item_weights.toarray(), list(ridge.item_ids).index

    found = ridge.recommend(["c", "a"], top_k=6)

    expected = weights[index("a")] + 0.4 * weights[index("c")]
    np.testing.assert_allclose(found.scores, sorted(expected, reverse=True))
    assert [index(item) for item in found.item_ids] == np.argsort(-expected, kind="stable").tolist()


def test_settings_of_ridge_are_chosen_on_the_validation_split(make_prepared):
    log = {f"u{n}": ["a", "p", "z", "z"] for n in range(4)} | {f"v{n}": ["b", "q", "z", "z"] for n in range(3)}
    log |= {f"w{n}": ["a", "b", "q", "z"] for n in range(2)}

    ridge = SequentialRidge.tune(make_prepared(log), regularizations=(50.0, 1.0), decays=(1.0, 0.01))

    assert (ridge.decay, ridge.regularization) == (0.01, 50.0)


def test_both_columns_get_the_settings_that_tuning_for_them_finds(make_prepared):
    generator = np.random.default_rng(5)
    prepared = make_prepared({f"u{n}": ["abcdefgh"[i] for i in generator.integers(8, size=6)] for n in range(30)})

    both = SequentialRidge.for_columns(prepared)

    for exclude_seen, ridge in both.items():
        assert ridge.settings == SequentialRidge.tune(prepared, exclude_seen=exclude_seen).settings
    tuned = [SequentialRidge.tune(prepared, exclude_seen=exclude_seen).settings for exclude_seen in both]
    assert tuned[0] != tuned[1]


def test_bad_settings_of_ridge_are_named(make_prepared):
    prepared = make_prepared(SEQUENCES)
    with pytest.raises(ValueError, match="`regularization` must be a finite number above 0, got 0"):
        SequentialRidge.fit(prepared, regularization=0)
    with pytest.raises(ValueError, match="`decay` must be in"):
        SequentialRidge.fit(prepared, decay=1.5)
    with pytest.raises(ValueError, match="`num_neighbors` must be at least 1 or None, got 0"):
        SequentialRidge.fit(prepared, num_neighbors=0)
    with pytest.raises(ValueError, match="at least one regularization"):
        SequentialRidge.tune(prepared, decays=())
    with pytest.raises(ValueError, match="no user with two items"):
        SequentialRidge.fit(make_prepared({"u": ["a", "b", "c"], "v": ["b", "c", "a"]}))


def test_text_ranks_what_reads_like_the_history_and_knows_items_that_nobody_took(make_prepared):
    prepared = make_prepared(SEQUENCES)  # e and f are never in the training part
    vectors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0.1], [0.9, 0.1, 0], [0, 0.1, 1]])

    lists = TextSimilarity.fit(prepared, vectors).recommend([["a"], ["b"], ["c"]], top_k=1, exclude_seen=True)

    assert lists.item_ids == [["e"], ["d"], ["f"]]


def test_text_scores_are_sums_of_cosines_of_centred_vectors(make_prepared):
    vectors = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 2.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]) + 3

    found = TextSimilarity.fit(make_prepared(SEQUENCES), vectors, decay=0.5).recommend(["c", "a"], top_k=6)

    assert dict(zip(found.item_ids, found.scores, strict=True)) == {
        "a": 1.0, "b": -1.0, "c": 0.5, "d": -0.5, "e": 0.0, "f": 0.0
    }  # fmt: skip


def test_text_of_an_item_says_nothing_about_the_item_itself_where_that_is_left_out(make_prepared):
    vectors = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 2.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]) + 3

    similar = TextSimilarity.fit(make_prepared(SEQUENCES), vectors, decay=0.5, self_similarity=False)
    found = similar.recommend(["c", "a", "a"], top_k=6)

    assert dict(zip(found.item_ids, found.scores, strict=True)) == {
        "a": 0.0, "b": -1.5, "c": 0.0, "d": -0.25, "e": 0.0, "f": 0.0
    }  # fmt: skip


@pytest.mark.parametrize(("log", "is_kept"), [(["a", "d", "b"], False), (["a", "a", "a"], True)])
def test_items_speak_for_themselves_in_logs_in_which_they_come_again(make_prepared, log, is_kept):
    prepared = make_prepared({f"u{n}": [*"bcda", *log] for n in range(3)})
    vectors = np.array([[1.0, 0.1], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.1]])

    assert TextSimilarity.tune(prepared, vectors).self_similarity is is_kept


def test_decay_of_text_is_chosen_on_the_validation_split(make_prepared):
    log = {f"u{n}": ["a", "a", "b", "z", "c"] for n in range(3)}  # z reads like b and c like a
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [1.1, 0.0], [0.0, 1.1]])

    similar = TextSimilarity.tune(make_prepared(log), vectors, decays=(1.0, 0.5), exclude_seen=True)

    assert similar.decay == 0.5


def test_text_vectors_must_be_those_of_the_catalog(make_prepared):
    with pytest.raises(ValueError, match=r"a row for each of the catalog's 6 items, got shape \(5, 2\)"):
        TextSimilarity.fit(make_prepared(SEQUENCES), np.ones((5, 2)))
    with pytest.raises(ValueError, match="`decay` must be in"):
        TextSimilarity.fit(make_prepared(SEQUENCES), np.ones((6, 2)), decay=0)
