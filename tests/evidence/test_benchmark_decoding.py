"""The decoding benchmark at tiny sizes: what it compares, what it checks and what it writes."""

import json
import sys

import pytest
import torch


INFINITY = float("inf")


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("benchmark_decoding")


@pytest.fixture
def run(script, monkeypatch):
    def run_with(*words):
        monkeypatch.setattr(sys, "argv", ["benchmark_decoding.py", *map(str, words)])
        script.main()

    return run_with


def lists(script, items, scores):
    return script.Lists(torch.tensor(items), torch.tensor(scores))


@pytest.mark.parametrize(
    ("items", "scores", "is_same"),
    [
        ([[3, 5, 7]], [[-1.0, -2.0, -3.0]], True),
        ([[3, 5, 7]], [[-1.00005, -2.0, -3.0]], True),
        ([[3, 5, 7]], [[-1.001, -2.0, -3.0]], False),
        ([[5, 3, 7]], [[-1.0, -2.0, -3.0]], False),
        ([[3, 6, 7]], [[-1.0, -2.0, -3.0]], False),
        ([[3, 5, 8]], [[-1.0, -2.0, -3.0]], True),  # a tie with what the other list ends before
    ],
)
def test_lists_are_the_same_but_for_ties(script, items, scores, is_same):
    reference = lists(script, [[3, 5, 7]], [[-1.0, -2.0, -3.0]])

    assert script.same_lists(reference, lists(script, items, scores))[0] is is_same


def test_items_with_equal_scores_may_change_places(script):
    first = lists(script, [[3, 5, 7]], [[-1.0, -1.00005, -3.0]])

    assert script.same_lists(first, lists(script, [[5, 3, 7]], [[-1.0, -1.00005, -3.0]]))[0]


def test_users_whose_list_is_short_are_not_compared(script):
    first = lists(script, [[3, 5], [3, 0]], [[-1.0, -2.0], [-1.0, -INFINITY]])
    second = lists(script, [[3, 5], [9, 8]], [[-1.0, -2.25], [-7.0, -8.0]])

    assert script.same_lists(first, second) == (False, 0.25)
    nobody = script.same_lists(lists(script, [[3]], [[-INFINITY]]), lists(script, [[4]], [[-1.0]]))
    assert nobody == (False, INFINITY)  # nothing was compared


def test_beams_that_end_at_one_item_are_one_item_with_the_best_score(script):
    model = script.build_model(7, 2, script.QUICK, torch.device("cpu"), 0)
    first = model.config.first_item_token
    items = torch.tensor([first + 2, first + 5, first + 2, first + 6])
    latents = torch.full((4, 1), model.config.first_latent_token)
    sequences = torch.cat([torch.zeros(4, 1, dtype=torch.long), latents, model.semantic_id_tokens(items)], dim=1)

    found = script.lists_of_sequences(model, sequences, torch.tensor([-1.0, -2.0, -3.0, -4.0]), 1, 3)

    assert (found.items - first).tolist() == [[2, 5, 6]]
    assert found.scores.tolist() == [[-1.0, -2.0, -4.0]]


def test_three_ways_to_decode_agree_and_the_figures_are_written(run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    output = tmp_path / "speed.json"
    output.write_text('{"memory": {"rows": []}}', encoding="utf-8")

    run("--quick", "--parts", "grid", "catalog", "history", "--latents", 0, 3, "--output", output)

    report = json.loads(output.read_text(encoding="utf-8"))
    rows = report["grid"]["rows"]
    cells = [(row["num_latent_tokens"], row["num_users"], row["num_beams"]) for row in rows]
    assert cells == [(latents, users, beams) for latents in (0, 3) for users in (1, 3) for beams in (10, 24)]
    assert all(all(row["same_items"].values()) for row in rows)
    assert ["stock" in row["variants"] for row in rows] == [True, True, True, False] * 2
    assert rows[3]["without_stock"].startswith("72 rows are more than 40")
    assert rows[3]["compared_with"] == "generate"
    stock, ours = (rows[0]["variants"][name]["milliseconds"] for name in ("stock", "recommend"))
    assert rows[0]["ratio_to_stock"]["recommend"] == pytest.approx(stock / ours, abs=0.02)
    assert [row["num_items"] for row in report["catalog"]["rows"]] == [500, 900]
    assert [row["history_length"] for row in report["history"]["rows"]] == [2, 7]
    assert report["memory"] == {"rows": []}, "a part that was not run keeps its figures"
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "times stock" in capsys.readouterr().out


def test_a_run_that_was_stopped_leaves_its_cells_and_the_next_one_goes_on_behind_them(
    run, script, tmp_path, monkeypatch
):
    output, measured = tmp_path / "speed.json", []
    words = ["--quick", "--parts", "history", "--output", output]

    def timed(calls, sizes, device):
        measured.append(sorted(calls))
        if len(measured) == 2:
            raise KeyboardInterrupt
        return {name: [float(len(measured))] for name in calls}

    monkeypatch.setattr(script, "time_in_turns", timed)
    with pytest.raises(KeyboardInterrupt):
        run(*words)
    left = json.loads(output.read_text(encoding="utf-8"))["history"]["rows"]
    run(*words, "--resume")
    resumed = json.loads(output.read_text(encoding="utf-8"))["history"]["rows"]
    run(*words, "--resume", "--seed", 1)  # other settings: none of the cells are kept

    assert [row["history_length"] for row in left] == [2]
    assert [row["history_length"] for row in resumed] == [2, 7]
    assert resumed[0] == left[0]
    assert resumed[1]["variants"]["recommend"]["milliseconds"] == 3000
    assert len(measured) == 5


def test_clock_starts_and_stops_when_a_gpu_has_nothing_left_to_do(script, monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("wait"))
    monkeypatch.setattr(script.time, "perf_counter", lambda: events.append("clock") or len(events))

    script.seconds_of(lambda: events.append("call"), torch.device("cuda"))

    assert events == ["wait", "clock", "call", "wait", "clock"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_of_a_call_is_printed_for_the_process_that_asked(run, capsys):
    run("--quick", "--cell", "recommend", 2, 10)

    assert 0 <= json.loads(capsys.readouterr().out)["peak_growth_mb"] < 500


def test_turns_go_on_until_there_are_enough_of_them_and_of_seconds(script, monkeypatch):
    calls = []
    durations = {"slow": 4.0, "fast": 1.0}
    monkeypatch.setattr(script, "seconds_of", lambda call, device: durations[call()])

    sizes = script.Sizes(seconds=22.0, min_turns=3)
    seconds = script.time_in_turns(
        {name: lambda name=name: calls.append(name) or name for name in durations}, sizes, torch.device("cpu")
    )

    assert seconds == {"slow": [4.0] * 5, "fast": [1.0] * 5}
    assert calls == ["slow", "fast"] * 5
