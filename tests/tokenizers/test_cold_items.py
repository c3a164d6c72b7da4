"""The newest items are held out of training and stay everywhere else; what they can still be is recommended."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from typer.testing import CliRunner

from hf_genrec.cli.main import app
from hf_genrec.cli.tables import preparation_notes
from hf_genrec.data import steps
from hf_genrec.data.checks import check_trained_on
from hf_genrec.data.engines import DuckDB
from hf_genrec.data.prepare import prepare
from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.record import evaluation_run, read_training
from hf_genrec.serving.recommender import Recommender
from hf_genrec.tokenizers.folder import load_tokenized, tokenize_items
from hf_genrec.training.arguments import training_arguments
from hf_genrec.training.initial import start_fresh, start_from
from hf_genrec.training.runs import run_settings, train_run


# d and e come last (at 30 and 32); w's training part is d alone, x has a training part only.
LOG = pa.table(
    {
        "user_id": [*"uuuuu", *"vvvv", *"www", "x"],
        "item_id": [*"abdce", *"bdca", *"dea", "c"],
        "timestamp": [1, 2, 33, 40, 50, 3, 30, 31, 45, 31, 32, 60, 4],
    }
)
ITEMS = [{"item_id": name, "title": f"Item {name}"} for name in "edcbaz"]


def rows_of(prepared, split):
    return [(row["user_id"], "".join(row["history"]), row["target"]) for row in prepared.split(split)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = DuckDB(tmp_path_factory.mktemp("engine"))
    yield engine
    engine.close()


def newest(engine, rows, share, *, times=None, num_rows=None):
    """The newest items of a log, of which only the first rows count."""
    users, items = zip(*rows, strict=True)
    places, counts = range(len(rows)), np.arange(len(rows)) < (num_rows or len(rows))
    clock = pa.array(places if times is None else times, pa.int64())
    columns = {"user_id": users, "item_id": items, "timestamp": clock, "position": places, "is_good": counts}
    engine.load("source_rows", pa.table(columns).to_reader())
    steps.number_ids(engine)
    return steps.newest_items(engine, share).to_pylist()


def test_an_item_is_as_old_as_its_first_interaction(engine):
    assert newest(engine, [("u", "a"), ("v", "b"), ("u", "c"), ("w", "a"), ("v", "d")], 0.5) == ["c", "d"]


def test_of_equally_old_items_the_one_named_first_is_older(engine):
    rows = [*zip("uvw", "cab", strict=True)]

    assert newest(engine, rows, 0.4, times=[7] * 3) == ["b"]
    assert newest(engine, rows, 0.6, times=[7] * 3) == ["a", "b"]


def test_without_times_the_newest_items_are_those_that_come_latest_in_all_histories(engine):
    rows = [("u", "a"), ("u", "b"), ("u", "c"), ("v", "c"), ("v", "a"), ("v", "d"), ("v", "b")]

    assert newest(engine, rows, 0.5, times=[None] * 7) == ["b", "d"]  # after 1 and 2 items at the earliest


def test_items_that_a_filter_took_away_do_not_count(engine):
    assert newest(engine, [*zip("uuu", "abc", strict=True)], 0.5, num_rows=2) == ["b"]


@pytest.mark.parametrize(("share", "match"), [(0.0, "between 0 and 1"), (0.1, "of 3 items are 0"), (0.9, "are 3")])
def test_a_share_that_leaves_one_side_empty_is_refused(engine, share, match):
    with pytest.raises(ValueError, match=match):
        newest(engine, [("u", "a"), ("u", "b"), ("v", "c")], share)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("uvwxy"), st.sampled_from("abcdefgh")), min_size=4, max_size=40))
def test_no_other_item_begins_later_than_one_of_the_newest(engine, rows):
    first = {}
    for time, (_, item) in enumerate(rows):
        first.setdefault(item, time)
    number = round(0.4 * len(first))
    if not 0 < number < len(first):
        return

    assert newest(engine, rows, 0.4) == sorted(first, key=first.get)[-number:]


def test_newest_items_leave_the_training_part_and_nothing_else(tmp_path):
    whole = prepare(tmp_path / "whole", interactions=LOG, items=ITEMS)
    cold = prepare(tmp_path / "cold", interactions=LOG, items=ITEMS, cold_items=0.4)

    assert cold.cold_item_ids == ["d", "e"]
    assert rows_of(cold, "train") == [("u", "a", "b"), ("v", "", "b"), ("x", "", "c")]
    assert rows_of(whole, "train") == [("u", "ab", "d"), ("v", "b", "d"), ("w", "", "d"), ("x", "", "c")]
    assert (
        rows_of(cold, "validation")
        == rows_of(whole, "validation")
        == [
            ("u", "abd", "c"),
            ("v", "bd", "c"),
            ("w", "d", "e"),
        ]
    )
    assert rows_of(cold, "test") == rows_of(whole, "test") == [("u", "abdc", "e"), ("v", "bdc", "a"), ("w", "de", "a")]
    assert cold.item_ids == whole.item_ids == [*"edcba"]
    assert dict(zip(cold.item_ids, cold.train_item_counts(), strict=True)) == {"e": 0, "d": 0, "c": 1, "b": 2, "a": 1}


def test_what_is_held_out_is_counted_and_named_by_the_fingerprint(tmp_path, caplog):
    whole = prepare(tmp_path / "whole", interactions=LOG, items=ITEMS)
    cold = prepare(tmp_path / "cold", interactions=LOG, items=ITEMS, cold_items=0.4)

    assert cold.metadata["cold_items"] == {
        "share": 0.4,
        "newest_by": "time",
        "num_items": 2,
        "num_train_interactions": 3,
        "num_train_users": 3,
        "num_users_without_training": 1,
        "num_validation_targets": 1,
        "num_test_targets": 1,
    }
    assert cold.metadata["splits"] == {"train": 3, "validation": 3, "test": 3}
    assert (cold.metadata["num_train_targets"], whole.metadata["num_train_targets"]) == (1, 3)
    assert cold.metadata["statistics"] == whole.metadata["statistics"]
    assert cold.fingerprint == cold.compute_fingerprint() != whole.fingerprint
    assert (whole.cold_item_ids, whole.metadata["cold_items"]) == ([], None)
    assert "held out of training: 2 items, the newest by time, with 3 training interactions of 3 users (1 are" in (
        " ".join(preparation_notes(cold.metadata))
    )
    assert "left to train on" not in " ".join(preparation_notes(cold.metadata))
    assert "no times" not in caplog.text


def test_holding_out_most_of_the_training_part_is_warned_of(tmp_path):
    colder = prepare(tmp_path / "colder", interactions=LOG, items=ITEMS, cold_items=0.6)

    assert "only 3 of 7 training interactions are left to train on" in preparation_notes(colder.metadata)[-1]


def test_items_held_out_are_part_of_the_fingerprint_even_where_nobody_would_be_trained_on_them(tmp_path):
    log = pa.table({"user_id": [*"uuuvvv"], "item_id": [*"abcabd"], "timestamp": [1, 2, 5, 3, 4, 6]})
    whole = prepare(tmp_path / "whole", interactions=log, items=ITEMS)
    cold = prepare(tmp_path / "cold", interactions=log, items=ITEMS, cold_items=0.25)

    assert rows_of(cold, "train") == rows_of(whole, "train")
    assert cold.fingerprint != whole.fingerprint


def test_a_log_without_times_says_what_newest_means(tmp_path, caplog):
    cold = prepare(tmp_path / "cold", interactions=LOG, items=ITEMS, timestamp=None, cold_items=0.2)

    assert cold.metadata["cold_items"]["newest_by"] == "place in the histories"
    assert "The log has no times" in caplog.text


def test_a_log_may_be_held_out_against_a_given_catalog(tmp_path):
    cold = prepare(tmp_path / "cold", interactions=LOG, items=ITEMS, keep_all_items=True, cold_items=0.4)

    assert cold.item_ids == [*"edcbaz"]
    assert cold.cold_item_ids == ["d", "e"]  # z was never taken: the share is one of the items that were


@pytest.mark.parametrize("share", [-0.1, 1.0, 5.0])
def test_a_share_outside_of_its_range_is_refused_before_anything_is_read(tmp_path, share):
    with pytest.raises(ValueError, match="`cold_items` is a share"):
        prepare(tmp_path / "data", interactions=tmp_path / "absent.csv", items=ITEMS, cold_items=share)


def test_the_command_holds_items_out_and_says_so(tmp_path):
    lines = [f"{u}\t{' '.join(i)}\n" for u, i in {"u": "abcde", "v": "bacd", "w": "cbae"}.items()]
    (tmp_path / "sequences.tsv").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS), encoding="utf-8")
    words = ["--sequences", tmp_path / "sequences.tsv", "--items", tmp_path / "items.jsonl", "--cold-items", "0.2"]

    done = CliRunner().invoke(app, ["prepare", *map(str, words), "--output", str(tmp_path / "data")])

    assert done.exit_code == 0, done.output
    assert "held out of training: 1 items, the newest by place" in " ".join(done.output.split())
    assert PreparedDataset.load(tmp_path / "data").cold_item_ids == ["e"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `whole` and `cold` data, `ids` learned on the cold ones, and `run`, trained on them for a step."""
    folder, generator = tmp_path_factory.mktemp("cold"), np.random.default_rng(3)
    order = [NAMES[i] for user in range(9) for i in generator.permutation(12)[:6]]
    users = [f"u{row // 6}" for row in range(len(order))]
    log = pa.table({"user_id": users, "item_id": order, "timestamp": range(len(order))})
    items = [{"item_id": name, "title": name} for name in NAMES]
    prepare(folder / "whole", interactions=log, items=items)
    prepared = prepare(folder / "cold", interactions=log, items=items, cold_items=0.25)
    matrix = folder / "embeddings.safetensors"
    save_file({"embeddings": generator.normal(size=(12, 7)).astype(np.float32)}, matrix)
    tokenize_items(prepared, matrix, folder / "ids", num_levels=2, codebook_size=4, num_whitened=0)
    starting = start_fresh(prepared, folder / "ids", shape=SHAPE, seed=0)
    train_run(prepared, starting, folder / "run", training_arguments(folder / "run", settings={"max_steps": 1}))
    return folder


