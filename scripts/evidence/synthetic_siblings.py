"""
Who learns to tell siblings apart that different users like: TIGER/PSID, Latte and SASRec on an invented world.

    python scripts/evidence/synthetic_siblings.py --output siblings.json --plot siblings.png
    python scripts/evidence/synthetic_siblings.py --output pilot.json --widths 16 --seeds 1 --steps 100

Two groups of users, triples of items of which A likes the first and B the third (`hf_genrec/synthetic.py`). Every step
trains on new users, so nothing can be learnt by heart: what is measured is what a network of some width can express
and how soon it does. TIGER and PSID are one network here, as no two items share an id. The tree "siblings" puts a
triple below one prefix; "aligned", the control, has the same leaves with items below a prefix that the same users
like. A run has learnt the pattern when for 95 % of held-out users and triples the order is the true one, in both
groups; it ends when that held at eight measurements in a row, and from the first of them the pattern counts as learnt.
Runs end at different steps, so order and divergence are shown at the last step that all of them have measured.

Runs that the output holds already are skipped, so an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import AutoModel

from hf_genrec import LatteConfig, SASRecConfig
from hf_genrec.cli.command_line import command_line
from hf_genrec.evaluation.tree import pair_correlations, reversal_rates
from hf_genrec.files import write_json
from hf_genrec.training.trainer import keep_freed_memory
from line_plots import Panel, plot_lines
from synthetic import SiblingWorld, make_sibling_world, pattern_report
from tree_results import measured_at, shared_step


SYSTEMS: dict[str, dict[str, Any]] = {
    "TIGER/PSID": {"tree": "siblings", "num_latent_tokens": 0},
    "Latte, 2 latents": {"tree": "siblings", "num_latent_tokens": 2},
    "Latte, 8 latents": {"tree": "siblings", "num_latent_tokens": 8},
    "SASRec": {"tree": None},
    "TIGER/PSID, aligned tree": {"tree": "aligned", "num_latent_tokens": 0},
}
LEARNED = 0.95
STAYS = 8  # measurements in a row after which a run ends
HISTORY_LENGTH = 8
HELD_OUT = 10_000_019  # a seed that no run has


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(words)
    keep_freed_memory()
    record = open_record(arguments)
    cells = [
        (name, width, seed)
        for seed in range(1, arguments.seeds + 1)
        for width in arguments.widths
        for name in arguments.systems
    ]
    done = {(run["system"], run["width"], run["seed"]) for run in record["runs"]}
    for name, width, seed in tqdm([cell for cell in cells if cell not in done], desc="Runs"):
        record["runs"].append(train(name, width, seed, arguments))
        write_json(record, arguments.output)
    if arguments.plot is not None:
        plot(record, arguments.plot)
    Console().print(table_of(record))


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, help="the JSON record")
    parser.add_argument("--plot", type=Path, help="a PNG of the finished runs")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="NAME")
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--steps", type=int, default=1200, help="most optimizer steps (default 1200)")
    parser.add_argument("--every", type=int, default=25, help="steps between two measurements (default 25)")
    parser.add_argument("--users", type=int, default=48, help="new users per step (default 48)")
    parser.add_argument("--held-out", type=int, default=128, help="users of a measurement (default 128)")
    parser.add_argument("--triples", type=int, default=9, help="triples of the world (default 9)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="of AdamW, constant (default 3e-3)")
    return parser.parse_args(words)


def open_record(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record as far as it got, or a new one."""
    names = ("steps", "every", "users", "held_out", "triples", "learning_rate")
    settings = {name: getattr(arguments, name) for name in names} | {"learned": LEARNED, "stays": STAYS}
    settings |= {"history": HISTORY_LENGTH}
    if not arguments.output.exists():
        return {"command": f"python scripts/{command_line()}", "settings": settings, "runs": []}
    old = json.loads(arguments.output.read_text(encoding="utf-8"))
    if old["settings"] != settings:
        raise SystemExit(f"{arguments.output} was begun with {old['settings']}: repeat them or choose another file.")
    return old


def make_model(name: str, width: int, world: SiblingWorld) -> Any:
    """One block that reads and one that writes, or for SASRec two that read; no dropout, since no user comes twice."""
    shape = SYSTEMS[name]
    if shape["tree"] is None:
        return AutoModel.from_config(
            SASRecConfig(
                num_items=world.num_items,
                d_model=width,
                num_heads=2,
                num_layers=2,
                dropout_rate=0.0,
                max_history_length=HISTORY_LENGTH,
            )
        )
    config = LatteConfig(
        num_items=world.num_items,
        num_levels=3,
        codebook_size=world.codebook_size,
        num_latent_tokens=shape["num_latent_tokens"],
        history_attention="causal",
        history_unit="item",
        normalization="catalog",
        d_model=width,
        d_kv=width // 2,
        num_heads=2,
        d_ff=4 * width,
        num_layers=1,
        num_decoder_layers=1,
        dropout_rate=0.0,
        initializer_factor=0.3,
        embedding_std=0.1,
        max_history_length=HISTORY_LENGTH,
    )
    model = AutoModel.from_config(config)
    model.set_catalog(torch.from_numpy(world.codes[shape["tree"]].copy()))
    return model


