import sys

import pytest

from line_plots import Panel, plot_lines


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


def test_panels_wrap_into_rows_and_may_share_their_axes(tmp_path):
    pytest.importorskip("matplotlib")
    panels = [Panel(str(number), {"a": [(0.0, number), (1.0, 2.0)]}) for number in range(3)]

    row = plot_lines(panels, tmp_path / "row.png", **LABELS).read_bytes()
    grid = plot_lines(panels, tmp_path / "grid.png", **LABELS, num_columns=2).read_bytes()
    shared = plot_lines(panels, tmp_path / "shared.png", **LABELS, num_columns=2, share_axes=True).read_bytes()

    height, width = (slice(start, start + 4) for start in (20, 16))  # where a PNG file tells its size
    assert grid[height] > row[height]
    assert grid[width] < row[width]
    assert shared != grid


def test_ticks_stand_where_they_are_asked_for(tmp_path):
    pytest.importorskip("matplotlib")
    panel = Panel("", {"a": [(2.0, 0.0), (6.0, 1.0)]})

    plain = plot_lines([panel], tmp_path / "plain.png", **LABELS).read_bytes()

    assert plot_lines([panel], tmp_path / "ticks.png", **LABELS, x_ticks=[2, 4, 6]).read_bytes() != plain


@pytest.mark.parametrize(("second", "legends"), [([(1.0, 2.0)], [["a", "b"]]), ([], [["a", "b"], ["a"]])])
def test_one_legend_names_all_lines_or_each_panel_has_its_own(tmp_path, monkeypatch, second, legends):
    axes = pytest.importorskip("matplotlib.axes")
    found, legend = [], axes.Axes.legend

    def noted(self, **options):
        found.append([line.get_label() for line in self.get_lines()])
        return legend(self, **options)

    monkeypatch.setattr(axes.Axes, "legend", noted)
    points = [(1.0, 3.0)]
    plot_lines(
        [Panel("1", {"a": points, "b": points}), Panel("2", {"a": points, "b": second})], tmp_path / "a.png", **LABELS
    )

    assert found == legends
