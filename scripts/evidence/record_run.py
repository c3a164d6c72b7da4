"""
A finished run, evaluated on all test users beside the baselines, as a record for the results page.

    python scripts/evidence/record_run.py RUN PREPARED --ids IDS --name beauty_latte --dataset "Beauty 2014" --beams 50

A run whose record exists is skipped, so a long table can be filled over several days. `write_results.py` makes the
page from the records.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hf_genrec import PreparedDataset, Recommender
from hf_genrec.data.checks import check_trained_on
from hf_genrec.evaluation.evaluate import EvaluationSettings, evaluate
from hf_genrec.evaluation.record import evaluation_run, read_training, users_path, write_users
from hf_genrec.tokenizers.folder import QUANTIZER_NAME, load_tokenized
from hf_genrec.training.runs import write_evaluation
from results import write_result


def main() -> None:
    arguments = parse_arguments()
    if (arguments.records / f"{arguments.name}.json").exists():
        print(f"{arguments.name} has its record in {arguments.records}; nothing to do.")
        return
    prepared = PreparedDataset.load(arguments.prepared)
    check_trained_on(read_training(arguments.run), prepared.metadata, owner=f"The run {arguments.run}")
    decoding = {"num_beams": arguments.beams, "latent_aggregation": arguments.latent_aggregation}
    recommender = Recommender.from_pretrained(arguments.run, **decoding)
    check_ids(arguments, recommender)
    run = evaluation_run(arguments.run, decoding=recommender.decoding, dtype=recommender.model.dtype, **decoding)
    settings = EvaluationSettings(show_progress=True, exact_sample=arguments.exact_sample)
    record = evaluate(recommender, prepared, settings, run=run)
    if not arguments.keep_evaluation:
        write_evaluation(arguments.run, recommender.model.config, record, users=record.users)
    facts = run_facts(arguments, recommender)
    record_path = arguments.records / f"{arguments.name}.json"
    write_users(record.users, users_path(record_path))  # first: a run whose record exists is skipped
    path = write_result(record | {"run": record["run"] | facts}, arguments.records)
    print(f"written to {path}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that `hf-genrec train` wrote")
    parser.add_argument("prepared", help="folder that `hf-genrec prepare` wrote")
    parser.add_argument("--ids", help="folder that `hf-genrec tokenize` wrote; for models with semantic IDs")
    parser.add_argument("--name", required=True, help="name of the record: small letters, digits, - and _")
    parser.add_argument("--dataset", required=True, help="name of the data set on the page")
    parser.add_argument("--system", help="name of the system (default: from the model)")
    parser.add_argument("--encoder", help="text encoder behind the ids; for models with semantic IDs")
    parser.add_argument("--beams", type=int, default=50, help="beams per user, where there are beams (default 50)")
    parser.add_argument("--exact-sample", type=int, default=0, help="users scored exactly too (default 0)")
    parser.add_argument("--latent-aggregation", default="max", choices=["max", "sum"])
    parser.add_argument(
        "--keep-evaluation", action="store_true", help="do not write an evaluation into the run's folder"
    )
    parser.add_argument(
        "--records", type=Path, default=Path("scripts/evidence/records/results"), help="folder of records"
    )
    return parser.parse_args()


def check_ids(arguments: argparse.Namespace, recommender: Recommender) -> None:
    """A record names the ids and their encoder if, and only if, the model has ids, and those it was trained on."""
    has_codes = recommender.model.config.has_codes
    training = read_training(arguments.run)
    if not training:
        raise SystemExit(
            f"{arguments.run} is no finished run (it has no training.json): train it, or name its folder."
        )
    for name in ("ids", "encoder"):
        if (getattr(arguments, name) is not None) != has_codes:
            raise SystemExit(
                f"{arguments.run} has {'' if has_codes else 'no '}semantic IDs: "
                f"{'name' if has_codes else 'leave out'} --{name}."
            )
    if not has_codes:
        return
    found, trained = load_tokenized(arguments.ids)[0].fingerprint, training["settings"]["semantic_ids_fingerprint"]
    if found != trained:
        raise SystemExit(
            f"{arguments.run} was trained on the ids {trained}, those of --ids {arguments.ids} are {found}: name the "
            "folder of the training."
        )
    identity = arguments.run / QUANTIZER_NAME / "encoder.json"
    known = json.loads(identity.read_text(encoding="utf-8")).get("model") if identity.is_file() else None
    is_model = known is not None and not known.startswith("matrix ")  # a file of embeddings tells no encoder
    if is_model and Path(known).name != Path(arguments.encoder).name:  # with or without its organisation
        raise SystemExit(
            f"The ids of {arguments.run} were made with the encoder {known}, got --encoder {arguments.encoder}."
        )


def run_facts(arguments: argparse.Namespace, recommender: Recommender) -> dict:
    """What the results page says about a run, beyond its evaluation."""
    semantic_ids = None if arguments.ids is None else load_tokenized(arguments.ids)[0]
    training = read_training(arguments.run)
    return {
        "name": arguments.name,
        "system": arguments.system or recommender.model.config.system_name,
        "dataset": arguments.dataset,
        "encoder": arguments.encoder,
        **{name: getattr(semantic_ids, name, None) for name in ("policy", "num_levels", "codebook_size")},
        "cpu_minutes": training.get("cpu_minutes"),
        "best_validation_ndcg@10": training["best_metric"],
        "curve": validation_curve(training["log_history"]),
        "settings": training["settings"],
    }


def validation_curve(log_history: list[dict]) -> list[list[float]]:
    """Epochs and the validation's ndcg@10 after them, for the plot of `scripts/evidence/plot_curves.py`."""
    return [[round(entry["epoch"], 3), entry["eval_ndcg@10"]] for entry in log_history if "eval_ndcg@10" in entry]


if __name__ == "__main__":
    main()
