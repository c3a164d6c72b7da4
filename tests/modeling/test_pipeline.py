"""`pipeline("next-item-recommendation", ...)`: with the package, without it, and with what people may hand to it."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, pipeline

from hf_genrec import Recommender
from hf_genrec.modeling.pipeline_genrec import NextItemPipeline
from saved_folders import ARCHITECTURES, ITEM_IDS, make_folder, model_of


TASK = "next-item-recommendation"
BATCH = [["i1", "i2", "i4"], [], ["i3"]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return {architecture: make_folder(root / architecture, architecture) for architecture in ARCHITECTURES}


@pytest.fixture(scope="module")
def recommend(folders):
    return pipeline(TASK, model=str(folders["latte"]), device="cpu")


def ids_of(answers):
    return [[entry["item_id"] for entry in answer] for answer in answers]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pipeline_recommends_what_the_recommender_does(folders, architecture):
    found = pipeline(TASK, model=str(folders[architecture]), device="cpu")(BATCH, top_k=7, exclude_seen=True)

    wanted = Recommender.from_pretrained(folders[architecture], device="cpu").recommend(
        BATCH, top_k=7, exclude_seen=True
    )
    assert ids_of(found) == wanted.item_ids
    scores = [[entry["score"] for entry in answer] for answer in found]
    assert scores == [pytest.approx(row, abs=1e-4) for row in wanted.scores]


def test_list_of_strings_is_one_history_and_a_list_of_lists_a_batch(recommend):
    one = recommend(["i1", "i2"], top_k=3)
    (same,) = recommend([("i1", "i2")], top_k=3)

    assert [set(entry) for entry in one] == [{"item_id", "score", "title"}] * 3
    assert ids_of([one]) == ids_of([same])
    assert all(entry["title"] == entry["item_id"].replace("i", "T") for entry in one)


def test_empty_list_is_a_batch_of_no_users(recommend):
    assert recommend([]) == []
    assert len(recommend([[]])) == 1


def test_generator_of_ids_is_refused(recommend):
    with pytest.raises(TypeError, match="must hold histories, lists of item ids, got 'i1'"):
        list(recommend(item_id for item_id in ["i1", "i2"]))


def test_size_of_a_batch_changes_no_list(recommend):
    histories = [ITEM_IDS[start : start + length] for start, length in ((0, 25), (3, 1), (5, 4), (0, 0), (9, 2))]

    assert ids_of(recommend(histories, batch_size=2)) == ids_of([recommend([history])[0] for history in histories])


def test_unknown_ids_are_counted_once_and_left_out(recommend, caplog):
    answers = recommend([["i1", "no"], ["<pad>"]])

    assert ids_of(answers) == ids_of(recommend([["i1"], []]))
    (message,) = [record.getMessage() for record in caplog.records if "catalog" in record.getMessage()]
    assert message.startswith("2 history items are not in the catalog and are ignored: 'no', '<pad>'.")
    assert "Histories without an item left, answered as empty ones: 1." in message


def test_rules_hold_for_all_histories_of_a_call(recommend):
    first = recommend(BATCH, top_k=1)
    allowed = ["i5", "i6", "i7"]

    assert first[0][0]["item_id"] not in ids_of(recommend(BATCH, exclude_items=[first[0][0]["item_id"]]))[0]
    assert [set(row) for row in ids_of(recommend(BATCH, allow_items=allowed, exclude_seen=False))] == [
        set(allowed)
    ] * 3
    seen_and_excluded = recommend(["i5"], allow_items=allowed, exclude_items=["i6"], exclude_seen=True)
    assert ids_of([seen_and_excluded]) == [["i7"]]


def test_items_seen_before_the_part_that_is_read_are_excluded_too(recommend):
    history = ["i0", *ITEM_IDS[1:] * 2]

    assert recommend(history, exclude_seen=True) == []


def test_options_of_the_construction_hold_for_all_calls(folders):
    recommend = pipeline(TASK, model=str(folders["latte"]), device="cpu", top_k=2, num_beams=7)

    assert len(recommend(["i1"])) == 2
    assert len(recommend(["i1"], top_k=50, exclude_seen=False)) == len(ITEM_IDS)


def test_generator_is_answered_one_by_one(recommend):
    answers = recommend(history for history in BATCH)

    assert ids_of(answers) == ids_of(recommend(BATCH))


@pytest.mark.parametrize(
    ("histories", "options", "error", "text"),
    [
        ("i1", {}, TypeError, "a list of item ids"),
        (["i1", ["i2"]], {}, TypeError, "a mixture"),
        ([[1]], {}, TypeError, "must be strings"),
        (["i1"], {"top_k": 0}, ValueError, "`top_k` must be at least 1, got 0"),
        (
            ["i1"],
            {"beams": 3},
            TypeError,
            "no option `beams`: those of a LatteForConditionalGeneration are .*num_beam",
        ),
        (["i1"], {"return_paths": True}, TypeError, "no option `return_paths`"),
        (["i1"], {"allow_items": ["no"]}, ValueError, "`allow_items` holds no id of the catalog: 'no'"),
        (["i1"], {"allow_items": [["i1"]]}, TypeError, "`allow_items` must be one list of item ids"),
    ],
)
def test_wrong_calls_are_refused_at_the_door(recommend, histories, options, error, text):
    with pytest.raises(error, match=text):
        recommend(histories, **options)


def test_folder_without_titles_or_table_has_none(folders, tmp_path):
    bare = make_folder(tmp_path / "bare", titles=None)
    assert set(pipeline(TASK, model=str(bare), device="cpu")(["i1"])[0]) == {"item_id", "score"}

    (bare / "items.parquet").unlink()
    assert set(pipeline(TASK, model=str(bare), device="cpu")(["i1"])[0]) == {"item_id", "score"}


def test_item_without_a_title_shows_its_id(tmp_path):
    folder = make_folder(tmp_path, titles=[None] * len(ITEM_IDS))

    assert all(entry["title"] == entry["item_id"] for entry in pipeline(TASK, model=str(folder), device="cpu")(["i1"]))


def test_model_and_tokenizer_of_this_process_are_enough(folders):
    model = model_of("latte")
    tokenizer = AutoTokenizer.from_pretrained(folders["latte"])

    found = NextItemPipeline(model, tokenizer, device="cpu")(["i1"], top_k=3)

    assert [set(entry) for entry in found] == [{"item_id", "score"}] * 3
    with pytest.raises(ValueError, match="`tokenizer` is needed"):
        NextItemPipeline(model)


def test_saved_pipeline_is_found_again(folders, tmp_path, recommend):
    recommend.save_pretrained(tmp_path)

    assert ids_of([pipeline(TASK, model=str(tmp_path), device="cpu")(["i1"])]) == ids_of([recommend(["i1"])])
    assert (tmp_path / "pipeline_genrec.py").is_file()


def test_titles_of_other_items_are_an_error(folders, tmp_path):
    folder = shutil.copytree(folders["sasrec"], tmp_path / "copy")
    pq.write_table(pa.table({"item_id": ITEM_IDS[::-1], "title": ITEM_IDS}), folder / "items.parquet")
    (folder / "manifest.json").unlink()  # as in folders that were saved before there was one

    with pytest.raises(ValueError, match=r"items.parquet.* does not list the 29 items of the tokenizer"):
        pipeline(TASK, model=str(folder), device="cpu")(["i1"])


@pytest.fixture
def cache(tmp_path):
    """A cache of the Hub as a download leaves it: `me/shop` at two commits, the older one with other items."""
    commits = {"v1": "1" * 40, "main": "2" * 40}
    repository = tmp_path / "models--me--shop"
    for number, (name, commit) in enumerate(commits.items()):
        item_ids = [f"{name}-{item_id}" for item_id in ITEM_IDS]
        make_folder(repository / "snapshots" / commit, item_ids=item_ids, titles=item_ids, seed=number)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("revision", ["v1", "main", None])
def test_titles_are_those_of_the_revision_without_a_connection(cache, revision):
    recommend = pipeline(
        TASK, model="me/shop", revision=revision, model_kwargs={"cache_dir": str(cache)}, device="cpu"
    )

    answer = recommend([f"{revision or 'main'}-i1"], top_k=3)

    assert [entry["title"].partition("-")[0] for entry in answer] == [revision or "main"] * 3
    assert [entry["title"] for entry in answer] == [entry["item_id"] for entry in answer]


PROGRAM = """
import json, sys
from transformers import pipeline

