import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from hf_genrec.cli.main import app
from hf_genrec.evaluation.systems import user_values


RANKS = {"psid": [0, -1, 2, -1, -1], "latte": [0, 0, 2, -1, 6]}
KNN = [1, -1, 0, -1, -1]


def hf_genrec(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def metrics_of(ranks):
    values = {name: float(user_values(ranks, name).mean()) for name in ("recall@10", "ndcg@10", "mrr@10")}
    return values | {"invalid_rate": 0.0, "intervals": {name: [0.0, 1.0] for name in values}}


@pytest.fixture
def runs(tmp_path):
    """Two run folders with an evaluation of 5 users and what became of each."""
    for name, ranks in RANKS.items():
        folder = tmp_path / name
        folder.mkdir()
        record = {
            "protocol": "amazon2018", "split": "test", "fingerprint": "f" * 16, "num_users": 5, "num_items": 12,
            "max_history_length": None, "max_users": None, "exclude_seen": False, "confidence": 0.9, "seed": 0,
            "model": metrics_of(ranks), "baselines": {"item_knn": metrics_of(KNN)}, "run": {"model": name},
        }  # fmt: skip
        (folder / "evaluation.json").write_text(json.dumps(record), encoding="utf-8")
        users = pd.DataFrame({"rank": ranks, "rank_item_knn": KNN}, dtype="int32")
        users.to_parquet(folder / "evaluation_users.parquet")
    return tmp_path


def test_compare_prints_systems_best_first_with_the_reference(runs):
    done = hf_genrec("compare", runs / "psid", runs / "latte", "--against", "psid")

    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines()]
    names = [line[0] for line in lines if line and line[0] in ("latte", "psid", "item-kNN")]
    assert names == ["latte", "item-kNN", "psid"]
    assert next(line for line in lines if line[:1] == ["psid"])[-2:] == ["reference", "–"]
    assert "5 users, 12 items" in done.output


def test_compare_answers_in_one_json_object(runs):
    done = hf_genrec("compare", f"PSID={runs / 'psid'}", f"Latte={runs / 'latte'}", "--json")

    (comparison,) = json.loads(done.stdout)["comparisons"]
    assert comparison["against"] == "item-kNN"
    assert [system["name"] for system in comparison["systems"]] == ["Latte", "item-kNN", "PSID"]
    expected = (user_values(RANKS["latte"], "ndcg@10") - user_values(KNN, "ndcg@10")).mean()
    assert comparison["differences"]["Latte"]["users"]["difference"] == pytest.approx(expected)


def test_compare_by_another_metric_orders_by_it(runs):
    done = hf_genrec("compare", runs / "psid", runs / "latte", "--metric", "recall@10", "--json")

    (comparison,) = json.loads(done.stdout)["comparisons"]
    assert comparison["metric"] == "recall@10"
    assert [system["values"]["recall@10"] for system in comparison["systems"]] == [0.8, 0.4, 0.4]


def test_compare_writes_markdown_and_a_plot(runs):
    pytest.importorskip("matplotlib")

    done = hf_genrec(
        "compare", runs / "psid", runs / "latte", "--output", runs / "a.md", "--plot", runs / "plots" / "a.png"
    )

    assert done.exit_code == 0, done.output
    assert (runs / "a.md").read_text(encoding="utf-8").startswith("## amazon2018, test split\n")
    assert (runs / "plots" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_compare_refuses_what_is_not_comparable_unless_grouped(runs):
    path = runs / "latte" / "evaluation.json"
    record = json.loads(path.read_text(encoding="utf-8")) | {"split": "validation"}
    path.write_text(json.dumps(record), encoding="utf-8")

    refused = hf_genrec("compare", runs / "psid", runs / "latte")
    grouped = hf_genrec("compare", runs / "psid", runs / "latte", "--grouped", "--json")

    assert refused.exit_code == 2
    assert "cannot be compared: `split` is 'test' and 'validation'" in refused.stderr
    assert "--grouped" in refused.stderr
    assert len(json.loads(grouped.stdout)["comparisons"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "a.txt"], "`--output` must end in .md or .json, got 'a.txt'"),
        (["--plot", "a.pdf"], "`--plot` must end in .png, got 'a.pdf'"),
        (["--metric", "gini@10"], "`--metric` must be recall@k, ndcg@k or mrr@k"),
    ],
)
def test_compare_refuses_wrong_words_in_one_line(runs, words, message):
    done = hf_genrec("compare", runs / "psid", *words)

    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_folder_without_an_evaluation_is_told_what_to_do(tmp_path):
    done = hf_genrec("compare", tmp_path)

    assert done.exit_code == 2
    assert "run `hf-genrec evaluate` on it first" in done.stderr
