"""The report of an id table against a loop over all pairs, and the command that writes it."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from typer.testing import CliRunner

from hf_genrec.cli.main import app
from hf_genrec.cli.tables import position_table, prefix_table
from hf_genrec.tokenizers.folder import import_ids, load_tokenized
from hf_genrec.tokenizers.report import id_report, report_tokenized
from hf_genrec.tokenizers.report_plot import _scale_positive, plot_id_report
from hf_genrec.tokenizers.semantic_ids import SemanticIds


NUM_ITEMS, NUM_USERS, NUM_LEVELS, CODEBOOK_SIZE, DIM = 12, 7, 3, 4, 5
NAMES = [f"i{number:02}" for number in range(NUM_ITEMS)]

codes_of_items = arrays(np.int64, (NUM_ITEMS, NUM_LEVELS), elements=st.integers(0, 2))
embeddings_of_items = arrays(np.float64, (NUM_ITEMS, DIM), elements=st.integers(-3, 3).map(float))
users_of_items = arrays(np.int64, (NUM_USERS, NUM_ITEMS), elements=st.integers(0, 1))


def table_of(codes: np.ndarray) -> SemanticIds:
    return SemanticIds.from_codes(NAMES, codes, codebook_size=CODEBOOK_SIZE, policy="keep")


def cosine(first: np.ndarray, second: np.ndarray) -> float | None:
    norms = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / norms) if norms > 0 else None


def mean_over(pairs: list[tuple[int, int]], embeddings: np.ndarray, taken: np.ndarray) -> dict[str, float | None]:
    """The three similarities, one pair after the other; the lift is not yet divided by that of all pairs."""
    texts = [cosine(embeddings[i], embeddings[j]) for i, j in pairs]
    users = [cosine(taken[:, i], taken[:, j]) for i, j in pairs]
    common = sum(int(taken[:, i] @ taken[:, j]) for i, j in pairs)
    expected = sum(int(taken[:, i].sum() * taken[:, j].sum()) for i, j in pairs)
    known = {"text": [v for v in texts if v is not None], "co_purchase": [v for v in users if v is not None]}
    means = {name: float(np.mean(values)) if values else None for name, values in known.items()}
    return means | {"lift": common / expected if expected else None}


def assert_same(found: dict[str, float | None], naive: dict[str, float | None], overall: float | None) -> None:
    wanted = naive | {"lift": None if naive["lift"] is None else naive["lift"] / (overall or 1.0)}
    for name, value in wanted.items():
        assert found[name] == (None if value is None else pytest.approx(value, abs=1e-9))


@settings(max_examples=25, deadline=None)
@given(codes_of_items, embeddings_of_items, users_of_items)
def test_similarities_are_the_means_over_all_pairs(codes, embeddings, taken):
    report = id_report(table_of(codes), embeddings=embeddings, taken=sp.csr_array(taken))

    pairs = [(i, j) for i in range(NUM_ITEMS) for j in range(i)]
    overall = mean_over(pairs, embeddings, taken)["lift"]
    last = report["prefixes"][-1]["length"]
    shared = {(i, j): min(last, [*(codes[i] == codes[j]), False].index(False)) for i, j in pairs}
    for entry in report["prefixes"]:
        for kind, kept in (("at_least", np.greater_equal), ("exactly", np.equal)):
            group = [pair for pair in pairs if kept(shared[pair], entry["length"])]
            means = {name: entry[name][kind] for name in report["measures"]}
            assert_same(means, mean_over(group, embeddings, taken), overall)
            assert kind == "exactly" or entry["num_pairs"] == len(group)
    for level, entry in enumerate(report["positions"]):
        group = [(i, j) for i, j in pairs if codes[i, level] == codes[j, level]]
        assert_same(entry, mean_over(group, embeddings, taken), overall)
        assert entry["num_pairs"] == len(group)


@settings(max_examples=15, deadline=None)
@given(codes_of_items, st.permutations(range(NUM_ITEMS)), st.permutations(range(CODEBOOK_SIZE)))
def test_names_of_codes_and_order_of_items_change_nothing(codes, order, names):
    rows = np.random.default_rng(3).normal(size=(NUM_ITEMS, DIM))
    renamed = np.array(names)[codes[order]]

    first, second = (
        id_report(table_of(table), embeddings=vectors) for table, vectors in ((codes, rows), (renamed, rows[order]))
    )

    for one, other in zip(first["prefixes"], second["prefixes"], strict=True):
        assert one.pop("text") == {
            kind: value if value is None else pytest.approx(value) for kind, value in other.pop("text").items()
        }
        assert one == other


def test_sizes_of_prefixes_are_counted():
    report = id_report(table_of(np.array([[0, 1, 3]] * 5 + [[0, 2, 0]] * 4 + [[3, 2, 1], [3, 2, 2], [3, 1, 1]])))

    assert report["measures"] == []
    assert report["statistics"]["after"]["group_sizes"] == {1: 3, 4: 1, 5: 1}
    assert report["prefixes"][1:3] == [
        {"length": 1, "num_prefixes": 2, "mean_items": 6.0, "max_items": 9, "share_alone": 0.0,
         "group_sizes": {3: 1, 9: 1}, "num_pairs": 36 + 3},
        {"length": 2, "num_prefixes": 4, "mean_items": 3.0, "max_items": 5, "share_alone": 1 / 12,
         "group_sizes": {1: 1, 2: 1, 4: 1, 5: 1}, "num_pairs": 10 + 6 + 1},
    ]  # fmt: skip
    assert [entry["code_counts"] for entry in report["positions"]] == [[9, 3], [6, 6], [5, 4, 2, 1]]


@pytest.mark.parametrize("twins", [False, True])
def test_prefixes_end_where_no_further_items_part(twins):
    codes = np.column_stack([np.arange(NUM_ITEMS) // 4, np.arange(NUM_ITEMS) % 4] + [np.zeros(NUM_ITEMS, int)] * 14)
    codes[1] = codes[0] if twins else codes[1]

    report = id_report(table_of(codes))

    assert [entry["length"] for entry in report["prefixes"]] == [0, 1, 2]
    assert report["prefixes"][-1]["num_pairs"] == int(twins)
    assert len(report["positions"]) == 16


def test_lift_does_not_mistake_popularity_for_kinship():
    users = np.random.default_rng(5).random((4001, NUM_ITEMS)) < np.repeat([0.8, 0.1], 6)
    codes = np.column_stack([np.repeat([0, 1], 6), np.arange(NUM_ITEMS) % 4])  # the first code is the popularity

    chance, entry, _ = id_report(table_of(codes), taken=sp.csr_array(users))["prefixes"]

    assert entry["lift"]["at_least"] == pytest.approx(chance["lift"]["at_least"], abs=0.02)
    assert entry["co_purchase"]["at_least"] > chance["co_purchase"]["at_least"] + 0.05


def test_items_without_users_or_text_take_no_part():
    codes = np.array([[0], [0], [0]])
    ids = SemanticIds.from_codes(["a", "b", "c"], codes, codebook_size=1, policy="keep")
    taken = sp.csr_array(np.array([[1, 1, 0], [1, 0, 0]]))

    entry = id_report(ids, embeddings=np.array([[0, 0], [0, 2], [3, 4]]), taken=taken)["prefixes"][0]

    assert entry["text"]["at_least"] == pytest.approx(0.8)
    assert entry["co_purchase"]["at_least"] == pytest.approx(1 / np.sqrt(2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"embeddings": np.ones((11, DIM))}, "`embeddings` must have one row per item, 12, but has 11"),
        ({"embeddings": np.full((12, DIM), np.nan)}, "`embeddings` has NaN or infinity in 12 rows"),
        ({"taken": sp.csr_array((12, NUM_USERS))}, r"`taken` must have the shape \(num_users, 12\), got \(12, 7\)"),
    ],
)
def test_tables_of_other_items_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        id_report(table_of(np.zeros((NUM_ITEMS, 2), int)), **wrong)


@pytest.fixture(scope="module")
def prepared(make_prepared):
    return make_prepared({"u": NAMES[:7], "v": NAMES[3:], "w": [*NAMES[2:5], *NAMES[9:]]})


@pytest.fixture
def files(tmp_path):
    """Ids of two codes, of which two items share both, and embeddings."""
    table = {name: [number // 3, min(number % 3, 1)] for number, name in enumerate(NAMES)}
    (tmp_path / "other.json").write_text(json.dumps(table), encoding="utf-8")
    np.save(tmp_path / "matrix.npy", np.random.default_rng(3).normal(size=(NUM_ITEMS, DIM)).astype(np.float32))
    return tmp_path


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_report_lies_beside_the_ids_and_the_folder_still_opens(prepared, files):
    import_ids(prepared, files / "other.json", files / "ids", policy="keep")

    report = report_tokenized(files / "ids", prepared, embeddings=files / "matrix.npy")

    written = json.loads((files / "ids" / "report.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report))
    assert (written["encoder"], written["measures"]) == ("matrix matrix.npy", ["text", "co_purchase", "lift"])
    taken = {"u": NAMES[:5], "v": NAMES[3:10], "w": NAMES[2:5] + NAMES[9:10]}
    matrix = sp.csr_array([[float(name in items) for name in NAMES] for items in taken.values()])
    ids, record = load_tokenized(files / "ids")
    assert report["prefixes"] == id_report(ids, embeddings=np.load(files / "matrix.npy"), taken=matrix)["prefixes"]
    assert record["catalog_fingerprint"] == report["catalog_fingerprint"]
    names = sorted(path.name for path in (files / "ids").iterdir())
    assert names == ["report.json", "semantic_ids.parquet", "tokenizer.json"]


def test_report_tells_how_well_the_codes_fit(prepared, files):
    words = ["--embeddings", files / "matrix.npy", "--levels", "2", "--codebook-size", "4", "--whiten", "0"]

    made = run("tokenize", prepared.folder, *words, "--policy", "append", "--output", files / "ids", "--report")

    assert made.exit_code == 0, made.stderr
    fit = json.loads((files / "ids" / "tokenizer.json").read_text(encoding="utf-8"))["fit"]
    report = json.loads((files / "ids" / "report.json").read_text(encoding="utf-8"))
    assert report["fit"] == fit
    errors = [f"{error:.3f}" for error in fit["relative_error"]]
    assert [row[4] for row in position_table(report).rows[1:]] == [*errors, "-", ""]


def test_ids_of_another_catalog_are_refused(prepared, make_prepared, files):
    import_ids(prepared, files / "other.json", files / "ids")
    other = make_prepared({"u": NAMES[:5]})

    with pytest.raises(ValueError, match="ids of other items"):
        report_tokenized(files / "ids", other)
    assert not (files / "ids" / "report.json").exists()


def test_command_imports_and_judges_in_one_go_and_judges_again_without_making(prepared, files):
    output = ["--output", files / "ids", "--report"]

    made = run("tokenize", prepared.folder, "--ids", files / "other.json", "--policy", "keep", *output)
    table = (files / "ids" / "semantic_ids.parquet").stat().st_mtime_ns
    again = run("tokenize", prepared.folder, *output, "--embeddings", files / "matrix.npy", "--json")

    assert made.exit_code == again.exit_code == 0, made.stderr + again.stderr
    assert "similarity of the texts is left out" in made.stdout
    assert "items that share their first codes" in made.stdout
    assert json.loads(again.stdout)["report"]["measures"] == ["text", "co_purchase", "lift"]
    assert (files / "ids" / "semantic_ids.parquet").stat().st_mtime_ns == table


def test_command_draws_the_report(prepared, files):
    pytest.importorskip("matplotlib")
    words = ["--ids", files / "other.json", "--embeddings", files / "matrix.npy", "--output", files / "ids"]

    result = run("tokenize", prepared.folder, *words, "--report", "--plot", files / "new" / "ids.png")

    assert result.exit_code == 0, result.stderr
    assert (files / "new" / "ids.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((files / "ids" / "report.json").read_text(encoding="utf-8"))
    title = f"ids: 12 items, 3 levels of {written['statistics']['codebook_size']} codes"
    again = plot_id_report(written, files / "again.png", title=title)
    assert again.read_bytes() == (files / "new" / "ids.png").read_bytes()


@pytest.mark.parametrize(
    ("values", "scale", "ticks"),
    [
        ([0.9, 8.0, 25.0, 1.0], "log", ["1", "2", "5", "10", "20"]),
        ([0.0, 1.0, 70.0], "symlog", ["0", "1", "2", "5", "10", "20", "50"]),
        ([1.0, 12_000.0], "log", ["1", "10", "100", "1,000", "10,000"]),
        ([4.0, 6.0, 12.0], "linear", ["0", "3", "6", "9", "12", "15"]),
        ([0.8, 1.1], "linear", ["0", "0.25", "0.5", "0.75", "1", "1.25"]),
    ],
)
def test_axes_of_ratios_and_counts_have_readable_labels(values, scale, ticks):
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()

    _scale_positive(axes, values, whole=min(values) >= 1)

    assert axes.get_yscale() == scale
    assert [label.get_text() for label in axes.get_yticklabels()] == ticks
    assert axes.yaxis.get_minorticklocs().size == 0


def test_drawing_shows_what_was_measured(tmp_path):
    pytest.importorskip("matplotlib")
    ids = table_of(np.random.default_rng(5).integers(0, CODEBOOK_SIZE, (NUM_ITEMS, 9)))
    known = {"embeddings": np.eye(NUM_ITEMS), "taken": sp.csr_array(np.ones((NUM_USERS, NUM_ITEMS)))}
    chosen = [{}, {"embeddings": known["embeddings"]}, known]

    files = [plot_id_report(id_report(ids, **some), tmp_path / f"{len(some)}.png") for some in chosen]

    sizes = [np.frombuffer(file.read_bytes()[16:24], dtype=">u4").tolist() for file in files]
    assert sizes == [[1560, 585], [2340, 585], [1560, 1170]]  # two, three and twice two panels


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--report", "--levels", "3"], "exists already"),
        (["--plot", "a.png"], "add `--report`"),
        (["--report", "--plot", "a.pdf"], "must end in .png"),
        (["--report", "--overwrite"], "either `--embeddings` or `--ids`"),
        ([], "either `--embeddings` or `--ids`"),
    ],
)
def test_options_without_effect_are_refused(prepared, files, words, message):
    import_ids(prepared, files / "other.json", files / "ids")

    result = run("tokenize", prepared.folder, "--output", files / "ids", *words)

    assert result.exit_code == 2
    assert message in result.stderr


def test_tables_show_chance_and_a_dash_where_there_is_no_pair():
    codes = np.column_stack([np.arange(NUM_ITEMS) // 4, np.arange(NUM_ITEMS) % 4])
    report = id_report(table_of(codes), embeddings=np.ones((NUM_ITEMS, DIM)))

    prefixes, positions = prefix_table(report), position_table(report)

    assert [(row[0], row[-1]) for row in prefixes.rows[1:]] == [("any", "1.000"), ("1", "1.000"), ("2", "-")]
    assert [row[0] for row in positions.rows[1:]] == ["1", "2", "any"]
    assert positions.rows[-1] == ["any", "", "", "", "66", "1.000"]
