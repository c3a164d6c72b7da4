"""
Runs of language models beside each other: what differs in their settings, validation, test, minutes.

    python scripts/evidence/smollm2_folder.py cut6 --layers 6
    hf-genrec train data --ids ids --architecture llm --backbone cut6 --output words --set init=words
    hf-genrec train data --ids ids --architecture llm --backbone cut6 --output mean --set init=mean
    hf-genrec evaluate words data
    python scripts/evidence/llm_runs.py words mean

Settings are compared on validation users. A run has columns of the test split if it was evaluated, which is for final
rows. The table is Markdown, on stdout.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


HEADER = [
    "run", "settings", "steps", "targets", "validation ndcg@10", "validation loss", "test recall@10", "test ndcg@10",
    "recall@10, other column", "ndcg@10, other column", "invalid", "CPU minutes", "MB",
]  # fmt: skip
NONE = "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of hf-genrec train --architecture llm")
    rows = table([(path.name, read_run(path)) for path in parser.parse_args().runs])
    print("\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]))


def read_run(folder: Path) -> dict[str, Any]:
    """`training` and, where there is one, `evaluation` of a run folder, and `megabytes` of its weights."""
    run: dict[str, Any] = {"training": json.loads((folder / "training.json").read_text(encoding="utf-8"))}
    if (folder / "evaluation.json").is_file():
        run["evaluation"] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    run["megabytes"] = sum(path.stat().st_size for path in folder.glob("*model*.safetensors")) / 2**20
    return run


def table(runs: list[tuple[str, Mapping[str, Any]]]) -> list[list[str]]:
    """The header and a row for each run; only settings that are not the same for all are shown."""
    settings = [_flat(run["training"]) for _, run in runs]
    names = [name for name in settings[0] if len({json.dumps(of_run[name]) for of_run in settings}) > 1]
    rows = [HEADER]
    for (name, run), of_run in zip(runs, settings, strict=True):
        training, evaluation = run["training"], run.get("evaluation")
        log = [entry for entry in training["log_history"] if "eval_loss" in entry]
        best = max(log, key=lambda entry: entry["eval_ndcg@10"], default=None)
        rows.append([
            name,
            ", ".join(f"{key} {_short(of_run[key])}" for key in names) or NONE,
            str(max((entry["step"] for entry in training["log_history"]), default=0)),
            f"{training['num_train_targets']:,}",
            NONE if best is None else f"{best['eval_ndcg@10']:.4f}",
            NONE if best is None else f"{best['eval_loss']:.3f}",
            *_test(evaluation),
            f"{training['cpu_minutes']:.1f}",
            f"{run['megabytes']:.1f}",
        ])  # fmt: skip
    return rows


def _flat(training: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for: settings of the language model, learning rate and seed."""
    settings = training["settings"]
    kept = {name: settings["training"].get(name) for name in ("learning_rate", "per_device_train_batch_size")}
    return settings["llm"] | kept | {"seed": settings["seed"]}


def _short(value: Any) -> str:
    """A setting in a cell: of a mix the other tasks than the sequential one, of a folder its name."""
    if isinstance(value, dict):
        return " ".join(f"{name} {weight:g}" for name, weight in value.items() if name != "sequential") or "none"
    return Path(value).name if isinstance(value, str) else f"{value}"


def _test(evaluation: Mapping[str, Any] | None) -> list[str]:
    """Cells of the test split: recall and ndcg with intervals in both columns, and the share of invalid lists."""
    if evaluation is None or evaluation["split"] != "test":
        return [NONE] * 5
    model = evaluation["model"]
    other = model.get("seen_excluded") or model.get("seen_allowed") or {}
    cells = [_cell(values, metric) for values in (model, other) for metric in ("recall@10", "ndcg@10")]
    return [*cells, f"{max(model['invalid_rate'], other.get('invalid_rate', 0.0)):g}"]


def _cell(values: Mapping[str, Any], metric: str) -> str:
    if metric not in values:
        return NONE
    low, high = values["intervals"][metric]
    return f"{values[metric]:.4f} [{low:.4f}, {high:.4f}]"


if __name__ == "__main__":
    main()
