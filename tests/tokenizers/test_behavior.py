"""Item vectors from the log: their geometry, cold items, the file beside the texts, and what is made of it."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

from hf_genrec import SASRecConfig, SASRecForItemGeneration
from hf_genrec.cli.main import app
from hf_genrec.tokenizers.behavior import behavior_vectors, fuse_vectors
from hf_genrec.tokenizers.folder import add_behavior, embed_items, load_tokenized, read_embeddings, tokenize_items
from hf_genrec.tokenizers.report import id_report, report_tokenized
from hf_genrec.tokenizers.semantic_ids import SemanticIds


NAMES = [f"i{number:02}" for number in range(47)]


class Log:
    """As much of a prepared data set as the vectors need."""

    def __init__(self, taken: np.ndarray) -> None:
        self.taken = taken

    def interaction_matrix(self) -> sp.csr_array:
        return sp.csr_array(self.taken)


@pytest.fixture(scope="module")
def prepared(make_prepared):
    """Items 0 to 42 are in training; the rest only in the last two visits of some user."""
    histories = {f"u{start}": NAMES[start : start + 11] for start in range(0, 33, 8)}
    return make_prepared(histories | {"v": [*NAMES[33:43], *NAMES[43:45]], "w": [*NAMES[20:43], *NAMES[45:47]]})


@pytest.fixture
def matrix(tmp_path):
    np.save(tmp_path / "texts.npy", np.random.default_rng(3).normal(size=(47, 14)).astype(np.float32))
    return tmp_path / "texts.npy"


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("num_components", [3, 9])  # by Lanczos, by the whole decomposition
def test_vectors_are_the_scaled_eigenvectors_of_the_normalised_co_occurrence(num_components):
    taken = (np.random.default_rng(5).random((23, 17)) < 0.3).astype(float)
    taken[:, 4] = 0

    vectors = behavior_vectors(Log(taken), num_components=num_components, regularization=2.0)

    scaled = taken / np.sqrt(np.outer(taken.sum(axis=1) + 2, taken.sum(axis=0) + 2))
    values, columns = np.linalg.eigh(scaled.T @ scaled)
    expected = (columns * values)[:, ::-1][:, :num_components]
    warm = np.arange(17) != 4
    expected = expected[warm] / np.linalg.norm(expected[warm], axis=1, keepdims=True)
    np.testing.assert_allclose((vectors @ vectors.T)[np.ix_(warm, warm)], expected @ expected.T, atol=1e-4)
    assert (vectors.dtype, vectors.shape) == (np.float32, (17, num_components))
    assert not vectors[4].any()
    assert vectors.flags.c_contiguous  # safetensors writes what lies in memory
    np.testing.assert_array_equal(
        behavior_vectors(Log(taken), num_components=num_components, regularization=2.0), vectors
    )


def test_small_logs_give_as_many_components_as_they_have():
    taken = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])

    vectors = behavior_vectors(Log(taken))

    np.testing.assert_allclose(vectors @ vectors.T, taken.T @ taken, atol=1e-6)
    with pytest.raises(ValueError, match="`num_components` must be at least 1"):
        behavior_vectors(Log(taken), num_components=0)
    with pytest.raises(ValueError, match="training part of the log is empty"):
        behavior_vectors(Log(0 * taken))


def test_both_parts_have_the_length_that_was_asked_for():
    random = np.random.default_rng(5)
    text, behavior = random.normal(size=(31, 9)), random.normal(size=(31, 4))

    fused = fuse_vectors(text, behavior, weight=0.6, num_components=5)

    assert fused.shape == (31, 9)
    np.testing.assert_allclose(np.linalg.norm(fused[:, :4], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(fused[:, 4:], axis=1), 0.6, rtol=1e-5)
    assert fuse_vectors(text, behavior, num_components=50).shape == (31, 13)  # nine columns have variance


def test_cold_items_stand_where_items_with_such_texts_stand():
    random = np.random.default_rng(5)
    kind = np.arange(60) % 3
    text = 3 * np.eye(3)[kind] + 0.1 * random.normal(size=(60, 3))
    behavior = np.eye(3)[[1, 2, 0]][kind]
    behavior[50:] = 0

    fused = fuse_vectors(text, behavior, weight=0.5)

    assert (fused[50:, :3].argmax(axis=1) == np.array([1, 2, 0])[kind[50:]]).all()
    np.testing.assert_allclose(np.linalg.norm(fused[50:, :3], axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(fused[:50, :3], behavior[:50])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": np.ones((7, 2))}, "`text` must have one row per item, 9, but has 7"),
        ({"weight": 0.0}, "`weight` must be above 0, got 0.0. For behaviour alone"),
        ({"behavior": np.zeros((9, 2))}, "at least two rows that are not all zeros, got 0"),
        ({"text": np.full((9, 2), np.nan)}, "`text` has NaN or infinity in 9 rows"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(change, message):
    random = np.random.default_rng(5)
    arguments = {"text": random.normal(size=(9, 3)), "behavior": random.normal(size=(9, 2)), "weight": 1.0}

    with pytest.raises(ValueError, match=message):
        fuse_vectors(**arguments | change)


def test_file_says_what_its_vectors_are_and_is_bound_to_the_log(prepared, make_prepared, matrix, tmp_path):
    embed_items(prepared, tmp_path / "both", matrix=matrix, behavior="svd", weight=0.5)

    vectors, encoder = read_embeddings(tmp_path / "both", prepared)
    expected = fuse_vectors(np.load(matrix), behavior_vectors(prepared), weight=0.5)
    np.testing.assert_array_equal(vectors, expected)
    described = {name: encoder[name] for name in ("model", "behavior", "weight", "behavior_columns", "data")}
    columns = str(behavior_vectors(prepared).shape[1])
    assert described == {
        "model": "matrix texts.npy", "behavior": "svd", "weight": "0.5", "behavior_columns": columns,
        "data": prepared.fingerprint,
    }  # fmt: skip
    other = make_prepared({"u": NAMES[:30], "v": NAMES[17:]})  # the same items, taken by others
    with pytest.raises(ValueError, match="made from the log of other data"):
        read_embeddings(tmp_path / "both", other)


def test_behaviour_is_not_whitened_and_new_items_learn_what_it_was(prepared, matrix, tmp_path):
    embed_items(prepared, tmp_path / "both", matrix=matrix, behavior="svd")

    tokenize_items(prepared, tmp_path / "both", tmp_path / "ids", num_levels=2, codebook_size=8)

    record = load_tokenized(tmp_path / "ids")[1]
    encoder = json.loads((tmp_path / "ids" / "quantizer" / "encoder.json").read_text(encoding="utf-8"))
    assert record["settings"]["num_whitened"] == 0
    assert not (tmp_path / "ids" / "quantizer" / "whitening.safetensors").exists()
    assert (encoder["model"], encoder["behavior"], encoder["weight"]) == ("matrix texts.npy", "svd", "0.6")


def test_behaviour_added_to_written_texts_is_that_of_both_at_once(prepared, tmp_path):
    np.save(tmp_path / "texts.npy", np.random.default_rng(5).normal(size=(47, 13)).astype(np.float32))
    texts = embed_items(prepared, tmp_path / "texts", matrix=tmp_path / "texts.npy")

    later = read_embeddings(add_behavior(prepared, texts, tmp_path / "later"), prepared)
    at_once = embed_items(prepared, tmp_path / "both", matrix=tmp_path / "texts.npy", behavior="svd")

    np.testing.assert_array_equal(later[0], read_embeddings(at_once, prepared)[0])
    assert later[1] == read_embeddings(at_once, prepared)[1]
    with pytest.raises(ValueError, match="holds behaviour already"):
        add_behavior(prepared, at_once, tmp_path / "again")


def test_log_without_texts_gets_ids_from_behaviour_alone(prepared, tmp_path, caplog):
    path = embed_items(prepared, tmp_path / "behavior.safetensors", behavior="svd", weight=0.0)

    vectors, encoder = read_embeddings(path, prepared)
    np.testing.assert_array_equal(vectors, behavior_vectors(prepared))
    assert (encoder["weight"], encoder["model"], "texts" in encoder) == ("0.0", "", False)
    assert "4 items are in no training history and have no texts" in caplog.text
    with pytest.raises(ValueError, match="`weight` must be at least 0, got -0.5"):
        embed_items(prepared, path, behavior="svd", weight=-0.5)


def test_table_of_a_trained_sasrec_is_the_other_behaviour(prepared, tmp_path):
    config = SASRecConfig(num_items=47, d_model=8, num_layers=1, num_heads=2, d_kv=4, d_ff=16)
    model = SASRecForItemGeneration(config)
    model.save_pretrained(tmp_path / "run")

    vectors = behavior_vectors(prepared, run=tmp_path / "run")

    rows = model.item_embeddings().detach().numpy()[:43]
    np.testing.assert_allclose(vectors[:43], rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-6)
    assert not vectors[43:].any()  # a row that no training step moved says nothing
    SASRecForItemGeneration(SASRecConfig(num_items=46, d_model=8)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="about other items"):
        behavior_vectors(prepared, run=tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="pass the folder of a trained SASRec"):
        behavior_vectors(prepared, run=tmp_path / "none")


def test_command_fuses_and_the_report_has_both_lifts(prepared, matrix, tmp_path):
    both, ids = tmp_path / "both", tmp_path / "ids"

    made = run("embed", prepared.folder, "--matrix", matrix, "--behavior", "svd", "--weight", "0.7", "--output", both)
    words = ["--embeddings", both, "--levels", "2", "--codebook-size", "8", "--output", ids, "--report"]
    shown = run("tokenize", prepared.folder, *words)

    assert made.exit_code == 0, made.stderr
    assert "behaviour by svd (7), matrix texts.npy (14) x 0.7" in " ".join(made.stdout.split())
    assert shown.exit_code == 0, shown.stderr
    assert "times as alike as any two items: users" in " ".join(shown.stdout.split())
    report = report_tokenized(ids, prepared, embeddings=both)
    assert report["prefixes"][1]["lift"]["at_least"] > 1.5  # items with the same first code share users
    assert report["measures"] == ["text", "co_purchase", "lift"]
    chance = fuse_vectors(np.load(matrix), behavior_vectors(prepared))[:, 7:]
    cosines = chance @ chance.T / 0.36
    mean = cosines[np.triu_indices(47, k=1)].mean()
    assert report["prefixes"][0]["text"]["at_least"] == pytest.approx(mean, abs=1e-6)  # without the behaviour


def test_lift_of_the_texts_is_their_alikeness_over_that_of_any_two():
    codes = np.array([[0, 1], [0, 2], [1, 1]])
    ids = SemanticIds.from_codes(["a", "b", "c"], codes, codebook_size=3, policy="keep")

    report = id_report(ids, embeddings=np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]]))

    assert [entry["text_lift"] for entry in report["prefixes"]] == [1.0, pytest.approx(0.6 / (1.4 / 3)), None]
    centred = id_report(ids, embeddings=np.array([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]]))
    assert centred["prefixes"][1]["text_lift"] is None
