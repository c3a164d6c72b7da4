"""The tokenized folder of each quantizer: codes, defaults, what is kept for new items."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from hf_genrec.cli.main import app
from hf_genrec.tokenizers.base import Quantizer
from hf_genrec.tokenizers.embeddings import Whitening
from hf_genrec.tokenizers.folder import import_ids, load_tokenized, tokenize_items
from hf_genrec.tokenizers.residual_kmeans import ResidualKMeans
from hf_genrec.tokenizers.semantic_ids import SemanticIds


NUM_ITEMS, DIM = 47, 14
QUANTIZERS = [
    "residual-kmeans",
    "rqvae",
    "cosette",
    "letter",
    "cost",
    "hierarchical-kmeans",
    "gaoq",
    "opq",
    "pq",
    "random",
]
RQVAES = ["rqvae", "cosette", "letter", "cost"]
QUICK = dict.fromkeys(RQVAES, {"epochs": 2, "hidden_sizes": [9], "latent_dim": 4})


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """Embeddings of 47 items, the last two of which are equal."""
    rows = np.random.default_rng(3).normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
    rows[-1] = rows[-2]
    path = tmp_path_factory.mktemp("matrix") / "matrix.npy"
    np.save(path, rows)
    return path


@pytest.fixture(scope="module")
def prepared(make_prepared):
    """Items 0 to 42 are in training; the rest only in the last two visits of some user."""
    names = [f"i{number:02}" for number in range(NUM_ITEMS)]
    histories = {f"u{start}": names[start : start + 11] for start in range(0, 33, 8)}
    return make_prepared(histories | {"v": [*names[33:43], *names[43:45]], "w": [*names[20:43], *names[45:47]]})


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_saved_folder_gives_new_items_the_codes_of_the_table(prepared, matrix, tmp_path, quantizer):
    tokenize_items(
        prepared,
        matrix,
        tmp_path / "ids",
        quantizer=quantizer,
        num_levels=5,
        codebook_size=8,
        num_whitened=10,
        policy="keep",
        options=QUICK.get(quantizer),
    )

    ids, record = load_tokenized(tmp_path / "ids")
    points = Whitening.load(tmp_path / "ids" / "quantizer" / "whitening.safetensors").transform(np.load(matrix))
    codes = Quantizer.load(tmp_path / "ids" / "quantizer").encode(points)
    np.testing.assert_array_equal(codes, ids.codes)
    assert record["settings"]["quantizer"] == quantizer
    assert record["fit"]["num_rows"] == 43
    if quantizer != "random":  # which hashes the last bit too, and whitening equal rows may differ in it
        assert record["statistics"]["after"]["group_sizes"]["2"] >= 1


@pytest.mark.parametrize(
    ("quantizer", "sizes", "expected"),
    [
        ("residual-kmeans", {}, (3, 192, "widen")),
        ("rqvae", {"options": QUICK["rqvae"]}, (3, 0, "widen")),
        ("hierarchical-kmeans", {}, (3, 0, "append")),
        ("gaoq", {}, (2, 0, "append")),
        ("opq", {"num_levels": 2}, (2, 128, "widen")),
        ("pq", {"num_levels": 14, "num_whitened": 0}, (14, 0, "keep")),
        ("random", {"num_levels": 8}, (8, 0, "append")),
        ("random", {}, (32, 0, "keep")),
    ],
)
def test_sizes_and_policy_follow_from_the_quantizer(prepared, matrix, tmp_path, quantizer, sizes, expected):
    ids = tokenize_items(prepared, matrix, tmp_path / "ids", quantizer=quantizer, codebook_size=8, **sizes)

    settings = load_tokenized(tmp_path / "ids")[1]["settings"]
    assert (settings["num_levels"], settings["num_whitened"], settings["policy"]) == expected
    assert ids.is_unique == (expected[2] != "keep")


@pytest.mark.parametrize(("num_levels", "codebook_size"), [(1, 512), (2, 32), (3, 8)])
def test_tree_has_tuples_for_eight_times_the_items_unless_told_otherwise(
    prepared, matrix, tmp_path, num_levels, codebook_size
):
    tokenize_items(prepared, matrix, tmp_path / "ids", quantizer="hierarchical-kmeans", num_levels=num_levels)

    assert load_tokenized(tmp_path / "ids")[1]["settings"]["codebook_size"] == codebook_size


def test_record_tells_how_well_the_codes_fit_level_by_level(prepared, matrix, tmp_path):
    wanted = {"num_levels": 3, "codebook_size": 8, "num_whitened": 0, "policy": "keep"}
    ids = tokenize_items(prepared, matrix, tmp_path / "ids", **wanted)

    rows, quantizer = np.load(matrix), Quantizer.load(tmp_path / "ids" / "quantizer")
    fit = load_tokenized(tmp_path / "ids")[1]["fit"]
    for name, part in (("relative_error", slice(43)), ("relative_error_of_others", slice(43, 47))):
        found, residuals = [], rows[part]
        for level, centroids in enumerate(quantizer.codebooks):
            residuals = residuals - centroids[ids.codes[part, level]]
            found.append((residuals**2).sum() / ((rows[part] - rows[part].mean(axis=0)) ** 2).sum())
        np.testing.assert_allclose(fit[name], found, rtol=1e-4)


def test_record_of_an_rqvae_tells_its_options_and_its_training(prepared, matrix, tmp_path):
    options = QUICK["rqvae"] | {"validation_share": 0.2, "evaluate_every": 1}
    tokenize_items(prepared, matrix, tmp_path / "ids", quantizer="rqvae", codebook_size=8, options=options)

    record = load_tokenized(tmp_path / "ids")[1]
    assert record["settings"]["options"] == options
    training = record["fit"]["training"]
    assert (training["num_rows"], training["num_validation_rows"]) == (34, 9)
    assert [entry["epoch"] for entry in training["history"]] == [1, 2]
    assert Quantizer.load(tmp_path / "ids" / "quantizer").report == training


def test_product_codes_learn_from_the_items_of_training_unless_told_otherwise(prepared, matrix, tmp_path):
    wanted = {"quantizer": "opq", "num_levels": 7, "codebook_size": 8, "num_whitened": 0, "policy": "keep"}
    for fit_on in ("train", "all"):
        tokenize_items(prepared, matrix, tmp_path / fit_on, fit_on=fit_on, **wanted)

    rows = np.load(matrix)
    learned = {fit_on: Quantizer.load(tmp_path / fit_on / "quantizer") for fit_on in ("train", "all")}
    again = {"train": learned["train"].fit(rows[:43]).encode(rows), "all": learned["all"].fit(rows).encode(rows)}
    for fit_on, codes in again.items():
        np.testing.assert_array_equal(load_tokenized(tmp_path / fit_on)[0].codes, codes)
    assert not np.array_equal(again["train"], again["all"])


def test_columns_that_cannot_be_cut_leave_no_folder(prepared, matrix, tmp_path):
    with pytest.raises(ValueError, match="4 does not divide 14. Whiten to 12 or 16 components"):
        tokenize_items(
            prepared, matrix, tmp_path / "ids", quantizer="opq", num_levels=4, codebook_size=8, num_whitened=14
        )

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("quantizer", "sizes"),
    [("residual-kmeans", (3, 8)), ("rqvae", (3, 8)), ("opq", (14, 8)), ("random", (32, 8))],
)
def test_a_small_catalog_gets_levels_that_fit_and_is_told_so(prepared, matrix, tmp_path, caplog, quantizer, sizes):
    ids = tokenize_items(prepared, matrix, tmp_path / "ids", quantizer=quantizer, options=QUICK.get(quantizer))

    assert (ids.num_levels, ids.codebook_size) == sizes
    if quantizer != "random":
        assert "Only 43 items to learn from: " in caplog.text


@pytest.mark.parametrize(
    ("num_levels", "num_items", "num_rows", "size"),
    [
        (3, 5000, 288, 256),
        (3, 287, 287, 64),
        (3, 40, 32, 8),
        (3, 40, 8, 4),
        (2, 40, 32, 8),
        (1, 40, 64, 64),
        (3, 5, 3, 2),
    ],
)
def test_levels_are_a_quarter_of_the_items_to_learn_from_where_these_are_few(num_levels, num_items, num_rows, size):
    found = ResidualKMeans.default_codebook_size(num_levels=num_levels, num_items=num_items, num_rows=num_rows)

    assert found == size


def test_few_distinct_texts_are_whitened_to_the_directions_that_they_have(prepared, tmp_path, caplog):
    kinds = np.random.default_rng(3).normal(size=(5, 14)).astype(np.float32)
    np.save(tmp_path / "few.npy", kinds[np.arange(47) % 5])

    for quantizer, num_levels in (("residual-kmeans", 3), ("opq", 4)):
        caplog.clear()
        ids = tokenize_items(
            prepared, tmp_path / "few.npy", tmp_path / quantizer, quantizer=quantizer, codebook_size=4
        )
        assert (ids.num_levels, ids.is_unique) == (num_levels, True)
        assert "differ in few directions: 4 whitened components" in caplog.text
    np.save(tmp_path / "one.npy", np.ones((47, 14), np.float32))
    with pytest.raises(ValueError, match="All embeddings are equal"):
        tokenize_items(prepared, tmp_path / "one.npy", tmp_path / "ids")


def test_columns_are_left_out_where_the_levels_do_not_divide_those_that_whitening_found(prepared, matrix, tmp_path):
    tokenize_items(prepared, matrix, tmp_path / "ids", quantizer="opq", num_levels=4, codebook_size=8)

    assert Quantizer.load(tmp_path / "ids" / "quantizer").dim == 12


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"quantizer": "vq"},
            "one of residual-kmeans, rqvae, cosette, letter, cost, .*, gaoq, opq, pq, random.*, got 'vq'",
        ),
        ({"quantizer": "rqvae", "options": {"epoch": 3}}, "no option 'epoch'; it has hidden_sizes, latent_dim"),
        ({"quantizer": "rqvae", "options": {"seed": 3}}, "no option 'seed'"),
        ({"options": {"beam_size": "x"}}, "wrong type"),
        ({"quantizer": "hierarchical-kmeans", "policy": "widen"}, "use 'append'"),
        ({"quantizer": "random", "num_levels": 3, "policy": "widen"}, "use 'append'"),
        ({"quantizer": "pq", "num_levels": 14, "num_whitened": 0, "policy": "widen"}, "keep the collisions"),
        ({"num_whitened": -1}, "num_whitened"),
        ({"fit_on": "test"}, "fit_on"),
    ],
)
def test_wrong_settings_are_named(prepared, matrix, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        tokenize_items(prepared, matrix, tmp_path / "ids", codebook_size=8, **wrong)


def test_command_makes_long_ids_and_reports_their_collisions(prepared, matrix, tmp_path):
    words = ["tokenize", prepared.folder, "--embeddings", matrix, "--output", tmp_path / "ids", "--quantizer", "opq"]
    sizes = ["--levels", "14", "--codebook-size", "8", "--whiten", "0", "--seed", "5"]

    result = CliRunner().invoke(app, [str(word) for word in [*words, *sizes, "--json"]])

    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["statistics"]["after"] == {
        "num_distinct": 46, "collision_rate": 2 / 47, "excess_rate": 1 - 46 / 47, "group_sizes": {"1": 45, "2": 1},
    }  # fmt: skip
    assert found["settings"]["seed"] == 5
    assert SemanticIds.load(tmp_path / "ids" / "semantic_ids.parquet").codes.shape == (47, 14)


def test_command_refuses_a_quantizer_it_does_not_know(prepared, matrix, tmp_path):
    words = ["tokenize", prepared.folder, "--embeddings", matrix, "--output", tmp_path / "ids", "--quantizer", "vq"]

    result = CliRunner().invoke(app, [str(word) for word in words])

    assert result.exit_code == 2
    assert "'residual-kmeans', 'rqvae', 'cosette', 'letter', 'cost'" in result.stderr


def test_command_takes_options_of_the_quantizer(prepared, matrix, tmp_path):
    words = ["tokenize", prepared.folder, "--embeddings", matrix, "--output", tmp_path / "ids", "--quantizer", "rqvae"]
    options = ["--codebook-size", "8", "--set", "epochs=2", "--set", "hidden_sizes=[9]", "--set", "optimizer=adagrad"]

    result = CliRunner().invoke(app, [str(word) for word in [*words, *options, "--json"]])

    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["settings"]["options"] == {"epochs": 2, "hidden_sizes": [9], "optimizer": "adagrad"}
    assert found["fit"]["training"]["epochs"] == 2
    saved = json.loads((tmp_path / "ids" / "quantizer" / "training.json").read_text(encoding="utf-8"))
    assert saved["arguments"]["optimizer"] == "adagrad"


def test_long_imported_ids_are_kept_as_they_are_and_short_ones_get_a_code(prepared, tmp_path):
    for num_levels, policy, width in ((9, "keep", 9), (2, "append", 3)):
        table = {item_id: [index % 3] * num_levels for index, item_id in enumerate(prepared.item_ids)}
        (tmp_path / "ids.json").write_text(json.dumps(table), encoding="utf-8")

        ids = import_ids(prepared, tmp_path / "ids.json", tmp_path / f"ids{num_levels}")

        assert (ids.policy, ids.num_levels) == (policy, width)
