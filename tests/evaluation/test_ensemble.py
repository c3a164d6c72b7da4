import numpy as np
import pytest
import torch

from hf_genrec import Recommender, evaluate
from hf_genrec.evaluation.ensemble import fit_ensemble
from hf_genrec.evaluation.evaluate import EvaluationSettings
from hf_genrec.training.closed_form import ensemble_run, fit_item_to_item, fit_run
from invariants.model import make_model, tiny_config


NUM_ITEMS = 29
VECTORS = np.random.default_rng(1).normal(size=(NUM_ITEMS, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def circle(make_prepared):
    """A log in which every item is followed by the next one, some items by others now and then."""
    generator = np.random.default_rng(0)
    log = {}
    for user in range(58):
        items = [(user + step + int(generator.random() < 0.3)) % NUM_ITEMS for step in range(7)]
        log[f"u{user}"] = [f"i{item:02d}" for item in items]
    return make_prepared(log)


@pytest.fixture
def members(circle):
    ridge, text = fit_item_to_item(circle), fit_item_to_item(circle, method="text", embeddings=VECTORS)
    return {"ridge": ridge, "text": text}


def test_ndcg_of_the_search_is_that_of_the_evaluation(circle, members):
    members["PSID"] = make_model(tiny_config())

    model, report = fit_ensemble(members, circle, exclude_seen=True, num_candidates=7)

    settings = EvaluationSettings(split="validation", exclude_seen=True)
    found = evaluate(Recommender(model, circle.items), circle, settings, baselines={})
    assert np.mean(report["ndcg@10"]["chosen"]) == pytest.approx(found["model"]["ndcg@10"], abs=1e-6)
    allowed = found["model"]["seen_allowed"]["ndcg@10"]
    assert np.mean(report["seen_allowed"]["ndcg@10"]["chosen"]) == pytest.approx(allowed, abs=1e-6)
    assert report["scores"] == ["ridge", "text", "PSID"]


def test_what_only_disturbs_weighs_little(circle, members):
    model, report = fit_ensemble(members, circle)

    ridge, text = model.config.weights_with_seen
    assert text < ridge
    searched = {name: values[0] for name, values in report["ndcg@10"]["alone"].items()}
    assert report["ndcg@10"]["chosen"][0] >= max(searched["ridge"], report["ndcg@10"]["equal"][0])


def test_score_that_helps_gets_weight_though_it_is_weak(circle):
    """One member knows the first half of the items, the other the rest."""
    halves = {}
    for name, is_known in {"first": range(15), "rest": range(15, NUM_ITEMS)}.items():
        member = fit_item_to_item(circle)
        known = torch.isin(member.targets, torch.tensor(list(is_known)).int())
        member.weights.data.mul_(known)
        halves[name] = member

    _, report = fit_ensemble(halves, circle)

    both = report["ndcg@10"]["chosen"]
    assert min(report["weights"]) > 0
    assert all(both[half] > max(alone[half] for alone in report["ndcg@10"]["alone"].values()) for half in (0, 1))


def test_run_folder_of_an_ensemble_is_loaded_and_evaluated_like_any_other(circle, tmp_path):
    fit_run(circle, tmp_path / "ridge")
    fit_run(circle, tmp_path / "knn", method="item-knn")

    folders = {"ridge": tmp_path / "ridge", "knn": tmp_path / "knn"}
    record = ensemble_run(circle, folders, tmp_path / "both", exclude_seen=True)

    recommender = Recommender.from_pretrained(tmp_path / "both", device="cpu")
    assert evaluate(recommender, circle, baselines={})["model"]["recall@10"] > 0.5
    assert set(record["members"]) == {"ridge", "knn"}
    assert record["cpu_minutes"] >= sum(member["cpu_minutes"] for member in record["members"].values())
    assert "# A Weighted ensemble recommender" in (tmp_path / "both" / "README.md").read_text(encoding="utf-8")


def test_members_over_other_items_are_refused(circle, members):
    other = make_model(tiny_config(num_items=28))
    with pytest.raises(ValueError, match="The member odd is not about the items of"):
        fit_ensemble({"odd": other}, circle)
    members["ridge"].config.items_fingerprint = "0" * 16
    with pytest.raises(ValueError, match="The member ridge is not about the items of"):
        fit_ensemble(members, circle)
