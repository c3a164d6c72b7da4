"""
The Latte paper's whole recipe on one category of Amazon Reviews 2023, in one command:

    python scripts/latte.py Video_Games --output runs/games

prepare (5-core, leave-last-out), embed (sentence-t5-base), tokenize (whitening to 192 dimensions fitted on all items,
residual k-means 3x256, conflict-free ids), train (bidirectional, 4+4 layers, 150 epochs), test with 500 beams. A stage
whose output exists is not done again, and a killed training goes on from its last checkpoint, so the same command
continues. The paper chose 4 latents for Musical_Instruments and 8 for the other two categories.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hf_genrec.cli.tables import collision_table, metrics_table, statistics_table
from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.sources.amazon import prepare_amazon
from hf_genrec.evaluation.evaluate import EvaluationSettings, evaluate
from hf_genrec.evaluation.record import evaluation_run, is_finished, read_training
from hf_genrec.modeling.configuration_latte import LatteConfig
from hf_genrec.serving.recommender import Recommender
from hf_genrec.tokenizers.folder import embed_items, embeddings_path, load_tokenized, tokenize_items
from hf_genrec.training.initial import start_fresh
from hf_genrec.training.runs import train_run, training_arguments, write_evaluation


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, help=__doc__)
def main(
    ctx: typer.Context,
    category: Annotated[str, typer.Argument(metavar="CATEGORY", help="Such as Video_Games.")],
    output: Annotated[str | None, typer.Option(help="Folder for everything; runs/CATEGORY.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder with the category's files; else from the Hub.")] = None,
    missing_text: Annotated[str, typer.Option(help="Items without text: error, drop or keep.")] = "error",
    encoder: Annotated[
        str, typer.Option(help="sentence-transformers model.")
    ] = "sentence-transformers/sentence-t5-base",
    matrix: Annotated[str | None, typer.Option(help="Ready embeddings instead of the encoder.")] = None,
    quantizer: Annotated[str, typer.Option(help="residual_kmeans.")] = "residual_kmeans",
    levels: Annotated[int, typer.Option(help="Codes per item.")] = 3,
    codebook_size: Annotated[int, typer.Option(help="Codes per level.")] = 256,
    whiten: Annotated[int, typer.Option(help="Whitened principal components; 0 for none.")] = 192,
    fit_on: Annotated[str, typer.Option(help="train or all.")] = "all",
    policy: Annotated[str, typer.Option(help="widen, append, candidates, rematch.")] = "widen",
    latents: Annotated[int, typer.Option(help="Latent tokens; 0 is PSID.")] = 8,
    latent_aggregation: Annotated[str, typer.Option(help="max or sum.")] = "max",
    history_attention: Annotated[str, typer.Option(help="bidirectional or causal.")] = "bidirectional",
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-3,
    epochs: Annotated[float, typer.Option(help="Most epochs.")] = 150,
    patience: Annotated[int, typer.Option(help="Epochs without a better ndcg@10 before stopping.")] = 20,
    beams: Annotated[int, typer.Option(help="Beams of the test.")] = 500,
    checkpoint: Annotated[
        str | None, typer.Option(help="Checkpoint folder to resume from; else the last one.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and latents.")] = 2024,
    baselines: Annotated[bool, typer.Option(help="Popularity and item-kNN beside the model.")] = True,
) -> None:
    if quantizer != "residual_kmeans":
        raise typer.BadParameter(f"`--quantizer` must be residual_kmeans, is {quantizer!r}.")
    folder, console = Path(output or f"runs/{category}"), Console(highlight=False)
    prepared = prepared_category(folder / "data", category, data_dir, missing_text)
    console.print(statistics_table(prepared.metadata))
    tokenizer: dict[str, Any] = {
        "num_levels": levels, "codebook_size": codebook_size, "num_whitened": whiten, "fit_on": fit_on,
        "policy": policy,
    }  # fmt: skip
    embeddings = embeddings_path(folder)
    if not embeddings.is_file():
        embed_items(prepared, embeddings, model_name=encoder, matrix=matrix)
    if not (folder / "semantic_ids").is_dir():
        tokenize_items(prepared, embeddings, folder / "semantic_ids", **tokenizer)
    record = load_tokenized(folder / "semantic_ids")[1]
    differing = {name: record["settings"][name] for name in tokenizer if record["settings"][name] != tokenizer[name]}
    if differing:
        raise typer.BadParameter(f"{folder / 'semantic_ids'} was made with {differing}. Choose another `--output`.")
    console.print(collision_table(record["statistics"]))
    run = folder / "model"
    schedule = LatteConfig.paper_schedule | {
        "num_train_epochs": epochs, "learning_rate": learning_rate, "early_stopping_patience": patience, "seed": seed,
        "latent_aggregation": latent_aggregation,
    }  # fmt: skip
    args = training_arguments(run, settings=schedule, options=ctx.args)
    if not is_finished(run):
        shape = LatteConfig.paper_shape | {"num_latent_tokens": latents, "history_attention": history_attention}
        starting = start_fresh(prepared, folder / "semantic_ids", shape=shape, seed=seed)
        train_run(prepared, starting, run, args, resume=checkpoint or True, command=shlex.join(sys.argv))
    console.print(f"best validation ndcg@10: {read_training(run)['best_metric']}")
    if args.process_index == 0:
        console.print(metrics_table(tested(run, prepared, beams, latent_aggregation, baselines)))


def prepared_category(folder: Path, category: str, data_dir: str | None, missing_text: Any) -> PreparedDataset:
    """The category's prepared folder, made if it is not there."""
    if not (folder / "dataset.json").is_file():
        options: dict[str, Any] = {"missing_text": missing_text, "strict": missing_text != "drop"}
        return prepare_amazon(folder, year=2023, category=category, data_dir=data_dir, **options)
    prepared = PreparedDataset.load(folder)
    if prepared.metadata["category"] != category:
        raise typer.BadParameter(f"{folder} holds {prepared.metadata['category']}. Choose another `--output`.")
    return prepared


def tested(run: Path, prepared: PreparedDataset, beams: int, aggregation: str, baselines: bool) -> dict[str, Any]:
    """The evaluation record of the test split, written into the run folder."""
    recommender = Recommender.from_pretrained(run, num_beams=beams, latent_aggregation=aggregation, batch_size=16)
    record = evaluate(
        recommender,
        prepared,
        EvaluationSettings(show_progress=True),
        baselines=None if baselines else {},
        run=evaluation_run(run, num_beams=beams, latent_aggregation=aggregation),
    )
    write_evaluation(run, recommender.model.config, record, users=record.users)
    return record


if __name__ == "__main__":
    app()
