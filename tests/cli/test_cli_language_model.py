"""Verbs of the command line on a recommender around a language model."""

import json

import pytest
from typer.testing import CliRunner

from hf_genrec import Recommender, SemanticIds, save_recommender
from hf_genrec.cli.main import app
from hf_genrec.modeling.configuration_ensemble import EnsembleConfig
from invariants.model import random_codes
from tiny_llms import tiny_recommender


ITEM_IDS = [f"i{number:02d}" for number in range(29)]


def hf_genrec(*words):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def data(make_prepared):
    histories = {f"u{user}": [ITEM_IDS[(5 * user + step * step) % 29] for step in range(7)] for user in range(11)}
    return make_prepared(histories)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    ids = SemanticIds(tuple(ITEM_IDS), random_codes().numpy(), 5, "keep")
    return save_recommender(tmp_path_factory.mktemp("llm") / "run", tiny_recommender(), ids, data.items)


def test_evaluate_writes_a_record_without_invalid_items_and_a_card(run, data):
    hf_genrec("evaluate", run, data.folder, "--json", "--device", "cpu")

    record = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert record["model"]["invalid_rate"] == 0
    assert record["num_users"] == 11
    assert f"{record['model']['ndcg@10']:.4f}" in (run / "README.md").read_text(encoding="utf-8")


def test_recommend_answers_with_items(run):
    answer = json.loads(
        hf_genrec("recommend", "--model", run, "--history", "i03", "i07", "--top-k", "3", "--device", "cpu", "--json")
    )

    expected = Recommender.from_pretrained(run, device="cpu").recommend(["i03", "i07"], top_k=3)
    assert [entry["item_id"] for entry in answer["recommendations"]] == expected.item_ids


def test_push_lists_what_it_would_send(run):
    plan = json.loads(hf_genrec("push", run, "--repo", "me/llm", "--dry-run", "--json"))

    assert "recommender.json" in str(plan)


def test_language_model_has_no_onnx_graph_and_the_refusal_names_it(run, tmp_path):
    refused = CliRunner().invoke(app, ["export", str(run), "--to", "onnx", "--output", str(tmp_path / "graph")])

    assert refused.exit_code == 2
    assert "no ONNX graph for CausalLMForItemGeneration" in refused.stderr
    assert not (tmp_path / "graph").exists()


def test_language_model_cannot_be_a_member_of_an_ensemble():
    config = tiny_recommender().config

    with pytest.raises(ValueError, match="must be configs of latte, .*, got 'causal_lm'"):
        EnsembleConfig(num_items=config.num_items, members=[config.to_dict()] * 2, weights=[1.0, 1.0])