answers, histories = {}, json.loads(sys.argv[1])
for folder in sys.argv[2:]:
    recommend = pipeline("next-item-recommendation", model=folder, trust_remote_code=True, device="cpu")
    answers[folder] = [recommend(histories, top_k=4), recommend(histories[0], top_k=4)]
    recommend.save_pretrained(folder + "-again")
again = pipeline("next-item-recommendation", model=folder + "-again", trust_remote_code=True, device="cpu")
answers["again"] = [again(histories, top_k=4), again(histories[0], top_k=4)]
try:
    pipeline("next-item-recommendation", model=folder, trust_remote_code=False)
except ValueError as error:
    answers["refused"] = str(error)
print(json.dumps(answers))
"""


def test_process_without_the_package_gets_the_same_lists(folders, tmp_path, stranger):
    paths = [str(shutil.copytree(folders[name], tmp_path / name)) for name in ("acerec", "latte", "sasrec")]

    process = stranger.run(PROGRAM, json.dumps(BATCH), *paths)

    assert process.returncode == 0, process.stderr
    answers = json.loads(process.stdout.splitlines()[-1])
    for path in paths:
        recommend = pipeline(TASK, model=path, device="cpu")
        assert ids_of(answers[path][0]) == ids_of(recommend(BATCH, top_k=4))
        assert ids_of([answers[path][1]]) == ids_of([recommend(BATCH[0], top_k=4)])
        assert answers[path][1][0]["title"] == answers[path][1][0]["item_id"].replace("i", "T")
    assert ids_of(answers["again"][0]) == ids_of(answers[paths[-1]][0])
    assert "trust_remote_code=True" in answers["refused"]