def train(name: str, width: int, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run: a world, a network, and what it knows after every few steps."""
    start = time.process_time()
    world = make_sibling_world(num_triples=arguments.triples, seed=seed)
    torch.manual_seed(seed)
    model = make_model(name, width, world)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=0.0)
    held_out = world.draw_sequences(num_users=arguments.held_out, length=HISTORY_LENGTH, seed=[seed, HELD_OUT])
    measurements = []
    for step in range(arguments.steps + 1):
        if step % arguments.every == 0:
            log_probs = score(model, held_out)
            measurements.append({"step": step, **asdict(pattern_report(log_probs, world, held_out))})
            if len(measurements) > STAYS and min(entry["order"] for entry in measurements[-STAYS:]) >= LEARNED:
                break
        sequences = world.draw_sequences(num_users=arguments.users, length=HISTORY_LENGTH + 1, seed=[seed, step])
        tokens = torch.from_numpy(sequences) + model.config.first_item_token
        loss = model.train()(input_ids=tokens[:, :-1], labels=tokens[:, 1:]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return {
        "system": name,
        "width": width,
        "seed": seed,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        **learning_steps(measurements),
        **at_the_end(log_probs, world, held_out),
        "cpu_seconds": round(time.process_time() - start, 1),
        "measurements": measurements,
    }


def score(model: Any, histories: np.ndarray) -> np.ndarray:
    """Exact log-probabilities of all items; of Latte over all its latents."""
    tokens = torch.from_numpy(histories) + model.config.first_item_token
    model.eval()
    if hasattr(model, "score_paths"):
        return model.score_paths(tokens).logsumexp(1).numpy()
    return model.score_items(tokens).numpy()


def learning_steps(measurements: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    """The first measurement at which the pattern is learnt, and the first from which on it is at `STAYS` or more."""
    is_learned = [entry["order"] >= LEARNED for entry in measurements]
    last_failure = max((place for place, value in enumerate(is_learned) if not value), default=-1)
    stays = measurements[last_failure + 1]["step"] if len(measurements) - last_failure > STAYS else None
    first = measurements[is_learned.index(True)]["step"] if any(is_learned) else None
    return {"first_learned_step": first, "learned_step": stays}


def at_the_end(log_probs: np.ndarray, world: SiblingWorld, histories: np.ndarray) -> dict[str, float]:
    """What the theory speaks of: correlation and reversals of the ends of the triples, beside the true ones."""
    ends, truth = world.triples[:, [0, 2]], world.next_item_probabilities(histories)
    return {
        "correlation": float(pair_correlations(np.exp(log_probs), ends).mean()),
        "true_correlation": float(pair_correlations(truth, ends).mean()),
        "reversal_rate": float(reversal_rates(log_probs, ends).mean()),
        "true_reversal_rate": float(reversal_rates(truth, ends).mean()),
    }


def cells_of(record: dict[str, Any]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The runs of all seeds, by system and width, in the order of `SYSTEMS`."""
    runs = sorted(record["runs"], key=lambda run: (list(SYSTEMS).index(run["system"]), run["width"], run["seed"]))
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in runs:
        cells.setdefault((run["system"], run["width"]), []).append(run)
    return cells


def table_of(record: dict[str, Any]) -> Table:
    shared = shared_step(record["runs"])
    title = f"Siblings told apart within {record['settings']['steps']} steps; order and KL at step {shared}"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("system", no_wrap=True)
    for name in ("width", "learnt", "from step", "order", "KL"):
        table.add_column(name, justify="right", no_wrap=True)
    for (system, width), runs in cells_of(record).items():
        steps = [run["learned_step"] for run in runs if run["learned_step"] is not None]
        there = [measured_at(run, shared) for run in runs]
        table.add_row(
            system,
            str(width),
            f"{len(steps)} of {len(runs)}",
            "-" if not steps else f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}",
            f"{np.mean([entry['order'] for entry in there]):.2f}",
            f"{np.mean([entry['divergence'] for entry in there]):.3f}",
        )
    return table


def plot(record: dict[str, Any], path: Path) -> None:
    """The share of held-out users with the right order by step, a panel per width; bands from worst to best seed."""
    panels: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    for (system, width), runs in cells_of(record).items():
        lines, bands = panels.setdefault(width, ({}, {}))
        longest = max((run["measurements"] for run in runs), key=len)
        steps = [entry["step"] for entry in longest]
        # a run that ended early has learnt the pattern, and its last value stands for what would follow
        orders = np.array(
            [np.pad([e["order"] for e in run["measurements"]], (0, len(steps)), "edge")[: len(steps)] for run in runs]
        )
        lines[system] = list(zip(steps, orders.mean(axis=0).tolist(), strict=True))
        bands[system] = list(zip(orders.min(axis=0).tolist(), orders.max(axis=0).tolist(), strict=True))
    figures = [Panel(f"width {width}", *panels[width]) for width in sorted(panels)]
    labels = {"x_label": "optimizer steps", "y_label": "share of triples in the user's order"}
    plot_lines(figures, path, **labels, num_columns=2, share_axes=True)


if __name__ == "__main__":
    main()
