"""
The verbs that make and use models: `train`, `evaluate`, `recommend`, `demo`. Heavy modules are imported inside.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from hf_genrec.cli.command_line import (
    Aggregation,
    AsJson,
    Beams,
    Decoding,
    Prepared,
    SearchOptions,
    app,
    command_line,
    name_values,
    one_of,
    output_on,
)


class _ManyItems(TyperCommand):
    """Lets `--history a b c` stand for `--history a --history b --history c`, and so `--exclude` and `--allow`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        expanded: list[str] = []
        option = None  # of ids, to which the next words belong
        for position, word in enumerate(args):
            if word.startswith("--"):
                option = word if word in ("--history", "--exclude", "--allow") else None
                is_last = position + 1 == len(args) or args[position + 1].startswith("--")
                if option == "--history" and is_last:
                    expanded += ["--history", ""]  # an empty history
                elif option is None or is_last:
                    expanded.append(word)
            else:
                expanded += [word] if option is None else [option, word]
        return super().parse_args(ctx, expanded)


def _shape(text: str, *, least: int | None = None) -> Any:
    return typer.Option(help=f"{text} (default: the recipe's).", show_default=False, min=least)


@app.command("train", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def _train(
    ctx: typer.Context,
    prepared_folder: Prepared,
    output: Annotated[str, typer.Option("--output", help="The run folder to write.", show_default=False)],
    ids: Annotated[str | None, typer.Option(help="Folder that `hf-genrec tokenize` wrote; sasrec needs none.")] = None,
    origin: Annotated[
        str | None, typer.Option("--from", help="Fine-tune this run folder or Hub repository on the prepared log.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint in the run folder.")
    ] = False,
    architecture: Annotated[
        str | None,
        typer.Option(
            callback=one_of("latte", "rpg", "acerec", "sasrec"),
            metavar="latte|rpg|acerec|sasrec",
            help="Kind of model: latte (also TIGER and PSID), rpg and acerec for long ids, or sasrec without ids.",
            show_default="latte",
        ),
    ] = None,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="The paper's shape and schedule (needs a GPU or days)."),
    ] = False,
    fields: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any field of the model's config, such as temperature=0.05."),
    ] = None,
    latents: Annotated[
        int | None, typer.Option(min=0, help="Latent tokens: 8; 0 is TIGER or PSID.", show_default="8")
    ] = None,
    history_attention: Annotated[
        str | None,
        typer.Option(callback=one_of("causal", "bidirectional"), help="causal (fast) or bidirectional (paper)."),
    ] = None,
    history_unit: Annotated[
        str | None,
        typer.Option(
            callback=one_of("item", "code"),
            help="What the encoder reads of an item: one vector (default, fast), or each code (paper).",
        ),
    ] = None,
    normalization: Annotated[
        str | None,
        typer.Option(
            callback=one_of("catalog", "vocabulary"),
            help="Softmax over the tokens the catalog allows (default), or over all (paper).",
        ),
    ] = None,
    d_model: Annotated[int | None, _shape("Width of the network", least=1)] = None,
    d_ff: Annotated[int | None, _shape("Inner width of the feed-forward layers", least=1)] = None,
    d_kv: Annotated[int | None, _shape("Width of an attention head", least=1)] = None,
    heads: Annotated[int | None, _shape("Attention heads", least=1)] = None,
    layers: Annotated[int | None, _shape("Encoder layers", least=1)] = None,
    decoder_layers: Annotated[int | None, _shape("Decoder layers", least=1)] = None,
    dropout: Annotated[float | None, _shape("Dropout rate")] = None,
    label_smoothing: Annotated[float | None, _shape("Label smoothing")] = None,
    max_history: Annotated[int | None, _shape("Latest items of a history that are read", least=1)] = None,
    targets: Annotated[
        str,
        typer.Option(callback=one_of("all", "last"), metavar="all|last", help="Train on every item or the last only."),
    ] = "all",
    epochs: Annotated[float | None, _shape("Passes over the training targets")] = None,
    batch_size: Annotated[int | None, _shape("Targets per device and step", least=1)] = None,
    learning_rate: Annotated[float | None, _shape("Peak learning rate")] = None,
    beams: Annotated[int | None, _shape("Beams of the validation", least=1)] = None,
    latent_aggregation: Aggregation = "max",
    early_stopping: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many validations without a better ndcg@10.")
    ] = None,
    eval_steps: Annotated[
        float | None, typer.Option(help="Steps (below 1: share of all) between validations; else one per epoch.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, bf16, fp16 or fp32.", show_default="auto")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, batches and latents.", show_default="42")] = None,
    as_json: AsJson = False,
) -> None:
    """
    Train a model and write a run folder, which is also the folder for the Hub.

    Any further option is one of transformers.TrainingArguments, such as --weight-decay 0.1; PREPARED then stands
    first.

    \b
    Examples:
      hf-genrec train data --ids ids --output run
      hf-genrec train data --ids ids --output run --epochs 10 --weight-decay 0.1 --seed 7
      hf-genrec train data --ids ids --output run --resume
      hf-genrec train data --ids ids --output run --latents 0 --history-unit code
      hf-genrec train data --ids opq_ids --output run --architecture rpg --epochs 30
      hf-genrec train data --ids opq_ids --output run --architecture acerec --set alignment_weight=0
      hf-genrec train data --output run --architecture sasrec
      hf-genrec train new_data --from run --output tuned --learning-rate 0.0003 --epochs 3
      accelerate launch scripts/train.py data --ids ids --output run
    """
    if prepared_folder.startswith("-"):
        raise ValueError(f"Name the prepared folder before {prepared_folder} and other options of the trainer.")
    from transformers import CONFIG_MAPPING

    kind: Any = CONFIG_MAPPING[architecture or "latte"]
    is_new = ids is not None or (origin is None and not kind.has_codes)
    if is_new == (origin is not None):
        raise ValueError("Give either `--ids` (a new model) or `--from` (a checkpoint to fine-tune).")
    if ids is not None and not kind.has_codes:
        raise ValueError(f"{kind.display_name} has no semantic IDs: leave out `--ids`.")
    shape = {
        "num_latent_tokens": latents, "history_attention": history_attention, "history_unit": history_unit,
        "normalization": normalization, "d_model": d_model, "d_ff": d_ff, "d_kv": d_kv, "num_heads": heads,
        "num_layers": layers, "num_decoder_layers": decoder_layers, "dropout_rate": dropout,
        "label_smoothing": label_smoothing, "max_history_length": max_history,
    }  # fmt: skip
    _check_shape(_given(shape), architecture or "latte", origin)
    schedule = {
        "num_train_epochs": epochs, "per_device_train_batch_size": batch_size, "learning_rate": learning_rate,
        "eval_num_beams": beams, "latent_aggregation": latent_aggregation, "early_stopping_patience": early_stopping,
        "precision": precision, "seed": seed,
    }  # fmt: skip
    if eval_steps is not None:
        schedule |= {"eval_strategy": "steps", "eval_steps": eval_steps}
        schedule |= {"save_strategy": "steps", "save_steps": eval_steps}
    with output_on(as_json) as show:
        record = _run_training(
            prepared_folder,
            output,
            ids,
            origin,
            resume,
            paper,
            architecture,
            _given(shape) | name_values("--set", fields or []),
            _given(schedule),
            targets,
            ctx.args,
        )
        if record is None:
            return
        best = record["best_metric"]
        show(
            f"{record['num_parameters']:,} parameters, {record['minutes']:.1f} minutes, "
            + ("not validated" if best is None else f"best validation ndcg@10: {best:.4f}"),
            f"written to {output}; next: hf-genrec evaluate {output} {prepared_folder}",
            result={"folder": output} | record,
        )


