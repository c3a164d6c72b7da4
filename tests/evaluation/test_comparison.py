import json

import numpy as np
import pandas as pd
import pytest

from hf_genrec.evaluation.compare import (
    compare_evaluations,
    comparison_page,
    comparison_tables,
    difference_of,
    write_comparisons,
)
from hf_genrec.evaluation.plots import plot_comparisons
from hf_genrec.evaluation.systems import (
    StoredEvaluation,
    System,
    baseline_systems,
    load_evaluation,
    merge_baselines,
    model_systems,
    seedless_key,
    user_values,
)


METRICS = ("recall@5", "recall@10", "ndcg@10", "mrr@10")
RANKS = {  # of 5 users; -1 is no hit
    "psid": [0, -1, 2, -1, -1],
    "latte": [0, 0, 2, -1, 6],
    "popularity": [-1, -1, 9, -1, -1],
    "item_knn": [1, -1, 0, -1, -1],
}


def metrics_of(ranks):
    values = {name: float(user_values(ranks, name).mean()) for name in METRICS}
    return values | {"invalid_rate": 0.0, "intervals": {name: [value / 2, 1.0] for name, value in values.items()}}


def make_evaluation(system="psid", *, name=None, ranks=None, seed=None, run=None, users=True, **fields):
    """A record of one model; without settings of a training unless `run` brings them."""
    own = RANKS[system] if ranks is None else ranks
    record = {
        "protocol": "amazon2018",
        "split": "test",
        "fingerprint": "f" * 16,
        "num_users": 5,
        "num_items": 12,
        "max_history_length": None,
        "max_users": None,
        "exclude_seen": False,
        "confidence": 0.9,
        "seed": 0,
        "top_k": 20,
        "model": metrics_of(own),
        "baselines": {key: metrics_of(RANKS[key]) for key in ("popularity", "item_knn")},
        "run": {"model": f"runs/{system}", "seed": seed} | (run or {}),
    } | fields
    columns = {"rank": own, "num_train": [3, 1, 4, 1, 5], "history_length": [2, 7, 1, 8, 2]}
    columns |= {f"rank_{key}": RANKS[key] for key in ("popularity", "item_knn")}
    frame = pd.DataFrame(columns, dtype=np.int32) if users else None
    return StoredEvaluation(name, f"{name or system}_{seed}.json", record, frame)


def write(folder, evaluation, *, stem="evaluation"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps(evaluation.record), encoding="utf-8")
    if evaluation.users is not None:
        evaluation.users.to_parquet(folder / f"{stem}_users.parquet")
    return folder


def compared(*evaluations, **options):
    (comparison,) = compare_evaluations(list(evaluations), num_resamples=99, **options)
    return comparison


def table_of(comparison, title):
    (table,) = [table for table in comparison_tables(comparison) if table.title.startswith(title)]
    return table


def test_systems_stand_by_falling_metric_with_each_baseline_once():
    comparison = compared(make_evaluation("psid"), make_evaluation("latte"))

    assert [system.name for system in comparison.systems] == ["latte", "item-kNN", "psid", "Popularity"]
    assert [system.is_baseline for system in comparison.systems] == [False, True, False, True]


def test_difference_is_paired_user_by_user_against_the_best_baseline():
    comparison = compared(make_evaluation("psid"), make_evaluation("latte"))

    found = comparison.differences["latte"]
    expected = (user_values(RANKS["latte"], "ndcg@10") - user_values(RANKS["item_knn"], "ndcg@10")).mean()
    assert comparison.against == "item-kNN"
    assert "item-kNN" not in comparison.differences
    assert found.difference == pytest.approx(expected)
    assert found.users.difference == pytest.approx(expected)
    assert found.users.num_pairs == 5
    assert found.seeds is None