NAMES = [f"item-{number:02}" for number in range(12)]
SHAPE = {"num_latent_tokens": 2, "d_model": 8, "d_ff": 12, "num_heads": 2, "num_layers": 1}


def test_a_cold_item_gets_codes_of_its_own_and_can_be_recommended(trained):
    cold = PreparedDataset.load(trained / "cold").cold_item_ids
    recommender = Recommender.from_pretrained(trained / "run", num_beams=12)

    assert len(cold) == 3
    assert load_tokenized(trained / "ids")[0].is_unique
    allowed = recommender.recommend([[NAMES[0]]], top_k=3, allow_items=cold)
    assert sorted(allowed.item_ids[0]) == sorted(cold)
    assert set(recommender.recommend([cold], top_k=12, exclude_seen=False).item_ids[0]) == set(NAMES)


def test_a_run_of_the_cold_data_is_not_evaluated_on_the_whole_ones(trained):
    def evaluate(folder):
        words = ["evaluate", trained / "run", trained / folder, "--beams", 20, "--no-baselines", "--json"]
        return CliRunner().invoke(app, [*map(str, words)])

    fine, refused = evaluate("cold"), evaluate("whole")

    record, cold = json.loads(fine.stdout), PreparedDataset.load(trained / "cold")
    assert record["run"]["trained_on"] == [cold.fingerprint]
    assert record["cold_items"] == {"share": 0.25, "num_items": 3}
    assert (refused.exit_code, "prepare another log over these items with `--keep-all-items`" in refused.stderr) == (
        2,
        True,
    )


