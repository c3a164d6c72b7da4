"""
One training in several processes against the same in one: loss curves, metrics, weights, evaluation.

    python scripts/evidence/benchmark_processes.py data --ids ids --output processes.json --plot processes.png
    python scripts/evidence/benchmark_processes.py data --architectures sasrec --processes 1 2 4 -- --epochs 2

Each training is `torchrun --nproc_per_node N scripts/train.py data ...` as a user would start it, with the same number
of targets per step, without dropout and latents: then only rounding differs. Beside it stand two runs whose random
numbers are equal by design, `1 x 2` (one process that accumulates two batches) and `2`, with the dropout of the
recipe. The run of one process is then evaluated by each number of processes, and the records are compared figure by
figure. Words behind `--` are further options of `hf-genrec train`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from hf_genrec.files import read_json, write_json
from line_plots import Panel, plot_lines


SCRIPTS = Path(__file__).resolve().parent.parent
STILL = {
    "latte": ["--latents", "0", "--dropout", "0", "--set", "dense_row_dropout=0"],
    "decoder": ["--latents", "0", "--dropout", "0", "--set", "dense_row_dropout=0"],
    "sasrec": ["--dropout", "0"],
}


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(words)
    rows, panels = [], []
    if arguments.work:
        os.makedirs(arguments.work, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        for architecture in arguments.architectures:
            runs = {}
            for number in arguments.processes:
                runs[str(number)] = train(Path(folder), architecture, arguments, number, STILL[architecture])
            rows += compared(architecture, "no dropout", runs)
            panels.append(panel(f"{architecture}, no dropout", runs))
            half = ["--gradient-accumulation-steps", "2"]
            runs = {
                "1 x 2": train(Path(folder), architecture, arguments, 1, half, targets=arguments.batch_size // 2),
                "2": train(Path(folder), architecture, arguments, 2, []),
            }
            rows += compared(architecture, "with dropout", runs)
            panels.append(panel(f"{architecture}, with dropout", runs))
            records = {number: evaluate(runs["2"], arguments, number) for number in arguments.processes}
            first = next(iter(records.values()))
            rows.append(
                {"architecture": architecture, "what": "evaluation", "processes": str(arguments.processes[-1])}
                | {"metrics": first["ndcg@10"], "equal": all(record == first for record in records.values())}
            )
    print_table(rows)
    record = {"rows": rows, "settings": {"batch_size": arguments.batch_size, "more": arguments.more}}
    record["machine"] = {"python": platform.python_version(), "torch": torch.__version__}
    if arguments.output:
        source = read_json(Path(arguments.prepared) / "dataset.json")["source"]
        write_json(record | {"data": source}, arguments.output)
    if arguments.plot:
        plot_lines(panels, arguments.plot, x_label="step", y_label="training loss", num_columns=2)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    words = list(sys.argv[1:] if words is None else words)
    more = words[words.index("--") + 1 :] if "--" in words else []
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", help="folder that `hf-genrec prepare` wrote")
    parser.add_argument("--ids", help="folder that `hf-genrec tokenize` wrote; sasrec needs none")
    parser.add_argument("--architectures", nargs="+", choices=STILL, default=["latte", "sasrec"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes (default 1 2)")
    parser.add_argument("--batch-size", type=int, default=512, help="targets per step of all processes (default 512)")
    parser.add_argument("--work", help="where runs are written for the time being")
    parser.add_argument("--output", help="JSON file for the figures")
    parser.add_argument("--plot", metavar="PNG", help="draw the loss curves")
    arguments = parser.parse_args(words[: words.index("--")] if "--" in words else words)
    arguments.more = more
    return arguments


def launched(number: int, *words: object) -> str:
    """What some processes write on stdout."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", number, "--master_port", port]
    command = [str(word) for word in (sys.executable, *launcher, *words)]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def train(
    folder: Path,
    architecture: str,
    arguments: argparse.Namespace,
    number: int,
    options: Sequence[str],
    *,
    targets: int | None = None,
) -> Path:
    run = folder / f"run{len(list(folder.iterdir()))}"
    words: list[Any] = [arguments.prepared, "--output", run, "--architecture", architecture]
    words += ["--ids", arguments.ids] if architecture != "sasrec" else []
    words += ["--batch-size", targets or arguments.batch_size // number, "--threads", 1, "--precision", "fp32"]
    words += ["--logging-steps", 10, *options, *arguments.more]
    launched(number, SCRIPTS / "train.py", *words)
    return run


def evaluate(run: Path, arguments: argparse.Namespace, number: int) -> dict[str, Any]:
    words = ["evaluate", run, arguments.prepared, "--split", "validation", "--no-baselines", "--json"]
    model = json.loads(launched(number, "-m", "hf_genrec.cli.main", *words))["model"]
    return {name: value for name, value in model.items() if name not in ("seconds_per_user", "seen_excluded")}


def compared(architecture: str, what: str, runs: dict[str, Path]) -> list[dict[str, Any]]:
    """The first run, and how far the others are from it."""
    first = next(iter(runs.values()))
    base, weights, rows = read_json(first / "training.json"), load_file(first / "model.safetensors"), []
    for name, run in runs.items():
        record, others = read_json(run / "training.json"), load_file(run / "model.safetensors")
        losses = [abs(mine - theirs) / mine for mine, theirs in zip(curve(base), curve(record), strict=True)]
        apart = max(float((weights[key].float() - others[key].float()).abs().max()) for key in weights)
        rows.append(
            {"architecture": architecture, "what": what, "processes": name, "metrics": record["best_metric"]}
            | {"steps": record["log_history"][-1]["step"], "loss": curve(record)[-1], "apart": max(losses)}
            | {"weights_apart": apart, "minutes": record["minutes"], "cpu_minutes": record["cpu_minutes"]}
        )
    return rows


def curve(record: dict[str, Any]) -> list[float]:
    return [line["loss"] for line in record["log_history"] if "loss" in line]


def panel(title: str, runs: dict[str, Path]) -> Panel:
    lines = {}
    for name, run in runs.items():
        history = read_json(run / "training.json")["log_history"]
        lines[f"{name} processes"] = [(line["step"], line["loss"]) for line in history if "loss" in line]
    return Panel(title, lines)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    columns = ("model", "what", "processes", "last loss", "loss apart", "weights apart", "ndcg@10", "CPU min", "equal")
    table = Table(*columns, title="Several processes against one")
    for row in rows:
        values = [f"{row[name]:.4g}" if name in row else "–" for name in ("loss", "apart", "weights_apart")]
        values += [f"{row['metrics']:.4f}", f"{row.get('cpu_minutes', '–')}", str(row.get("equal", "–"))]
        table.add_row(row["architecture"], row["what"], row["processes"], *values)
    Console().print(table)


if __name__ == "__main__":
    main()
