import sys

import pytest

from hf_genrec.plots import Panel, plot_lines


LABELS = {"x_label": "beams", "y_label": "milliseconds"}


def test_plot_is_a_png_in_a_new_folder_and_the_same_points_give_the_same_bytes(tmp_path):
    pytest.importorskip("matplotlib")
    points, interval = [(500.0, 3.0), (10.0, 1.0)], [(2.0, 4.0), (0.5, 1.5)]
    panels = [Panel("1 user", {"ours": points, "stock": []}, {"ours": interval}), Panel("3 users", {"stock": points})]

    paths = [plot_lines(panels, tmp_path / name / "a.png", **LABELS, log_x=True, log_y=True) for name in "bc"]

    first, second = (path.read_bytes() for path in paths)
    assert first.startswith(b"\x89PNG")
    assert first == second
    assert first != plot_lines(panels, tmp_path / "linear.png", **LABELS).read_bytes()


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    with pytest.raises(ImportError, match=r'pip install "hf-genrec\[plot\]"'):
        plot_lines([Panel("", {})], tmp_path / "a.png", **LABELS)


def test_plot_needs_a_panel(tmp_path):
    with pytest.raises(ValueError, match="`panels` must hold at least one"):
        plot_lines([], tmp_path / "a.png", **LABELS)