def test_codes_of_other_training_items_are_warned_of_when_a_model_starts(trained, caplog):
    start_fresh(PreparedDataset.load(trained / "cold"), trained / "ids", shape=SHAPE, seed=0)
    assert "were learned from" not in caplog.text

    start_fresh(PreparedDataset.load(trained / "whole"), trained / "ids", shape=SHAPE, seed=0)

    assert "ids were learned from the training items of the data" in caplog.text


def tuning_arguments(folder):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    return training_arguments(folder, settings=settings)


@pytest.fixture(scope="module")
def tuned(trained):
    """A run that goes on from `run` with the whole data, for two steps."""
    whole, folder = PreparedDataset.load(trained / "whole"), trained / "tuned"
    args = tuning_arguments(folder)
    return train_run(whole, start_from(whole, trained / "run"), folder, args), folder, args


def test_run_tells_of_all_data_that_its_weights_have_seen(trained, tuned, caplog):
    cold, whole = (PreparedDataset.load(trained / name) for name in ("cold", "whole"))
    record, folder, args = tuned

    assert record["settings"]["trained_on"] == [cold.fingerprint, whole.fingerprint]
    run = evaluation_run(folder, num_beams=20, latent_aggregation="max")
    assert run["trained_on"] == [cold.fingerprint, whole.fingerprint]
    assert (run["policy"], run["num_levels"], run["codebook_size"]) == ("widen", 2, 4)  # of the checkpoint's ids
    again = start_from(cold, folder)
    assert run_settings(cold, again, args)["trained_on"] == [whole.fingerprint, cold.fingerprint]
    assert "trained_on" not in read_training(trained / "run")["settings"]
    check_trained_on(record, whole.metadata, owner="The run")
    assert f"The run was trained on the data {cold.fingerprint}, these are" in caplog.text


def test_tuning_begun_before_runs_told_of_their_data_is_resumed(trained, tuned, tmp_path):
    whole = PreparedDataset.load(trained / "whole")
    folder = shutil.copytree(tuned[1], tmp_path / "tuned")
    (folder / "training.json").unlink()
    begun = json.loads((folder / "checkpoints" / "run.json").read_text(encoding="utf-8"))
    assert begun.pop("trained_on")
    (folder / "checkpoints" / "run.json").write_text(json.dumps(begun), encoding="utf-8")

    args = tuning_arguments(folder)
    record = train_run(whole, start_from(whole, trained / "run"), folder, args, resume=True)

    assert record["resumed_from"] == "checkpoint-2"
    assert len(record["settings"]["trained_on"]) == 2
