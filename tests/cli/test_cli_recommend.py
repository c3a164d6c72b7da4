"""`hf-genrec recommend`: histories, rules, saved options."""

import shutil

import pytest
import torch
from cli_shop import SASREC, error_of, result_of, run

from hf_genrec.data.prepare import prepare
from hf_genrec.modeling.genrec_recommend_config import RecommendConfig
from hf_genrec.serving.recommender import Recommender


def test_recommend_names_titles_scores_and_unknown_ids(shop):
    found = result_of("recommend", "--model", shop / "run", "--history", "i3", "nope", "i4", "--top-k", "5")

    assert found["history"] == [{"item_id": f"i{n}", "title": f"thing number {n}"} for n in (3, 4)]
    assert found["unknown"] == ["nope"]
    expected = Recommender.from_pretrained(shop / "run").recommend(["i3", "i4"], top_k=5)
    assert [item["item_id"] for item in found["recommendations"]] == expected.item_ids
    assert [item["score"] for item in found["recommendations"]] == pytest.approx(list(expected.scores))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_rounded_as_asked(shop, dtype):
    words = ["--dtype", str(dtype).removeprefix("torch.")]

    found = result_of("recommend", "--model", shop / "run", "--history", "i3", "i4", "--top-k", 5, *words)

    expected = Recommender.from_pretrained(shop / "run", dtype=dtype).recommend(["i3", "i4"], top_k=5)
    assert [item["score"] for item in found["recommendations"]] == expected.scores


def test_server_gets_a_model_whose_weights_are_rounded_as_asked(shop, monkeypatch):
    loaded = []
    monkeypatch.setattr("hf_genrec.serving.server.app.serve", lambda load, *_, **options: loaded.append(load()))

    run("serve", shop / "run", "--dtype", "bfloat16")
    run("serve", shop / "run")

    assert [recommender.model.dtype for recommender in loaded] == [torch.bfloat16, torch.float32]


def test_server_gets_a_compiled_model_where_that_is_asked_for(shop, monkeypatch):
    compiled = []
    monkeypatch.setattr("hf_genrec.serving.server.app.serve", lambda load, *_, **options: load())
    monkeypatch.setattr(Recommender, "compile", lambda recommender: compiled.append(recommender))

    run("serve", shop / "run")
    assert compiled == []
    run("serve", shop / "run", "--compile")
    assert len(compiled) == 1


def test_options_saved_with_a_model_hold_unless_the_command_line_names_others(shop, tmp_path):
    shutil.copytree(shop / "run", tmp_path / "run")
    saved = {"num_beams": 21, "latent_aggregation": "sum", "top_k": 3}
    RecommendConfig().updated(**saved).save(tmp_path / "run")
    words = ["evaluate", tmp_path / "run", shop / "data", "--no-baselines", "--max-users", 2]

    run, other = result_of(*words)["run"], result_of(*words, "--beams", 23)["run"]
    found = result_of("recommend", "--model", tmp_path / "run", "--history", "i3")

    assert (run["num_beams"], run["latent_aggregation"]) == (21, "sum")
    assert (other["num_beams"], other["latent_aggregation"]) == (23, "sum")
    assert len(found["recommendations"]) == 3


def test_titles_and_ids_are_shown_as_they_are(tmp_path):
    titles = ["Abbey Road [vinyl]", "closing [/b] tag", "a :smile:", "[red]50% [off]"]
    items = [{"item_id": f"[i{n}]", "title": title} for n, title in enumerate(titles)]
    folder = prepare(tmp_path / "data[old]", sequences=write_sequences(tmp_path, items), items=items).folder
    result_of("train", folder, *SASREC, "--epochs", 1, "--output", tmp_path / "run")

    shown = run("recommend", "--model", tmp_path / "run", "--history", "[i0]", "[b]")

    assert shown.exit_code == 0, shown.stderr
    for word in (*titles, "[i0]", "[i3]", "[b]"):
        assert word in shown.stdout


def write_sequences(folder, items):
    ids = [item["item_id"] for item in items]
    lines = [f"u{user}\t{' '.join((ids * 2)[user % 4 : user % 4 + 4])}\n" for user in range(8)]
    (folder / "log.tsv").write_text("".join(lines), encoding="utf-8")
    return folder / "log.tsv"