@pytest.mark.parametrize(("word", "name"), [("psid", "psid"), ("Popularity", "Popularity"), ("item_knn", "item-kNN")])
def test_reference_can_be_any_system_of_the_table(word, name):
    assert compared(make_evaluation("psid"), make_evaluation("latte"), against=word).against == name


def test_without_results_of_baselines_the_first_evaluation_is_the_reference():
    evaluations = [make_evaluation(system, baselines={}) for system in ("psid", "latte")]

    assert compared(*evaluations).against == "psid"


def test_without_results_per_user_there_is_a_difference_but_no_interval():
    comparison = compared(make_evaluation("psid", users=False), make_evaluation("latte"), against="latte")

    found = comparison.differences["psid"]
    assert found.difference < 0
    assert (found.users, found.adjusted_p_value) == (None, None)
    assert table_of(comparison, "amazon2018").rows[-2][-2:] == [f"{found.difference:+.4f}", "–"]
    assert "without results per user: psid" in comparison_page([comparison])


def test_p_values_are_corrected_for_the_number_of_comparisons():
    comparison = compared(make_evaluation("psid"), make_evaluation("latte"), against="popularity")

    p_values = {name: found.users.p_value for name, found in comparison.differences.items()}
    assert p_values["latte"] == 0.125  # four users differ, all for the better: 2 of 16
    assert comparison.differences["latte"].adjusted_p_value == 0.375


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("protocol", "custom"),
        ("split", "validation"),
        ("fingerprint", "0" * 16),
        ("num_users", 7),
        ("max_history_length", 3),
        ("exclude_seen", True),
    ],
)
def test_records_that_are_not_comparable_are_refused_by_what_differs(field, value):
    evaluations = [make_evaluation("psid"), make_evaluation("latte", **{field: value})]

    with pytest.raises(ValueError, match=f"cannot be compared: `{field}` is .* and {value!r}"):
        compare_evaluations(evaluations)


def test_grouped_records_make_a_comparison_for_each_group():
    evaluations = [make_evaluation("psid"), make_evaluation("latte", split="validation")]

    comparisons = compare_evaluations(evaluations, grouped=True, num_resamples=9)

    assert [comparison.conditions["split"] for comparison in comparisons] == ["test", "validation"]


def test_samples_of_other_seeds_are_other_users():
    evaluations = [make_evaluation("psid", max_users=5), make_evaluation("latte", max_users=5, seed=1)]
    evaluations[1].record["seed"] = 1

    with pytest.raises(ValueError, match="`seed` is 0 and 1"):
        compare_evaluations(evaluations)


def test_users_in_another_order_are_refused():
    other = make_evaluation("latte")
    other.users["num_train"] = [1, 3, 4, 1, 5]

    with pytest.raises(ValueError, match="differ in `num_train`"):
        compare_evaluations([make_evaluation("psid"), other])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "coverage@10"}, "`metric` must be recall@k, ndcg@k or mrr@k"),
        ({"metric": "ndcg@3"}, "`metric` ndcg@3 is not in the records of psid, Popularity, item-kNN"),
        ({"against": "SASRec"}, "`against` names no system of the table, got 'SASRec'; there are .*psid"),
    ],
)
def test_unknown_metric_or_reference_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compare_evaluations([make_evaluation("psid")], **options)


def test_nothing_or_the_same_twice_is_refused():
    with pytest.raises(ValueError, match="at least one evaluation"):
        compare_evaluations([])
    with pytest.raises(ValueError, match=r"may be given once; given more often: psid_None\.json"):
        compare_evaluations([make_evaluation("psid"), make_evaluation("psid")])


def seeds_of(name, *, shift):
    ranks = [[0, -1, 2, -1, 4], [0, 5, 2, -1, -1], [1, -1, -1, 3, 4]]
    shifted = [[rank if rank < 0 else rank + shift for rank in own] for own in ranks]
    return [make_evaluation(name=name, ranks=own, seed=seed) for seed, own in enumerate(shifted)]


