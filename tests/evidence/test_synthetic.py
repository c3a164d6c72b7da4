"""The invented world: its pattern, its trees, the truth about next items, and the script on smoke sizes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_genrec.evaluation.tree import num_neighbours, reversal_rates
from synthetic import make_sibling_world, pattern_report
from tree_distances import tree_distance


@pytest.fixture(scope="module")
def world():
    return make_sibling_world(num_triples=6, num_fillers=5, seed=3)


def test_groups_like_the_ends_of_a_triple_oppositely_and_its_middle_alike(world):
    first, middle, last = world.probabilities[:, world.triples].transpose(2, 0, 1)

    np.testing.assert_allclose(first[0], 0.05)  # half of the interactions, six triples, six tenths
    np.testing.assert_array_equal(first[0], last[1])
    np.testing.assert_array_equal(first[1], last[0])
    np.testing.assert_array_equal(middle[0], middle[1])
    np.testing.assert_allclose(world.probabilities.sum(axis=1), 1.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 99))
def test_both_trees_have_the_same_leaves_and_triples_are_siblings_in_one_only(thirds, num_fillers, seed):
    world = make_sibling_world(num_triples=3 * thirds, num_fillers=num_fillers, seed=seed)
    siblings, aligned = world.codes["siblings"], world.codes["aligned"]

    assert {*map(tuple, siblings)} == {*map(tuple, aligned)}
    assert len({*map(tuple, siblings)}) == world.num_items
    assert siblings.max() < world.codebook_size
    first, middle, last = world.triples.T
    for a, b in ((first, middle), (middle, last), (first, last)):
        assert (tree_distance(siblings[a], siblings[b]) == 2).all()
        assert (tree_distance(aligned[a], aligned[b]) > 2).all()
    assert (num_neighbours(siblings)[2][world.triples] == 2).all()  # no filler stands between them


def test_siblings_of_the_aligned_tree_are_liked_alike(world):
    codes = world.codes["aligned"]
    items = world.triples.ravel()
    is_sibling = tree_distance(codes[items][:, None], codes[items]) == 2

    for group in (0, 1):
        liking = world.probabilities[group, items]
        assert is_sibling.sum() == 2 * len(items)
        np.testing.assert_array_equal(
            np.where(is_sibling, liking, liking[:, None]), np.tile(liking[:, None], len(items))
        )


def test_posterior_is_that_of_a_naive_product(world):
    histories = world.draw_sequences(num_users=7, length=3, seed=5)

    for history, posterior in zip(histories, world.group_probabilities(histories), strict=True):
        products = [np.prod([world.probabilities[group, item] for item in history]) for group in (0, 1)]
        np.testing.assert_allclose(posterior, np.array(products) / sum(products))


def test_drawn_items_follow_the_probabilities_of_the_group(world):
    sequences = world.draw_sequences(num_users=2001, length=50, seed=1)

    for group, users in ((0, sequences[:1001]), (1, sequences[1001:])):
        counts = np.bincount(users.ravel(), minlength=world.num_items) / users.size
        np.testing.assert_allclose(counts, world.probabilities[group], atol=0.004)
        assert (counts[world.probabilities[group] == 0] == 0).all()
    np.testing.assert_array_equal(sequences, world.draw_sequences(num_users=2001, length=50, seed=1))


def test_truth_reverses_half_of_the_user_pairs(world):
    histories = world.draw_sequences(num_users=400, length=9, seed=2)

    truth = world.next_item_probabilities(histories)

    assert reversal_rates(truth, world.triples[:, [0, 2]]) == pytest.approx(0.5, abs=0.01)


def test_a_model_that_knows_no_group_has_half_of_the_ends_wrong(world):
    histories = world.draw_sequences(num_users=60, length=9, seed=2)
    blind = np.tile(np.log(world.probabilities[0] + 1e-9), (60, 1))  # everybody is of group A

    report = pattern_report(blind, world, histories)

    assert (report.order, report.ends) == (0.0, 0.0)  # of group B, which is the worse
    assert report.divergence > 0.5


def test_ties_are_no_order(world):
    histories = world.draw_sequences(num_users=60, length=9, seed=2)

    report = pattern_report(np.full((60, world.num_items), -np.log(world.num_items)), world, histories)

    assert (report.order, report.ends) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_triples": 4}, "`num_triples` must be a multiple of 3"),
        ({"num_fillers": 0}, "`num_fillers` must be at least 1"),
        ({"liking": (0.3, 0.3, 0.1)}, "`liking` must be three falling"),
        ({"triple_share": 1.0}, "`triple_share` must lie in"),
    ],
)
def test_impossible_worlds_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_sibling_world(**changes)


def test_users_whose_group_nobody_knows_are_no_evidence(world):
    histories = np.tile(world.triples[0, 1], (3, 2))  # the middle of a triple tells nothing

    with pytest.raises(ValueError, match="no user of group A"):
        pattern_report(np.zeros((3, world.num_items)), world, histories)


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("synthetic_siblings")


@pytest.fixture(scope="module")
def experiment(script, tmp_path_factory):
    """A function that runs the script at smoke sizes and gives its record."""
    folder = tmp_path_factory.mktemp("siblings")

    def start(*words, name="record.json"):
        sizes = ["--widths", 4, "--seeds", 1, "--triples", 3, "--users", 4, "--held-out", 40, "--every", 2]
        script.main([str(word) for word in ["--output", folder / name, *sizes, "--steps", 3, *words]])
        return json.loads((folder / name).read_text(encoding="utf-8"))

    return start


def test_experiment_records_every_system_and_skips_what_is_done(experiment):
    record = experiment("--systems", "TIGER/PSID", "SASRec")
    again = experiment()

    assert [run["system"] for run in record["runs"]] == ["TIGER/PSID", "SASRec"]
    assert again["runs"][:2] == record["runs"]
    assert len({run["system"] for run in again["runs"]}) == 5
    for run in again["runs"]:
        assert [entry["step"] for entry in run["measurements"]] == [0, 2]
        assert run["true_reversal_rate"] == pytest.approx(0.5, abs=0.05)
        assert run["learned_step"] is None


def test_experiment_of_other_settings_needs_another_file(experiment):
    experiment("--systems", "SASRec", name="other.json")

    with pytest.raises(SystemExit, match="choose another file"):
        experiment("--systems", "SASRec", "--steps", 5, name="other.json")


def test_pattern_is_learnt_where_it_stays(script):
    def steps_of(orders):
        return script.learning_steps([{"step": 10 * place, "order": order} for place, order in enumerate(orders)])

    assert script.STAYS == 8
    assert steps_of([0.1, 0.96, 0.9, 0.95, *[1.0] * 7]) == {"first_learned_step": 10, "learned_step": 30}
    assert steps_of([0.1, 0.96, 0.9, 0.95, *[1.0] * 6]) == {"first_learned_step": 10, "learned_step": None}
    assert steps_of([1.0] * 8) == {"first_learned_step": 0, "learned_step": 0}
    assert steps_of([0.9]) == {"first_learned_step": None, "learned_step": None}


def test_committed_runs_have_the_steps_of_their_measurements(script, repository):
    record = json.loads(
        (repository / "scripts/evidence/records" / "synthetic_siblings.json").read_text(encoding="utf-8")
    )

    for run in record["runs"]:
        assert script.learning_steps(run["measurements"]).items() <= run.items()


def test_sasrec_learns_the_pattern_within_a_hundred_steps(experiment):
    words = ["--systems", "SASRec", "--widths", 16, "--users", 32, "--every", 10, "--steps", 100, "--triples", 3]

    (run,) = experiment(*words, name="long.json")["runs"]

    assert run["learned_step"] is not None
    assert run["correlation"] < -0.9
    assert run["reversal_rate"] == pytest.approx(run["true_reversal_rate"], abs=0.05)
