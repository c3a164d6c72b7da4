import numpy as np
import pytest

from hf_genrec import Recommender, evaluate
from hf_genrec.evaluation.baselines import ItemKNN, SequentialRidge, TextSimilarity
from hf_genrec.training.closed_form import fit_item_to_item, fit_run


@pytest.fixture
def circle(make_prepared):
    """A log in which every item is followed by the next one, some items by others now and then."""
    generator = np.random.default_rng(0)
    log = {}
    for user in range(40):
        items = [(user + step + int(generator.random() < 0.2)) % 11 for step in range(7)]
        log[f"u{user}"] = [f"i{item:02d}" for item in items]
    return make_prepared(log)


HISTORIES = [["i03", "i04"], ["i10"], ["i07", "i01", "i02"]]
VECTORS = np.random.default_rng(1).normal(size=(11, 5)).astype(np.float32)


@pytest.mark.parametrize(
    ("method", "baseline", "embeddings"),
    [("ridge", SequentialRidge, None), ("item-knn", ItemKNN, None), ("text", TextSimilarity, VECTORS)],
)
def test_model_ranks_as_the_baseline_of_its_name(circle, method, baseline, embeddings):
    model = fit_item_to_item(circle, method=method, embeddings=embeddings)
    tuned = baseline.tune(circle) if embeddings is None else baseline.tune(circle, embeddings)

    lists = Recommender(model, circle.items).recommend(HISTORIES, top_k=6, exclude_seen=False).item_ids

    assert lists == tuned.recommend(HISTORIES, top_k=6).item_ids
    assert model.config.decay == tuned.decay


def test_scores_are_probabilities_under_which_the_targets_are_likely(circle):
    model = fit_item_to_item(circle)
    recommender = Recommender(model, circle.items)
    rows = circle.split("validation")
    targets = [circle.item_ids.index(target) for target in rows["target"]]

    def likelihood():
        return recommender.score_items(list(rows["history"]))[np.arange(len(targets)), targets].mean()

    best = likelihood()
    for factor in (0.7, 2.0):
        model.weights.data.mul_(factor)
        assert likelihood() < best


def test_run_folder_is_loaded_evaluated_and_says_what_it_is(circle, tmp_path):
    record = fit_run(circle, tmp_path / "run", command="hf-genrec fit")
    recommender = Recommender.from_pretrained(tmp_path / "run", device="cpu")

    found = evaluate(recommender, circle, baselines={})

    assert recommender.recommend(["i03", "i04"], top_k=1).item_ids == ["i05"]
    assert found["model"]["recall@1"] > 0.5
    assert record["settings"]["training"] == {"method": "ridge", "exclude_seen": False}
    assert "# A Sequential ridge recommender" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")


def test_methods_that_do_not_exist_or_lack_vectors_are_named(circle):
    with pytest.raises(ValueError, match="`method` must be one of ridge, item-knn, text, got 'svd'"):
        fit_item_to_item(circle, method="svd")
    with pytest.raises(ValueError, match="`embeddings` go with `method='text'`"):
        fit_item_to_item(circle, method="text")


@pytest.mark.parametrize(("items", "is_left_out"), [("abcdefg", True), ("abababab", False)])
def test_training_decides_on_seen_items_by_the_repeats_of_the_log(make_prepared, tmp_path, items, is_left_out):
    record = fit_run(make_prepared({"u": list(items), "v": list(items)}), tmp_path / "run")

    assert record["settings"]["training"]["exclude_seen"] is is_left_out  # settings are chosen for what is served
    assert Recommender.from_pretrained(tmp_path / "run", device="cpu").config.exclude_seen is is_left_out