def test_runs_of_one_name_are_one_row_with_mean_and_deviation():
    evaluations = seeds_of("PSID", shift=1)

    comparison = compared(*evaluations)

    (system,) = [system for system in comparison.systems if not system.is_baseline]
    values = [evaluation.record["model"]["ndcg@10"] for evaluation in evaluations]
    low, high = system.interval("ndcg@10")
    assert system.values["ndcg@10"] == pytest.approx(np.mean(values))
    assert system.deviations["ndcg@10"] == pytest.approx(np.std(values, ddof=1))
    assert low < system.values["ndcg@10"] < high
    assert table_of(comparison, "amazon2018").rows[0][:2] == ["system", "runs"]


def test_systems_with_the_same_seeds_are_compared_over_seeds_too():
    comparison = compared(*seeds_of("PSID", shift=1), *seeds_of("Latte", shift=0), against="PSID")

    found = comparison.differences["Latte"]
    assert found.seeds.num_pairs == 3
    assert found.seeds.difference == pytest.approx(found.users.difference)
    assert comparison.differences["item-kNN"].seeds is None
    assert table_of(comparison, "amazon2018").rows[0][-2:] == ["difference over seeds", "p over seeds"]


def test_only_seeds_that_both_have_are_paired():
    a = System("a", {"ndcg@10": 0.5}, seeds=[1, 2, 3], runs=[{"ndcg@10": 0.25}, {"ndcg@10": 0.5}, {"ndcg@10": 0.75}])
    b = System("b", {"ndcg@10": 0.25}, seeds=[3, 9, 1], runs=[{"ndcg@10": 0.5}, {"ndcg@10": 0.0}, {"ndcg@10": 0.25}])

    found = difference_of(a, b, metric="ndcg@10", confidence=0.9)

    assert found.difference == 0.25
    assert (found.seeds.difference, found.seeds.num_pairs) == (0.125, 2)  # 0.25 - 0.25 and 0.75 - 0.5


STARTS, SIZES = [0, -1, 2, -1, 6], [2, 1, 1, 3, 4]  # where the ids of the targets begin, and their items


def with_shared_ids(evaluation, *, expected):
    """The same lists of a model whose items share ids."""
    evaluation.users["group_start"], evaluation.users["group_size"] = STARTS, SIZES
    model = evaluation.record["model"]
    evaluation.record["model"] = model | {"corrected": {"recall@10": expected, "ndcg@10": expected}}
    return evaluation


def test_items_that_share_an_id_are_compared_in_their_expectation():
    shared = with_shared_ids(make_evaluation("latte"), expected=0.25)

    (system,) = model_systems([shared])
    found = difference_of(system, model_systems([make_evaluation("psid")])[0], metric="recall@5", confidence=0.9)

    assert system.user_values("recall@5").tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert system.user_values("recall@1").tolist() == [0.5, 0.0, 0.0, 0.0, 0.0]
    assert system.user_values("mrr@10").tolist() == [1.0, 1.0, 1 / 3, 0.0, 1 / 7]  # of the lists
    assert system.ranks[0].tolist() == RANKS["latte"]
    assert (system.expected("ndcg@10"), system.expected("mrr@10")) == (0.25, system.values["mrr@10"])
    assert found.users.difference == 0.0  # the second user's hit at the top is one of the catalog's order
    assert difference_of(system, system, metric="ndcg@10", confidence=0.9).difference == 0


def test_each_seed_counts_with_its_own_ids():
    runs = [make_evaluation("latte", name="A", seed=1), make_evaluation("latte", name="A", seed=2)]
    with_shared_ids(runs[1], expected=0.125)

    (system,) = model_systems(runs)

    plain = runs[0].record["model"]["ndcg@10"]
    assert system.by_seed("ndcg@10") == {1: plain, 2: 0.125}
    assert system.expected("ndcg@10") == pytest.approx((plain + 0.125) / 2)
    assert system.values["ndcg@10"] == pytest.approx(plain)
    low, high = system.interval("ndcg@10")  # of the lists, as the values
    assert low < plain < high
    assert system.user_values("recall@1").tolist() == [0.75, 0.5, 0.0, 0.0, 0.0]


