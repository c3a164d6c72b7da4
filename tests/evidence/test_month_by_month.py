"""A shop over months: figures per user, and those of all months together."""

import numpy as np
import pytest

import month_by_month
from month_by_month import summary, together, values_of


def test_figures_are_means_over_the_targets_of_a_user_and_new_ones_count_apart():
    lists, targets = [list("abc"), list("xyz")], [["b", "q"], ["x"]]

    values = values_of(lists, targets, {"q", "x"})

    assert values["recall@10"].tolist() == [0.5, 1.0]
    assert values["ndcg@10"].tolist() == pytest.approx([0.5 / np.log2(3), 1.0])
    assert values["recall@10 new"].tolist() == [0.0, 1.0]


def test_months_together_have_all_their_users():
    months = [{"values": {"frozen": {"recall@10": np.array(each)}}} for each in ([0.0, 1.0], [1.0])]

    assert together(months)["frozen"]["recall@10"]["mean"] == pytest.approx(2 / 3)
    assert together([]) == {}
    assert summary(np.array([]))["num_users"] == 0


def test_the_picture_has_a_line_for_each_way(tmp_path):
    found = {name: {"mean": 0.25, "interval": [0.2, 0.3]} for name in ("recall@10", "recall@10 new")}
    record = {"months": [{"month": f"2011-0{number}", "ways": {"frozen": found}} for number in (4, 5)]}

    month_by_month.draw(record, tmp_path / "months.png")

    assert (tmp_path / "months.png").stat().st_size > 5_000
