"""
A finished run, evaluated on all test users beside the baselines, as a record for the results page.

    python scripts/record_run.py RUN PREPARED --ids IDS --name beauty_latte --dataset "Beauty 2014" --beams 50

A run whose record exists is skipped, so a long table can be filled over several days. `scripts/write_results.py` makes
the page from the records.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_genrec import PreparedDataset, Recommender, evaluation_record
from hf_genrec.cards import system_name
from hf_genrec.results import write_result
from hf_genrec.runs import evaluation_run, read_training, write_evaluation
from hf_genrec.tokenized import load_tokenized


def main() -> None:
    arguments = parse_arguments()
    if (arguments.records / f"{arguments.name}.json").exists():
        print(f"{arguments.name} has its record in {arguments.records}; nothing to do.")
        return
    prepared = PreparedDataset.load(arguments.prepared)
    decoding = {"num_beams": arguments.beams, "latent_aggregation": arguments.latent_aggregation}
    recommender = Recommender.from_pretrained(arguments.run, **decoding)
    run = evaluation_run(arguments.run, decoding=recommender.decoding, **decoding)
    evaluation = evaluation_record(recommender, prepared, run=run, show_progress=True)
    write_evaluation(arguments.run, recommender.model.config, evaluation)
    path = write_result(evaluation | {"run": evaluation["run"] | run_facts(arguments, recommender)}, arguments.records)
    print(f"written to {path}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that `hf-genrec train` wrote")
    parser.add_argument("prepared", help="folder that `hf-genrec prepare` wrote")
    parser.add_argument("--ids", required=True, help="folder that `hf-genrec tokenize` wrote")
    parser.add_argument("--name", required=True, help="name of the record: small letters, digits, - and _")
    parser.add_argument("--dataset", required=True, help="name of the data set on the page")
    parser.add_argument("--system", help="name of the system (default: from the model)")
    parser.add_argument("--encoder", required=True, help="text encoder behind the ids")
    parser.add_argument("--beams", type=int, default=50, help="beams per user, where there are beams (default 50)")
    parser.add_argument("--latent-aggregation", default="max", choices=["max", "sum"])
    parser.add_argument("--records", type=Path, default=Path("hub_cards/results"), help="folder of records")
    return parser.parse_args()


def run_facts(arguments: argparse.Namespace, recommender: Recommender) -> dict:
    """What the results page tells about a run, beyond its evaluation."""
    semantic_ids, _ = load_tokenized(arguments.ids)
    training = read_training(arguments.run)
    return {
        "name": arguments.name,
        "system": arguments.system or system_name(recommender.model.config),
        "dataset": arguments.dataset,
        "encoder": arguments.encoder,
        "policy": semantic_ids.policy,
        "num_levels": semantic_ids.num_levels,
        "codebook_size": semantic_ids.codebook_size,
        "cpu_minutes": training.get("cpu_minutes"),
        "best_validation_ndcg@10": training["best_metric"],
        "curve": validation_curve(training["log_history"]),
        "settings": training["settings"],
    }


def validation_curve(log_history: list[dict]) -> list[list[float]]:
    """Epochs and the validation's ndcg@10 after them, for the plot of `scripts/plot_curves.py`."""
    return [[round(entry["epoch"], 3), entry["eval_ndcg@10"]] for entry in log_history if "eval_ndcg@10" in entry]


if __name__ == "__main__":
    main()