def test_page_says_that_shared_ids_are_compared_in_their_expectation():
    shared = [with_shared_ids(make_evaluation("latte"), expected=0.25), make_evaluation("psid")]

    comparison = compared(*shared, against="psid")
    content = comparison.to_dict()

    note = "differences of recall and ndcg are those of the expectation"
    assert note in comparison_page([comparison])
    assert note not in comparison_page([compared(make_evaluation("latte"))])
    psid = make_evaluation("psid").record["model"]["ndcg@10"]
    assert comparison.differences["latte"].difference == pytest.approx(0.25 - psid)
    assert all({"ranks", "groups"}.isdisjoint(system) for system in content["systems"])


def trained(name, *, seed, epochs=5, **run):
    settings = {"seed": seed, "training": {"seed": seed, "epochs": epochs}}
    return make_evaluation(ranks=RANKS["psid"], name=None, seed=seed, run={"system": name, "settings": settings} | run)


def test_records_that_differ_in_the_seed_only_are_one_system():
    runs = [trained("PSID", seed=1), trained("PSID", seed=2)]
    assert [system.seeds for system in model_systems(runs)] == [[1, 2]]

    others = [trained("PSID", seed=3, epochs=9), trained("PSID", seed=4, latent_aggregation="sum")]
    assert [system.seeds for system in model_systems([*runs, *others])] == [[1, 2], [3], [4]]


def test_weights_of_another_dtype_are_another_system_and_the_note_says_so():
    saved, rounded = trained("PSID", seed=1), trained("PSID", seed=3, dtype="bfloat16")
    runs = [saved, trained("PSID", seed=2, dtype="float32"), rounded]

    assert [(own.name, own.seeds) for own in model_systems(runs)] == [
        ("PSID (float32)", [1, 2]),
        ("PSID (bfloat16)", [3]),
    ]
    note = "Weights as measured: PSID (float32) in float32, PSID (bfloat16) in bfloat16."
    assert note in comparison_page([compared(*runs)])
    assert "Weights as measured" not in comparison_page([compared(saved)])


def test_runs_of_one_name_with_weights_of_two_dtypes_are_refused():
    runs = [make_evaluation(name="A", seed=len(dtype), run={"dtype": dtype}) for dtype in ("float32", "bfloat16")]

    with pytest.raises(ValueError, match=r"Runs of A were .* in float32 \(A_7.json\) and in bfloat16 \(A_8.json\)"):
        compared(*runs)


def test_systems_of_the_same_name_are_told_apart_by_ids_encoder_or_file():
    widen = {"policy": "widen", "num_levels": 3, "codebook_size": 256}
    keep = widen | {"policy": "keep"}

    def names(*runs):
        return [system.name for system in model_systems(runs)]

    assert names(trained("PSID", seed=1, **widen), trained("PSID", seed=2, **keep)) == [
        "PSID (widen 3 × 256)",
        "PSID (keep 3 × 256)",
    ]
    assert names(trained("PSID", seed=1, encoder="o/MiniLM"), trained("PSID", seed=2, encoder="t5")) == [
        "PSID (MiniLM)",
        "PSID (t5)",
    ]
    assert names(trained("PSID", seed=1), trained("PSID", seed=2, epochs=9)) == ["PSID (psid_1)", "PSID (psid_2)"]
    assert names(trained("PSID", seed=1), trained("TIGER", seed=2)) == ["PSID", "TIGER"]


