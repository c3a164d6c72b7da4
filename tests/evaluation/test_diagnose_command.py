"""`hf-genrec diagnose` and its report on tiny random models: every number against a naive computation."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hf_genrec import (
    Recommender,
    RPGConfig,
    RPGForItemGeneration,
    SASRecConfig,
    SASRecForItemGeneration,
    SemanticIds,
    save_recommender,
)
from hf_genrec.cli.main import app
from hf_genrec.evaluation.diagnose import _has_tree, diagnose, diagnosis_tables
from invariants.model import NUM_ITEMS, make_model, random_codes, tiny_config
from tree_distances import tree_distance


ITEM_IDS = [f"item-{number:02}" for number in range(NUM_ITEMS)]


@pytest.fixture(scope="module")
def sequences():
    generator = np.random.default_rng(0)
    users = {f"user-{user}": [ITEM_IDS[item] for item in generator.permutation(NUM_ITEMS)[:7]] for user in range(6)}
    return users | {"user-of-all": ITEM_IDS}


@pytest.fixture(scope="module")
def prepared(make_prepared, sequences):
    return make_prepared(sequences)


def recommender_of(prepared, **changes):
    model = make_model(tiny_config(history_attention="causal", max_history_length=5, **changes))
    return Recommender(model, prepared.items, num_beams=5)


@pytest.fixture(scope="module")
def psid(prepared):
    return recommender_of(prepared)


@pytest.fixture(scope="module")
def latte(prepared):
    return recommender_of(prepared, num_latent_tokens=3)


@pytest.fixture(scope="module")
def sasrec(prepared):
    config = SASRecConfig(num_items=NUM_ITEMS, d_model=8, max_history_length=5)
    return Recommender(make_model(config, model_class=SASRecForItemGeneration), prepared.items)


def exact_scores(recommender, prepared, **options):
    """Users in rows, items in columns; each history by itself."""
    first = recommender.model.config.first_item_token
    rows = []
    for history in prepared.split("test")["history"]:
        tokens = torch.tensor([[first + ITEM_IDS.index(item) for item in history[-5:]]])
        rows.append(recommender.model.score_items(tokens, **options)[0].double())
    return torch.stack(rows).numpy()


def by_hand(scores, distance):
    """Mean correlation and reversal rate of all pairs at a distance."""
    correlations, reversals = [], []
    codes = random_codes().numpy()
    for a, b in itertools.combinations(range(NUM_ITEMS), 2):
        if tree_distance(codes[a], codes[b]) == distance:
            correlations.append(np.corrcoef(np.exp(scores[:, a]), np.exp(scores[:, b]))[0, 1])
            difference = scores[:, a] - scores[:, b]
            reversals.append(np.mean([x * y < 0 for x, y in itertools.combinations(difference, 2)]))
    return np.mean(correlations), np.mean(reversals), len(correlations)


@pytest.mark.parametrize("aggregation", ["sum", "max"])
def test_report_holds_what_a_naive_computation_gives(prepared, psid, latte, aggregation):
    report = diagnose({"PSID": psid, "Latte": latte}, prepared, latent_aggregation=aggregation)

    assert (report["num_users"], report["split"], report["num_items"]) == (7, "test", NUM_ITEMS)
    for name, recommender in (("PSID", psid), ("Latte", latte)):
        scores = exact_scores(recommender, prepared, latent_aggregation=aggregation)
        for row in report["models"][name]["by_distance"]:
            correlation, reversal, num_pairs = by_hand(scores, row["distance"])
            assert row["num_pairs"] == num_pairs
            assert row["correlation"]["mean"] == pytest.approx(correlation, abs=1e-4)
            assert row["reversal_rate"]["mean"] == pytest.approx(reversal, abs=1e-6)
            assert row["correlation"]["low"] < correlation < row["correlation"]["high"]
    assert [row["distance"] for row in report["models"]["PSID"]["by_distance"]] == [2, 4, 6]
    assert "latents" not in report["models"]["PSID"]


def test_popular_prefixes_are_those_of_the_lists_that_the_model_gives(prepared, psid, sasrec):
    report = diagnose({"PSID": psid, "SASRec": sasrec}, prepared)

    codes, counts = random_codes().numpy(), prepared.train_item_counts()
    first_codes = Counter({code: counts[codes[:, 0] == code].sum() for code in np.unique(codes[:, 0])})
    held, popular = 0, set()
    for code, count in first_codes.most_common():
        if held < counts.sum() / 2:
            popular.add(code)
            held += count
    index_of = {item: number for number, item in enumerate(ITEM_IDS)}
    for name, recommender in (("PSID", psid), ("SASRec", sasrec)):
        lists = recommender.recommend(list(prepared.split("test")["history"]), top_k=10).item_ids
        shown = [codes[index_of[item], 0] in popular for row in lists for item in row]
        row = report["models"][name]["lists"]["by_prefix"][0]
        assert (row["num_codes"], row["num_popular"]) == (1, len(popular))
        assert row["in_lists"] == pytest.approx(np.mean(shown))
        wanted = [codes[index_of[item], 0] in popular for item in prepared.split("test")["target"]]
        assert row["amplification"] == pytest.approx(np.mean(shown) / np.mean(wanted))
    table = next(table for table in diagnosis_tables(report) if table.title.startswith("popular prefixes"))
    assert [row[0] for row in table.rows] == ["model", "PSID", "SASRec"]


def test_latents_without_siblings_leave_their_place_empty():
    latents = {"num_latents": 3, "normalized_entropy": 1.0, "mutual_information": 0.0}
    model = {"tree_of": "", "kendall_tau": None, "latents": latents}
    rows = [
        {"distance": 4, "best_latent_differs": 0.25, "correlation": {"mean": 0.5}, "reversal_rate": {"mean": 0.5}},
    ]
    lists = {"by_prefix": [], "shared_codes": None, "shared_by_targets": None}
    report = {"num_users": 5, "num_pairs": 7, "models": {"Latte": model | {"by_distance": rows, "lists": lists}}}

    table = diagnosis_tables(report)[-1]

    assert table.rows[1][-2:] == ["–", "0.250"]


def test_latents_are_those_of_the_joint_distribution(prepared, latte):
    report = diagnose({"Latte": latte}, prepared, num_latent_users=7)["models"]["Latte"]

    first = latte.model.config.first_item_token
    entropies, informations, shares = [], [], []
    for history in prepared.split("test")["history"]:
        tokens = torch.tensor([[first + ITEM_IDS.index(item) for item in history[-5:]]])
        joint = latte.model.score_paths(tokens)[0].double().exp()
        joint = joint / joint.sum()
        latents, items = joint.sum(1), joint.sum(0)
        shares.append(latents)
        entropies.append(-(latents * latents.log()).sum() / np.log(3))
        informations.append((joint * (joint / latents[:, None] / items).log()).sum())
    assert report["latents"]["normalized_entropy"] == pytest.approx(float(torch.stack(entropies).mean()))
    assert report["latents"]["mutual_information"] == pytest.approx(float(torch.stack(informations).mean()), abs=1e-7)
    assert report["latents"]["shares"] == pytest.approx(torch.stack(shares).mean(0).tolist())
    assert report["latents"]["num_users"] == 7
    assert all(0 <= row["best_latent_differs"] <= 1 for row in report["by_distance"])


def test_users_of_the_latents_are_drawn_by_the_seed_not_the_first(prepared, latte):
    reports = [diagnose({"Latte": latte}, prepared, num_latent_users=2, seed=seed) for seed in (0, 0, 1)]

    shares = [report["models"]["Latte"]["latents"]["shares"] for report in reports]
    first = latte.model.config.first_item_token
    joints = []
    for history in prepared.split("test")["history"][:2]:
        tokens = torch.tensor([[first + ITEM_IDS.index(item) for item in history[-5:]]])
        joints.append(latte.model.score_paths(tokens)[0].double().exp().sum(1))
    of_the_first = torch.stack([joint / joint.sum() for joint in joints]).mean(0).tolist()
    assert reports[0]["models"]["Latte"]["latents"]["num_users"] == 2
    assert shares[0] == shares[1] != shares[2]
    assert of_the_first not in (pytest.approx(shares[0], abs=1e-9), pytest.approx(shares[2], abs=1e-9))


def test_tree_is_described_by_its_neighbours_and_the_targets(prepared, psid):
    codes = random_codes().numpy()
    distances = tree_distance(codes[:, None], codes)
    targets = [ITEM_IDS.index(item) for item in prepared.split("test")["target"]]

    tree = diagnose({"PSID": psid}, prepared, num_users=3)["models"]["PSID"]["tree"]

    assert tree["num_neighbours"] == {str(d): pytest.approx((distances == d).sum() / NUM_ITEMS) for d in (2, 4, 6)}
    assert tree["targets_with_sibling"] == pytest.approx(np.mean([(distances[t] == 2).any() for t in targets]))


def test_reference_is_binned_by_the_tree_of_the_first_model(prepared, psid, sasrec):
    report = diagnose({"PSID": psid, "SASRec": sasrec}, prepared)["models"]["SASRec"]

    correlation, reversal, _ = by_hand(exact_scores(sasrec, prepared), 4)
    assert not _has_tree(sasrec)
    assert (report["tree_of"], report["model_type"]) == ("PSID", "sasrec")
    assert report["by_distance"][1]["correlation"]["mean"] == pytest.approx(correlation, abs=1e-4)
    assert report["by_distance"][1]["reversal_rate"]["mean"] == pytest.approx(reversal, abs=1e-6)


def test_parallel_model_is_a_reference_too_for_it_decodes_along_no_tree(prepared, psid):
    config = RPGConfig(num_items=NUM_ITEMS, num_levels=4, codebook_size=5, d_model=8, num_layers=1, num_heads=2)
    rpg = Recommender(make_model(config, model_class=RPGForItemGeneration), prepared.items)

    report = diagnose({"PSID": psid, "RPG": rpg}, prepared, num_pairs=3)

    assert report["models"]["RPG"]["tree_of"] == "PSID"
    assert [row["distance"] for row in report["models"]["RPG"]["by_distance"]] == [2, 4, 6]
    with pytest.raises(ValueError, match=r"RPG \(rpg\) decodes without a tree"):
        diagnose({"RPG": rpg, "PSID": psid}, prepared)


def test_users_and_pairs_are_samples_that_the_seed_decides(prepared, psid):
    reports = [diagnose({"PSID": psid}, prepared, num_users=5, num_pairs=4, seed=seed) for seed in (0, 0, 1)]

    assert reports[0] == reports[1]
    assert reports[0]["num_users"] == 5
    assert [row["num_pairs"] for row in reports[0]["models"]["PSID"]["by_distance"]] == [4, 4, 4]
    means = [report["models"]["PSID"]["by_distance"][2]["correlation"]["mean"] for report in reports]
    assert means[0] != means[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_users": 1}, "`num_users` must be at least 2, got 1"),
        ({"num_pairs": 0}, "`num_pairs` must be at least 1"),
        ({"num_latent_users": 0}, "`num_latent_users` must be at least 1"),
        ({"latent_aggregation": "mean"}, "`latent_aggregation` must be 'max' or 'sum'"),
    ],
)
def test_wrong_numbers_are_refused(prepared, psid, options, message):
    with pytest.raises(ValueError, match=message):
        diagnose({"PSID": psid}, prepared, **options)


def test_another_catalog_and_no_model_are_refused(make_prepared, sequences, psid):
    other = make_prepared({user: items[:5] for user, items in sequences.items()})

    with pytest.raises(ValueError, match="is not that of"):
        diagnose({"PSID": psid}, other)
    with pytest.raises(ValueError, match="at least one model"):
        diagnose({}, other)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, prepared, psid):
    ids = SemanticIds(ITEM_IDS, random_codes().numpy(), 5, "keep")
    return save_recommender(tmp_path_factory.mktemp("psid") / "run", psid.model, ids, prepared.items)


def test_command_writes_the_report_and_the_figure(tmp_path, prepared, folder):
    pytest.importorskip("matplotlib")
    words = ["diagnose", f"A={folder}", prepared.folder, "--reference", f"B={folder}", "--pairs", "4", "--users", "7"]
    words += ["--output", tmp_path / "new" / "report.json", "--plot", tmp_path / "tree.png", "--json"]

    result = CliRunner().invoke(app, [str(word) for word in words])

    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8"))
    assert list(report["models"]) == list(report["runs"]) == ["A", "B"]
    assert report["models"]["A"] == report["models"]["B"] | {"tree_of": "A"}
    assert len(report["runs"]["A"]["weights"]) == 16
    assert (tmp_path / "tree.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{data}"], "Missing argument"),
        (["{run}", "{run}", "{data}"], "Two runs are called 'run'"),
        (["{data}/missing", "{data}"], "There is no run folder"),
        (["{run}", "{data}", "--plot", "tree.pdf"], "`--plot` must end in .png"),
        (["{run}", "{data}", "--output", "tree.txt"], "`--output` must end in .json"),
    ],
)
def test_command_says_what_is_wrong(prepared, folder, words, message):
    result = CliRunner().invoke(app, ["diagnose", *(w.format(run=folder, data=prepared.folder) for w in words)])

    assert result.exit_code == 2
    assert message in result.stderr


def test_command_prints_tables(prepared, folder):
    result = CliRunner().invoke(app, ["diagnose", str(folder), str(prepared.folder), "--pairs", "3"])

    assert result.exit_code == 0
    assert "tau-b" in result.stdout
    assert "sibling" in result.stdout