def test_recommend_reads_a_file_of_histories_and_an_empty_history(shop, tmp_path):
    (tmp_path / "histories.txt").write_text("i3 i4\n\ni5\n", encoding="utf-8")

    many = result_of("recommend", "--model", shop / "run", "--histories", tmp_path / "histories.txt", "--top-k", 2)
    nobody = result_of("recommend", "--model", shop / "run", "--history", "--top-k", 2)

    assert [len(user["recommendations"]) for user in many["users"]] == [2, 2, 2]
    assert nobody["history"] == many["users"][1]["history"] == []
    assert [[item["item_id"] for item in user["recommendations"]] for user in (nobody, many["users"][1])] == [
        [item["item_id"] for item in nobody["recommendations"]]
    ] * 2


def test_ids_that_begin_with_dashes_are_ids_and_mistyped_options_are_not(shop):
    words = ["recommend", "--model", shop / "run", "--history", "--7zmmkVg", "i3", "-x"]

    found = result_of(*words, "--exclude", "--9dashes", "i5", "--top-k", 2)

    assert found["unknown"] == ["--7zmmkVg", "-x"]
    assert [item["item_id"] for item in found["history"]] == ["i3"]
    assert len(found["recommendations"]) == 2
    assert "--top-k" in error_of(*words, "--topk", 2)


def test_recommend_leaves_out_seen_items(shop):
    table = run("recommend", "--model", shop / "run", "--history", "i3", "i4", "--top-k", "21")

    assert table.exit_code == 0, table.stderr
    lines = [line for line in table.stdout.splitlines() if "thing number" in line]
    assert len(lines) == 2 + 21
    assert sum("thing number 3 " in line for line in lines) == 1
    both = ["recommend", "--model", shop / "run", "--history", "i3", "i4", "--top-k", "23"]
    again = result_of(*both, "--include-seen")["recommendations"]
    assert {"i3", "i4"} <= {item["item_id"] for item in again}


def test_recommend_keeps_to_ids_that_are_excluded_or_allowed(shop):
    words = ["recommend", "--model", shop / "run", "--history", "i3", "i4", "--top-k", "9"]

    found = result_of(*words, "--exclude", "i5", "i7", "--allow", "i5", "i6", "--allow", "i9", "--exclude", "i8")

    assert sorted(item["item_id"] for item in found["recommendations"]) == ["i6", "i9"]
    assert "`--allow` holds no id of the catalog: 'nope'" in error_of(*words, "--allow", "nope")
    assert len(result_of(*words, "--exclude", "nope")["recommendations"]) == 9
    assert "'--allow' requires an argument" in error_of(*words, "--allow")


def test_recommend_draws_and_varies_its_lists(shop):
    words = ["recommend", "--model", shop / "run", "--history", "i3", "i4", "--top-k", "9"]
    plain, again, first, other, varied = (
        [item["item_id"] for item in result_of(*words, *options)["recommendations"]]
        for options in ([], ["--sample-seed", 0], ["--sample-seed", 0], ["--sample-seed", 1], ["--diversity", 1])
    )

    recommender = Recommender.from_pretrained(shop / "run")
    for found, options in ((first, {"sample_seed": 0}), (varied, {"diversity": 1.0})):
        assert recommender.recommend(["i3", "i4"], top_k=9, **options).item_ids == found
    assert again == first
    assert plain not in (first, varied)
    assert first != other
    assert "cannot be combined" in error_of(*words, "--sample-seed", "0", "--diversity", "0.5")


def test_history_is_continued_under_rules(sasrec):
    data, run_folder = sasrec
    asked = ["recommend", "--model", run_folder, "--history", "i3", "i4", "--top-k", "3"]

    first = result_of(*asked)["recommendations"]
    second = result_of(*asked, "--exclude", "i5", "--diversity", "0.3")["recommendations"]

    assert first[0]["item_id"] == "i5"
    assert len(second) == 3
    assert "i5" not in [entry["item_id"] for entry in second]
