"""Times of histories reach a model that reads them, and count as unknown where there are none."""

import logging

import pyarrow as pa
import pytest

from hf_genrec import Recommender
from hf_genrec.data.prepare import prepare
from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.evaluate import EvaluationSettings, evaluate
from hf_genrec.serving.times import _say_that_times_are_unknown, mask_values
from invariants.model import make_sasrec


NAMES = [*"abcdefg"]
HOUR = 60 * 60 * 1000


@pytest.fixture
def shop():
    model = make_sasrec(num_items=len(NAMES), history_gap_buckets=16)
    model.encoder.gaps.weight.data.normal_()
    return Recommender(model, pa.table({"item_id": NAMES}), batch_size=2)


def test_each_known_item_has_its_bucket_and_unknown_ones_none():
    histories, times = [["a", "x", "b"], [], ["c"]], [[0, HOUR, HOUR + 2000], [], None]

    values = mask_values(histories, times, is_one=False, known=set(NAMES))

    assert values == [[1, 4], [], [1]]  # b came two seconds after x
    assert mask_values([["a", "b"]], [0, 0], is_one=True, known=set(NAMES)) == [[1, 2]]


@pytest.mark.parametrize(
    ("times", "match"), [([[1, 2]], r"a list per history \(2\), got 1"), ([[1], [1]], "of user 0 has 2, its times 1")]
)
def test_times_of_other_numbers_are_refused(shop, times, match):
    with pytest.raises(ValueError, match=match):
        shop.recommend([["a", "b"], ["c"]], times=times)


def test_lists_and_scores_follow_the_times_of_each_user(shop):
    histories, times = [["a", "b", "c"], ["d"], ["c", "e"]], [[0, 5 * HOUR, 5 * HOUR], [7], [0, 1000]]

    found = shop.recommend(histories, times=times, top_k=3, exclude_seen=False)

    scores = shop.score_items(histories, times=times)
    for user, (history, row) in enumerate(zip(histories, times, strict=True)):
        alone = shop.recommend(history, times=row, top_k=3, exclude_seen=False)
        assert list(alone.item_ids) == found.item_ids[user]
        assert found.scores[user] == pytest.approx(sorted(scores[user].tolist(), reverse=True)[:3], abs=1e-5)
    assert abs(scores - shop.score_items(histories))[0].max() > 1e-3


def test_missing_times_are_said_once_and_count_as_unknown(shop, caplog):
    _say_that_times_are_unknown.cache_clear()

    with caplog.at_level(logging.WARNING, logger="hf_genrec"):
        without = shop.recommend([["a", "b"]], exclude_seen=False)
        shop.recommend([["a", "b"]])

    assert [record.message for record in caplog.records] == [
        "The model reads the times between items, and none are given: they count as unknown."
    ]
    assert without.scores == shop.recommend([["a", "b"]], times=[None], exclude_seen=False).scores


def test_a_model_without_buckets_takes_times_and_reads_none():
    shop = Recommender(make_sasrec(num_items=len(NAMES)), pa.table({"item_id": NAMES}))

    assert shop.recommend(["a", "b"], times=[0, 5]) == shop.recommend(["a", "b"])


def test_an_evaluation_hands_over_the_times_of_the_split(shop, tmp_path):
    log = [
        {"user_id": f"u{u}", "item_id": NAMES[(u + i) % 7], "timestamp": 1000 * i**u}
        for u in range(5)
        for i in range(6)
    ]
    data: PreparedDataset = prepare(
        tmp_path / "data", interactions=log, items=[{"item_id": name, "title": name} for name in NAMES]
    )
    rows = data.split("test")

    record = evaluate(shop, data, EvaluationSettings(ks=(7,), exact_sample=5), baselines={})

    lists = shop.recommend(rows["history"][:], times=rows["timestamps"][:], top_k=7, exclude_seen=False).item_ids
    targets = rows["target"][:]
    assert record.users["rank"].to_pylist() == [row.index(target) for row, target in zip(lists, targets, strict=True)]
    assert record["model"]["exact_gap"]["overlap@7"] == 1.0
    untimed = shop.recommend(rows["history"][:], top_k=7, exclude_seen=False).item_ids
    assert lists != untimed