_OPTIONS = {
    "num_latent_tokens": "--latents", "num_heads": "--heads", "num_layers": "--layers",
    "num_decoder_layers": "--decoder-layers", "dropout_rate": "--dropout", "max_history_length": "--max-history",
}  # fmt: skip


def _check_shape(given: dict[str, Any], architecture: str, origin: str | None) -> None:
    """Refuses options of the shape that this kind of model does not have, by their names."""
    from transformers import CONFIG_MAPPING

    known = {field.name for field in dataclasses.fields(CONFIG_MAPPING[architecture])} if origin is None else set()
    wrong = [f"`{_OPTIONS.get(name, '--' + name.replace('_', '-'))}`" for name in given if name not in known]
    if wrong and origin is not None:
        raise ValueError(f"`--from` takes the shape from the checkpoint; it does not go with {', '.join(wrong)}.")
    if wrong:
        raise ValueError(
            f"The architecture {architecture} has no {', '.join(wrong)}: leave out what it does not have."
        )


def _run_training(
    prepared_folder: str,
    output: str,
    ids: str | None,
    origin: str | None,
    resume: bool,
    paper: bool,
    architecture: str | None,
    shape: dict[str, Any],
    schedule: dict[str, Any],
    targets: str,
    options: list[str],
) -> dict[str, Any] | None:
    """The record of the run; `None` in a process that is not the main one."""
    from transformers import CONFIG_MAPPING

    from hf_genrec.data.prepared import PreparedDataset
    from hf_genrec.evaluation.record import is_finished, read_training
    from hf_genrec.training.initial import start_fresh, start_from
    from hf_genrec.training.runs import check_same_run, train_run, training_arguments

    if origin is not None and (shape or paper or architecture):
        wrong = ", ".join(sorted(shape)) or ("--paper" if paper else "--architecture")
        raise ValueError(f"`--from` takes the shape from the checkpoint; it does not go with {wrong}.")
    prepared = PreparedDataset.load(prepared_folder)
    kind: Any = CONFIG_MAPPING[architecture or "latte"]
    if is_finished(output) and resume:
        settings = (kind.paper_schedule if paper else kind.default_schedule) | schedule
        seed = training_arguments(output, settings=settings, options=options).seed
        check_same_run(output, _asked_for(prepared, ids, origin, architecture) | {"seed": seed})
        typer.echo(f"The run in {output} is finished; nothing to resume.", err=True)
        return read_training(output) if os.environ.get("RANK", "0") == "0" else None
    if origin is not None:
        starting = start_from(prepared, origin)
        kind = type(starting.model.config)
    settings = (kind.paper_schedule if paper else kind.default_schedule) | schedule
    args = training_arguments(output, settings=settings, options=options)
    if origin is None:
        if shape.get("history_attention") == "bidirectional":  # which reads codes; `--history-unit item` is refused
            shape = {"history_unit": "code"} | shape
        shape = (kind.paper_shape if paper else kind.default_shape) | shape
        starting = start_fresh(prepared, ids, shape=shape, seed=args.seed, architecture=kind.model_type)
    record = train_run(prepared, starting, output, args, targets=targets, resume=resume, command=command_line())
    return record if args.process_index == 0 else None