def test_files_tell_systems_apart_without_the_seed_where_that_is_enough():
    def names(*files):
        runs = [make_evaluation(run={"system": "PSID", "model": file}) for file in files]
        named = [StoredEvaluation(None, f"{own.record['run']['model']}.json", own.record) for own in runs]
        return [system.name for system in model_systems(named)]

    assert names("a_seed1", "b_seed1") == ["PSID (a)", "PSID (b)"]
    assert names("a_seed1", "a_seed2", "b_seed1") == ["PSID (a_seed1)", "PSID (a_seed2)", "PSID (b_seed1)"]


def test_variants_of_a_baseline_are_baselines():
    systems = model_systems([trained("SASRec, as large as PSID", seed=1), trained("PSID", seed=1)])

    assert [system.is_baseline for system in systems] == [True, False]


def test_newer_records_fill_up_what_older_ones_lack_of_a_baseline():
    old, new = make_evaluation("psid"), make_evaluation("latte")
    del old.record["baselines"]["item_knn"]["mrr@10"]
    new.record["baselines"]["item_knn"]["coverage@10"] = 0.5

    baselines = {system.name: system for system in merge_baselines(baseline_systems([old, new]))}

    assert list(baselines) == ["Popularity", "item-kNN"]
    assert baselines["item-kNN"].values["coverage@10"] == 0.5
    assert baselines["item-kNN"].values["mrr@10"] == new.record["baselines"]["item_knn"]["mrr@10"]


def test_baselines_that_differ_stay_apart_by_their_record():
    other = make_evaluation("latte", baselines={"item_knn": metrics_of([0, 0, 0, 0, 0])})

    names = [system.name for system in merge_baselines(baseline_systems([make_evaluation("psid"), other]))]

    assert names == ["Popularity", "item-kNN", "item-kNN (latte_None)"]


def test_run_folder_stands_for_its_evaluation_and_a_name_may_precede_it(tmp_path):
    folder = write(tmp_path / "run=1", make_evaluation("psid"))

    plain, named = load_evaluation(folder), load_evaluation(f"PSID={folder}")

    assert (plain.name, named.name) == (None, "PSID")
    assert named.record["model"] == make_evaluation("psid").record["model"]
    assert plain.users["rank"].tolist() == RANKS["psid"]


def test_record_without_results_of_users_has_none(tmp_path):
    write(tmp_path, make_evaluation("psid", users=False), stem="psid")

    assert load_evaluation(tmp_path / "psid.json").users is None