def _asked_for(prepared: Any, ids: str | None, origin: str | None, architecture: str | None) -> dict[str, Any]:
    """What can be said of a run before a model is made or loaded, as in its settings."""
    from hf_genrec.tokenizers.folder import load_tokenized

    asked = {"data_fingerprint": prepared.fingerprint, "from": origin}
    if origin is not None:  # ids and architecture are the checkpoint's
        return asked
    fingerprint = None if ids is None else load_tokenized(ids)[0].fingerprint
    return asked | {"semantic_ids_fingerprint": fingerprint, "architecture": architecture or "latte"}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@app.command("evaluate")
def _evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder or Hub repository.", show_default=False)],
    prepared_folder: Prepared,
    split: Annotated[str, typer.Option(callback=one_of("test", "validation"), metavar="test|validation")] = "test",
    beams: Beams = 50,
    search: Decoding = None,
    latent_aggregation: Aggregation = "max",
    search_words: SearchOptions = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Users decoded at a time.")] = 64,
    max_users: Annotated[int | None, typer.Option(min=1, help="A sample of this many users.")] = None,
    exclude_seen: Annotated[bool, typer.Option("--exclude-seen", help="Leave out items of the history.")] = False,
    no_baselines: Annotated[bool, typer.Option("--no-baselines", help="Without popularity and item-kNN.")] = False,
    exact_sample: Annotated[
        int, typer.Option(min=0, help="Score all items exactly for this many users: what does the search miss?")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the samples and the bootstrap.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; chosen if not given.")] = None,
    output: Annotated[
        str | None, typer.Option(help="Write the record to this JSON file too, and ranks per user beside it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """
    Rank the whole catalog for every user and print recall, ndcg and what the lists are like, beside the baselines.

    An evaluation of all users on the test split is also written into the run folder, as evaluation.json and, one row
    per user, evaluation_users.parquet.

    \b
    Examples:
      hf-genrec evaluate run data
      hf-genrec evaluate run data --split validation --max-users 2000 --beams 20
      hf-genrec evaluate run data --exact-sample 200
      hf-genrec evaluate user/repository data --json > record.json
    """
    with output_on(as_json) as show:
        from hf_genrec.cli.tables import evaluation_tables
        from hf_genrec.data.checks import check_trained_on
        from hf_genrec.data.prepared import PreparedDataset
        from hf_genrec.evaluation.baselines import save_neighbors
        from hf_genrec.evaluation.evaluate import EvaluationSettings, evaluate
        from hf_genrec.evaluation.record import evaluation_run, read_training, users_path, write_users
        from hf_genrec.files import write_json
        from hf_genrec.serving.recommender import Recommender, check_model_name
        from hf_genrec.training.initial import check_same_catalog
        from hf_genrec.training.runs import write_evaluation

        check_model_name(model)
        prepared = PreparedDataset.load(prepared_folder)
        decoding: dict[str, Any] = {"num_beams": beams, "latent_aggregation": latent_aggregation}
        options = _given({"decoding": search}) | name_values("--search", search_words or [])
        recommender = Recommender.from_pretrained(model, batch_size=batch_size, device=device, **(decoding | options))
        check_same_catalog(recommender.item_ids, prepared, owner=f"The checkpoint {model}")
        check_trained_on(read_training(model), prepared.metadata, owner=f"The run {model}")
        settings = EvaluationSettings(
            split=split,
            max_users=max_users,
            seed=seed,
            exclude_seen=exclude_seen,
            exact_sample=exact_sample,
            show_progress=True,
        )
        run = evaluation_run(model, decoding=recommender.decoding, **decoding) | {"search_options": options}
        baselines: dict[str, Any] | None = {} if no_baselines else None
        record = evaluate(recommender, prepared, settings, baselines=baselines, run=run)
        if output is not None:
            write_json(record, output)
            write_users(record.users, users_path(output))
        if split == "test" and max_users is None and not exclude_seen and Path(model).is_dir():
            write_evaluation(model, recommender.model.config, record, users=record.users)
            save_neighbors(prepared, model)
        notes = []
        if split == "validation" and baselines is None:
            notes.append("item_knn was tuned on users of this split: its numbers here are higher than they should be.")
        show(*evaluation_tables(record), *notes, result=record)


@app.command("recommend", cls=_ManyItems)
def _recommend(
    model: Annotated[str, typer.Option("--model", help="Run folder or Hub repository.", show_default=False)],
    history: Annotated[
        list[str] | None, typer.Option("--history", metavar="ID ID ...", help="Items of one user, oldest first.")
    ] = None,
    histories: Annotated[
        str | None, typer.Option(help="File with one history a line, ids separated by spaces.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Items per user.")] = 10,
    exclude_seen: Annotated[
        bool, typer.Option("--exclude-seen/--include-seen", help="Leave out items of the history.")
    ] = True,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="ID ID ...", help="Items that may not be recommended.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="ID ID ...", help="The only items that may be.")
    ] = None,
    beams: Beams = 50,
    search: Decoding = None,
    latent_aggregation: Aggregation = "max",
    search_words: SearchOptions = None,
    diversity: Annotated[
        float, typer.Option(min=0, max=1, help="Above 0 items with other codes than those before them move up.")
    ] = 0.0,
    sample_seed: Annotated[
        int | None, typer.Option(min=0, help="Draw items at random, by their probabilities, with this seed.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; chosen if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """
    Recommend items for one history or for a file of histories; scores are log-probabilities.

    \b
    Examples:
      hf-genrec recommend --model run --history 50 181 172
      hf-genrec recommend --model run --history 50 181 172 --top-k 5 --include-seen --json
      hf-genrec recommend --model run --history 50 181 --exclude 172 174 --diversity 0.3
      hf-genrec recommend --model run --history 50 181 --allow 56 64 98 127 --sample-seed 7
      hf-genrec recommend --model user/repository --histories histories.txt --json
    """
    if (history is None) == (histories is None):
        raise ValueError("Give either `--history` (ids of one user) or `--histories` (a file).")
    if histories is not None:
        batch = [line.split() for line in Path(histories).read_text(encoding="utf-8").splitlines()]
        if not batch:
            raise ValueError(f"{histories} is empty: it must hold one history a line.")
    else:
        batch = [[item_id for item_id in history or [] if item_id]]
    with output_on(as_json) as show:
        from hf_genrec.cli.tables import recommendation_entries, recommendations_table
        from hf_genrec.serving.recommender import Recommender, check_model_name

        decoding: dict[str, Any] = {"num_beams": beams, "latent_aggregation": latent_aggregation}
        check_model_name(model)
        recommender = Recommender.from_pretrained(model, device=device, **decoding)
        search_options = _given({"decoding": search}) | name_values("--search", search_words or [])
        search_options |= {"diversity": diversity} if diversity else {}
        if sample_seed is not None:
            search_options["sample_seed"] = sample_seed
        entries = recommendation_entries(
            recommender,
            batch,
            top_k=top_k,
            exclude_seen=exclude_seen,
            exclude_items=exclude or None,
            allow_items=allow or None,
            search_options=search_options,
        )
        titles = ["Recommendations"] if histories is None else [f"Line {line + 1}" for line in range(len(batch))]
        tables = [recommendations_table(entry, title=title) for entry, title in zip(entries, titles, strict=True)]
        result = {"model": model} | (entries[0] if histories is None else {"users": entries})
        show(*tables, result=result)


@app.command("graph")
def _graph(
    model: Annotated[str, typer.Argument(metavar="RUN", help="Run folder of rpg or acerec.", show_default=False)],
    neighbors: Annotated[int, typer.Option(min=1, help="Neighbours of each item, itself among them.")] = 50,
    method: Annotated[
        str,
        typer.Option(
            callback=one_of("auto", "exact", "approximate"),
            metavar="auto|exact|approximate",
            help="How neighbours are found; auto is exact up to 1,000,000 items.",
        ),
    ] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; chosen if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """
    Write the graph of similar items beside a model, for `--decoding graph`.

    \b
    Examples:
      hf-genrec graph run --neighbors 100
      hf-genrec evaluate run data --decoding graph --beams 20 --search num_propagations=5
    """
    with output_on(as_json) as show:
        from hf_genrec.serving.item_graph import write_item_graph
        from hf_genrec.serving.recommender import check_model_name

        check_model_name(model)
        if not Path(model).is_dir():
            raise ValueError(f"`graph` writes into a folder: download {model} first (hf download).")
        graph = write_item_graph(model, num_neighbors=neighbors, search=method, device=device)  # type: ignore[arg-type]
        num_items, num_neighbors = graph.neighbors.shape
        show(
            f"{num_items:,} items, {num_neighbors} neighbours each, {100 * graph.overlap:.1f} % of the exact ones",
            result={"folder": model, "num_items": num_items, "num_neighbors": num_neighbors, "overlap": graph.overlap},
        )


@app.command("demo")
def _demo(
    output: Annotated[str, typer.Option("--output", help="Folder for everything.")] = "demo",
    movielens: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="MovieLens-100K: what scripts/fetch_movielens.py wrote, or ml-100k.zip.",
            show_default="OUTPUT/ml-100k",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """
    The whole walk on MovieLens-100K in a few minutes; stages that are done are not done again.

    \b
    Examples:
      hf-genrec demo
      hf-genrec demo --movielens ml-100k.zip --output /tmp/demo --json
    """
    with output_on(as_json) as show:
        from rich.console import Console

        from hf_genrec.cli.demo import run_demo

        show(result=run_demo(output, console=Console(highlight=False), movielens=movielens))