def test_wrong_files_are_refused_by_name(tmp_path):
    (tmp_path / "half.json").write_text("{", encoding="utf-8")
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "other.json").write_text('{"split": "test"}', encoding="utf-8")
    write(tmp_path, make_evaluation("psid", num_users=7), stem="short")
    (tmp_path / "empty").mkdir()

    with pytest.raises(ValueError, match=r"half\.json is no JSON"):
        load_evaluation(tmp_path / "half.json")
    for name in ("list", "other"):
        with pytest.raises(ValueError, match=rf"{name}\.json is no evaluation record: it lacks `protocol`"):
            load_evaluation(tmp_path / f"{name}.json")
    with pytest.raises(ValueError, match=r"short_users\.parquet has 5 rows, but its record says 7 users"):
        load_evaluation(tmp_path / "short.json")
    with pytest.raises(FileNotFoundError, match=r"has no evaluation\.json: run `hf-genrec evaluate`"):
        load_evaluation(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_evaluation(tmp_path / "nowhere.json")


def test_users_file_must_hold_ranks(tmp_path):
    write(tmp_path, make_evaluation("psid"), stem="psid")
    pd.DataFrame({"place": [1] * 5}).to_parquet(tmp_path / "psid_users.parquet")

    with pytest.raises(ValueError, match="lacks the column `rank`"):
        load_evaluation(tmp_path / "psid.json")


def test_page_and_json_hold_the_same_comparison(tmp_path):
    comparisons = [compared(make_evaluation("psid"), make_evaluation("latte"))]

    page = write_comparisons(comparisons, tmp_path / "new" / "page.md").read_text(encoding="utf-8")
    content = json.loads(write_comparisons(comparisons, tmp_path / "page.json").read_text(encoding="utf-8"))

    assert page == comparison_page(comparisons)
    assert page.startswith("## amazon2018, test split\n\n5 users, 12 items, data fingerprint `ffffffffffffffff`.")
    assert "| latte | 0.8000 [0.4000, 1.0000] |" in page
    assert content == {"comparisons": [json.loads(json.dumps(comparisons[0].to_dict()))]}
    assert "ranks" not in content["comparisons"][0]["systems"][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "page.json"]


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.md or \.json"):
        write_comparisons([], tmp_path / "page.txt")


def test_page_names_the_encoder_beside_that_of_published_rows():
    page = comparison_page(
        [compared(make_evaluation("psid", run={"encoder": "sentence-transformers/all-MiniLM-L6-v2"}))]
    )

    assert "Text encoder behind the ids: all-MiniLM-L6-v2; published rows use mostly sentence-t5-base" in page


def test_plot_is_the_same_for_the_same_comparison(tmp_path):
    pytest.importorskip("matplotlib")
    comparisons = [compared(*seeds_of("PSID", shift=1), make_evaluation("latte"))]

    paths = [plot_comparisons(comparisons, tmp_path / name) for name in ("a.png", "b.png")]

    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().startswith(b"\x89PNG")


def with_excluded(evaluation, ranks):
    """The same evaluation with the other column: seen items excluded."""
    record = evaluation.record
    record["model"]["seen_excluded"] = metrics_of(ranks)
    record["baselines"]["item_knn"]["seen_excluded"] = metrics_of([0, 0, 0, -1, -1])
    evaluation.users["seen_excluded_rank"] = ranks
    evaluation.users["seen_excluded_rank_item_knn"] = [0, 0, 0, -1, -1]
    return evaluation


def test_records_with_both_columns_are_compared_in_both():
    evaluations = [with_excluded(make_evaluation(name), [0, 0, 0, 0, -1]) for name in ("psid", "latte")]

    allowed, excluded = compare_evaluations(evaluations, against="item_knn", num_resamples=9)

    assert [system.name for system in allowed.systems] == ["latte", "item-kNN", "psid", "Popularity"]
    assert [system.name for system in excluded.systems] == ["psid", "latte", "item-kNN"]
    assert excluded.differences["psid"].users.difference == pytest.approx(1 / 5)
    page = comparison_page([allowed, excluded])
    assert "## amazon2018, test split\n" in page
    assert "## amazon2018, test split, seen items excluded\n" in page
    assert "Items of the history are left out of all lists." in page


def test_records_are_compared_in_the_columns_that_all_of_them_have():
    both, allowed = with_excluded(make_evaluation("psid"), [0, 0, 0, 0, 0]), make_evaluation("latte")
    excluded = make_evaluation("latte", seed=1, exclude_seen=True, baselines={})

    for other, exclude_seen in ((allowed, False), (excluded, True)):
        (comparison,) = compare_evaluations([both, other], against="latte", num_resamples=9)
        assert comparison.conditions["exclude_seen"] is exclude_seen
        assert {"psid", "latte"} < {system.name for system in comparison.systems}
    assert len(compare_evaluations([allowed, excluded], grouped=True, num_resamples=9)) == 2


def test_sums_of_models_that_differ_in_found_weights_alone_are_runs_of_one_system():
    def record(seed, weights, scores="standardised"):
        model = {"combination": scores, "weights": weights, "weights_with_seen": weights}
        return {"run": {"settings": {"seed": seed, "model": model, "training": {"seed": seed}}}}

    assert seedless_key(record(1, [0.5, 1.0]), "a") == seedless_key(record(2, [1.0, 0.2]), "b")
    assert seedless_key(record(1, [0.5, 1.0]), "a") != seedless_key(record(2, [0.5, 1.0], "reciprocal_rank"), "b")
