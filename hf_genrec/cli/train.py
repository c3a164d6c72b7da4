"""
`hf-genrec train`: semantic IDs and histories become a run folder.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_genrec.cli.command_line import INTERRUPTED, app, arguments_for, command_line, given, name_values, output_on
from hf_genrec.cli.options import Aggregation, AsJson, Prepared, RunFolder
from hf_genrec.cli.train_llm import LLM, check_llm, run_llm
from hf_genrec.registration import ARCHITECTURES


if TYPE_CHECKING:
    from hf_genrec.data.prepared import PreparedDataset

    Architecture = str
else:
    Architecture = Literal[*ARCHITECTURES, LLM]


def _recipe(option: str, text: str, *, least: int | None = None) -> Any:
    return typer.Option(option, help=f"{text} (default: the recipe's).", show_default=False, min=least)


@app.command("train", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def _train(
    ctx: typer.Context,
    prepared_folder: Prepared,
    output: RunFolder,
    ids: Annotated[
        str | None,
        typer.Option(help="Folder that `hf-genrec tokenize` wrote; sasrec, hstu, gru4rec and bert4rec need none."),
    ] = None,
    embeddings: Annotated[
        str | None,
        typer.Option(
            help="What `hf-genrec embed` wrote: for ids where none are given, a dense head, or a model without ids.",
            show_default="the behaviour in the log",
        ),
    ] = None,
    origin: Annotated[
        str | None, typer.Option("--from", help="Fine-tune this run folder or Hub repository on the prepared log.")
    ] = None,
    objective: Annotated[
        Literal["grpo", "listwise", "sdpo"] | None,
        typer.Option(
            help="With --from: train on the model's own lists, by rewards (grpo), or towards the next item among them."
        ),
    ] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="PNG", help="With --objective: draw reward, distinct items and divergence.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint in the run folder.")
    ] = False,
    architecture: Annotated[
        Architecture | None,
        typer.Option(
            help="Kind of model: latte (also TIGER and PSID), decoder (history and target in one stream), rpg, "
            "acerec and vqrec for long ids, sasrec, hstu, gru4rec and bert4rec without ids, llm over a `--backbone`.",
            show_default="latte",
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="For llm: folder or repository of a causal language model.")
    ] = None,
    lora: Annotated[
        int | None, typer.Option(min=0, help="For llm: rank of LoRA; 0 for the whole network.", show_default="16")
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="The paper's recipe (needs a GPU or days).")] = False,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any field of the model's config, such as temperature=0.05 (of llm, of SftSettings).",
        ),
    ] = None,
    num_latent_tokens: Annotated[
        int | None, typer.Option("--latents", min=0, help="Latent tokens; 0 is TIGER or PSID.", show_default="8")
    ] = None,
    dense_head: Annotated[
        bool | None,
        typer.Option(
            "--dense-head/--no-dense-head",
            help="A second head that scores items, beside the one that writes their codes (default: the recipe's).",
            show_default=False,
        ),
    ] = None,
    history_attention: Annotated[
        Literal["causal", "bidirectional"] | None, typer.Option(help="causal (fast) or bidirectional (paper).")
    ] = None,
    history_unit: Annotated[
        Literal["item", "code"] | None,
        typer.Option(help="What the encoder reads of an item: one vector (default, fast), or each code (paper)."),
    ] = None,
    normalization: Annotated[
        Literal["catalog", "vocabulary"] | None,
        typer.Option(help="Softmax over the tokens the catalog allows (default), or over all (paper)."),
    ] = None,
    d_model: Annotated[int | None, _recipe("--d-model", "Width of the network", least=1)] = None,
    d_ff: Annotated[int | None, _recipe("--d-ff", "Inner width of the feed-forward layers", least=1)] = None,
    d_kv: Annotated[int | None, _recipe("--d-kv", "Width of an attention head", least=1)] = None,
    num_heads: Annotated[int | None, _recipe("--heads", "Attention heads", least=1)] = None,
    num_layers: Annotated[int | None, _recipe("--layers", "Encoder layers", least=1)] = None,
    num_decoder_layers: Annotated[int | None, _recipe("--decoder-layers", "Decoder layers", least=1)] = None,
    dropout_rate: Annotated[float | None, _recipe("--dropout", "Dropout rate")] = None,
    label_smoothing: Annotated[float | None, _recipe("--label-smoothing", "Label smoothing")] = None,
    max_history_length: Annotated[
        int | None, _recipe("--max-history", "Latest items of a history that are read", least=1)
    ] = None,
    targets: Annotated[
        Literal["all", "last"], typer.Option(help="Train on every item of a history, or the last only.")
    ] = "all",
    num_train_epochs: Annotated[float | None, _recipe("--epochs", "Passes over the training targets")] = None,
    per_device_train_batch_size: Annotated[
        int | None, _recipe("--batch-size", "Targets per device and step", least=1)
    ] = None,
    learning_rate: Annotated[float | None, _recipe("--learning-rate", "Peak learning rate")] = None,
    eval_num_beams: Annotated[int | None, _recipe("--beams", "Beams of the validation", least=1)] = None,
    latent_aggregation: Aggregation = "max",
    early_stopping_patience: Annotated[
        int | None,
        typer.Option("--early-stopping", min=1, help="Stop after so many validations without a better ndcg@10."),
    ] = None,
    eval_steps: Annotated[
        float | None, typer.Option(help="Steps (below 1: share of all) between validations; else one per epoch.")
    ] = None,
    streaming: Annotated[
        bool | None,
        typer.Option(
            "--streaming/--no-streaming",
            help="Read the training part anew in each epoch instead of holding it in memory (default: of more than 20 "
            "million targets).",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, bf16, fp16 or fp32.", show_default="auto")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads on a CPU.", show_default="by the size of the model")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, batches and latents.", show_default="42")] = None,
    as_json: AsJson = False,
) -> None:
    """
    Train a model and write its run folder.

    The run folder is also the folder for the Hub. Without --ids, --from and --architecture, ids, network and schedule
    follow from the size of the data; what was chosen is shown, and single options change it.

    Any further option is one of transformers.TrainingArguments, such as --weight-decay 0.1; PREPARED then stands
    first.

    \b
    Examples:
      hf-genrec train data --output run
      hf-genrec train data --ids ids --output run --epochs 10 --weight-decay 0.1 --seed 7
      hf-genrec train data --ids ids --output run --resume
      hf-genrec train data --ids opq_ids --output run --architecture acerec --set alignment_weight=0
      hf-genrec train data --output run --architecture sasrec
      hf-genrec train data --ids ids --output run --architecture llm --backbone HuggingFaceTB/SmolLM2-135M --lora 16
      hf-genrec train new_data --from run --output tuned --learning-rate 0.0003 --epochs 3
      hf-genrec train data --from run --output tuned --objective grpo --rewards hit=1,rank=1 --plot rewards.png
      torchrun --nproc_per_node 2 scripts/train.py data --ids ids --output run
    """
    if not output:
        raise ValueError("`--output` must name a folder, got an empty word.")
    if prepared_folder.startswith("-"):
        raise ValueError(f"Name the prepared folder before {prepared_folder} and other options of the trainer.")
    from hf_genrec.training.arguments import GenRecTrainingArguments

    chooses = ids is None and origin is None and architecture is None and not paper
    asked = SimpleNamespace(
        **ctx.params,
        words=ctx.args,
        chooses=chooses,
        options={parameter.name: parameter.opts[0] for parameter in ctx.command.params},
        fields=given({name: ctx.params[name] for name in _SHAPE}),
        schedule=given(arguments_for(GenRecTrainingArguments, ctx)),
    )
    check_llm(asked)
    _check_model(asked)
    _check_origin(asked)
    asked.fields |= name_values("--set", shape or [])
    if eval_steps is not None:
        asked.schedule |= {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": eval_steps}
    with output_on(as_json) as show:
        from hf_genrec.data.prepared import PreparedDataset
        from hf_genrec.files import single_writer

        prepared = PreparedDataset.load(prepared_folder)
        with single_writer(output):
            record = _run_training(prepared, asked)
        if record is None:
            return
        best = record["best_metric"]
        weights = [entry["dense_weight"] for entry in record["log_history"] if "dense_weight" in entry]
        # Members of a sum may have been trained at the same time: only the minutes of processors add up.
        spent = f"{record['cpu_minutes']:.1f} CPU minutes" if chooses else f"{record['minutes']:.1f} minutes"
        show(
            f"{record['num_parameters']:,} parameters, {spent}, "
            + ("not validated" if best is None else f"best validation ndcg@10: {best:.4f}"),
            *(f"weight of the dense head in lists, by the validation users: {weight:g}" for weight in weights),
            f"written to {output}; next: hf-genrec evaluate {output} {prepared_folder}",
            result={"folder": output} | record,
        )


# Options above that are fields of a config; those of the training arguments are found by their names.
_SHAPE = (
    "num_latent_tokens", "dense_head", "history_attention", "history_unit", "normalization", "d_model", "d_ff", "d_kv",
    "num_heads", "num_layers", "num_decoder_layers", "dropout_rate", "label_smoothing", "max_history_length",
)  # fmt: skip


def _arguments(asked: SimpleNamespace, kind: Any) -> Any:
    """The training arguments: what is asked for over the recipe of a kind of model."""
    from hf_genrec.training.arguments import training_arguments

    if asked.objective is not None:
        from hf_genrec.training.preference import PreferenceTrainingArguments

        settings = asked.schedule | {"objective": asked.objective}
        own: Any = {"options": asked.words, "more": asked.options.values(), "kind": PreferenceTrainingArguments}
        return training_arguments(asked.output, settings=settings, **own)
    settings = (kind.paper_schedule if asked.paper else kind.default_schedule) | asked.schedule
    return training_arguments(asked.output, settings=settings, options=asked.words, more=asked.options.values())


def _check_model(asked: SimpleNamespace) -> None:
    """Refuses ids, embeddings and checkpoints that the kind of model does not take."""
    from transformers import CONFIG_MAPPING

    kind: Any = CONFIG_MAPPING["latte" if asked.architecture in (None, LLM) else asked.architecture]
    is_new = asked.ids is not None or (asked.origin is None and not kind.has_codes)
    if is_new == (asked.origin is not None) and not asked.chooses:
        raise ValueError("Give either `--ids` (a new model) or `--from` (a checkpoint to fine-tune).")
    reads_texts = asked.dense_head or hasattr(kind, "text_dim")
    if asked.embeddings is not None and not (asked.chooses or (reads_texts and asked.origin is None)):
        raise ValueError(
            "`--embeddings` are for a new model that makes its ids, for `--dense-head` or for an architecture "
            "without ids: leave it out."
        )
    if asked.ids is not None and not kind.has_codes:
        raise ValueError(f"{kind.display_name} has no semantic IDs: leave out `--ids`.")


def _check_origin(asked: SimpleNamespace) -> None:
    """Refuses options of the shape, which a checkpoint has already, and what needs a checkpoint."""
    if (asked.objective and asked.origin is None) or (asked.plot and not asked.objective):
        raise ValueError("`--objective` needs a trained model, `--from`; `--plot` draws the log of an `--objective`.")
    wrong = [*asked.fields, *(name for name in ("paper", "architecture", "shape") if getattr(asked, name))]
    if wrong and asked.origin is not None:
        named = ", ".join(f"`{asked.options[name]}`" for name in wrong)
        raise ValueError(f"`--from` takes the shape from the checkpoint; it does not go with {named}.")


def _run_training(prepared: PreparedDataset, asked: SimpleNamespace) -> dict[str, Any] | None:
    """The record of the run; `None` in a process that is not the main one."""
    from transformers import CONFIG_MAPPING

    from hf_genrec.evaluation.record import is_finished, read_training
    from hf_genrec.tokenizers.folder import embeddings_path, read_embeddings
    from hf_genrec.training.initial import start_fresh, start_from
    from hf_genrec.training.runs import train_run

    if asked.chooses:
        return _run_chosen(prepared, asked)
    if asked.architecture == LLM:
        return _until_interrupted(asked, lambda: run_llm(prepared, asked))
    kind: Any = CONFIG_MAPPING[asked.architecture or "latte"]
    if is_finished(asked.output) and asked.resume:
        _check_finished(prepared, asked, kind)
        typer.echo(f"The run in {asked.output} is finished; nothing to resume.", err=True)
        return read_training(asked.output) if os.environ.get("RANK", "0") == "0" else None
    if asked.origin is not None:
        starting = start_from(prepared, asked.origin)
        args = _arguments(asked, type(starting.model.config))
    else:
        args = _arguments(asked, kind)
        shape = kind.paper_shape if asked.paper else kind.default_shape
        if asked.fields.get("history_attention") == "bidirectional":  # reads codes; `--history-unit item` is refused
            shape = shape | {"history_unit": "code"}
        if "code" in (asked.fields.get("history_unit"), shape.get("history_unit")):  # the dense head reads items
            shape = shape | {"dense_head": False}
        shape, vectors = shape | asked.fields, None
        if asked.embeddings is not None:
            vectors, _ = read_embeddings(embeddings_path(asked.embeddings), prepared)
            if shape.get("dense_head"):
                shape = {**shape, "dense_codes": asked.fields.get("dense_codes", False)}  # with codes the beams lose
        starting = start_fresh(
            prepared, asked.ids, shape=shape, seed=args.seed, architecture=kind.model_type, vectors=vectors
        )
    more: Any = {"targets": asked.targets, "resume": asked.resume, "command": command_line()}
    if asked.objective is not None:
        from hf_genrec.training.preference import make_preference_trainer

        more["make"] = make_preference_trainer
    record = _until_interrupted(asked, lambda: train_run(prepared, starting, asked.output, args, **more))
    if asked.plot is not None:
        from hf_genrec.training.preference import plot_reward_log

        plot_reward_log(record["log_history"], asked.plot)
    return record if args.process_index == 0 else None


def _until_interrupted(asked: SimpleNamespace, train: Callable[[], Any]) -> Any:
    """What `train` returns; after Ctrl-C what is kept, and how the run goes on."""
    try:
        return train()
    except KeyboardInterrupt:
        typer.echo(_after_interruption(asked.output, asked.resume), err=True)
        raise typer.Exit(INTERRUPTED) from None


def _run_chosen(prepared: PreparedDataset, asked: SimpleNamespace) -> dict[str, Any] | None:
    """The networks that fit the size of the data, linear models beside them, and their weighted sum as the run."""
    from hf_genrec.cli.tables import weights_line
    from hf_genrec.evaluation.record import is_finished, read_training
    from hf_genrec.training.arguments import CHECKPOINTS_NAME
    from hf_genrec.training.closed_form import ensemble_run, fit_run

    is_there = is_finished(asked.output)
    if is_there and not asked.resume:
        raise ValueError(f"The run in {asked.output} is finished. Choose another folder.")
    wanted = dict(vars(asked))  # before the choice completes it
    texts, beside = _choose(prepared, asked)
    folder = Path(asked.output) / CHECKPOINTS_NAME
    networks = {"psid": vars(asked)}
    if beside is not None and not is_there:
        networks["sasrec"] = wanted | _beside(beside, wanted)
    linear: dict[str, Any] = {"ridge": None, "item-knn": None} | ({} if texts is None else {"text": texts})
    members = {name: folder / name for name in (*networks, *linear)}
    own = [network | {"output": str(members[name]), "chooses": False} for name, network in networks.items()]
    trained, *_ = _train_networks(prepared, own)
    if trained is None:  # not the main process
        return None
    if is_there:
        return read_training(asked.output)
    for method, vectors in linear.items():
        fit_run(prepared, members[method], method=method, embeddings=vectors, command=command_line())
    seed = trained["settings"]["seed"]
    record = ensemble_run(prepared, members, asked.output, seed=seed, command=command_line())
    typer.echo(weights_line(record["ensemble"]), err=True)
    return record


def _train_networks(prepared: PreparedDataset, networks: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """The records of the first network and of those beside it, which a second process trains where that pays off."""
    from hf_genrec.evaluation.record import is_finished, read_training
    from hf_genrec.training.side_by_side import pays_off, side_by_side

    first, *others = networks
    num_targets = int(prepared.metadata["num_train_targets"])
    num_targets = sum(round(num_targets * other["schedule"].get("num_train_epochs", 1)) for other in others)
    together = bool(others) and not is_finished(first["output"]) and pays_off(num_targets)
    with side_by_side(_train_beside, others) if together else contextlib.nullcontext():
        records = [_train_network(prepared, first)]
    for other in others:
        if together and is_finished(other["output"]):
            records.append(read_training(other["output"]))
            typer.echo(f"{other['output']} was trained at the same time, by a second process.", err=True)
        else:  # what it has not finished is continued here, where errors are shown
            typer.echo(f"{first['output']} is trained; now {other['output']}:", err=True)
            records.append(_train_network(prepared, other | ({"resume": True} if together else {})))
    return records


def _train_network(prepared: PreparedDataset, network: dict[str, Any]) -> dict[str, Any] | None:
    from hf_genrec.evaluation.record import is_finished

    resume = network["resume"] or is_finished(network["output"])
    return _run_training(prepared, SimpleNamespace(**network | {"resume": resume}))


def _train_beside(networks: list[dict[str, Any]]) -> None:
    """Runs in a process of its own."""
    from hf_genrec.data.prepared import PreparedDataset

    for network in networks:
        _train_network(PreparedDataset.load(network["prepared_folder"]), network)


def _beside(chosen: tuple[dict[str, Any], dict[str, Any]], wanted: dict[str, Any]) -> dict[str, Any]:
    """What trains a SASRec of this shape and schedule, where nothing else was wanted."""
    from hf_genrec.modeling.configuration_sasrec import SASRecConfig

    known = set(SASRecConfig.__dataclass_fields__)
    fields = chosen[0] | {name: value for name, value in wanted["fields"].items() if name in known}
    schedule = chosen[1] | wanted["schedule"]
    return {"architecture": "sasrec", "embeddings": None, "fields": fields, "schedule": schedule}


def _choose(prepared: PreparedDataset, asked: SimpleNamespace) -> tuple[Any, tuple[dict, dict] | None]:
    """
    Makes ids for the data, and completes what is asked for by what fits its size. The text vectors, `None` without,
    and what [`Choice`] says of a SASRec.
    """
    from hf_genrec.tokenizers.folder import add_behavior, embed_items, read_embeddings, tokenize_items
    from hf_genrec.training.arguments import CHECKPOINTS_NAME
    from hf_genrec.training.choice import choose
    from hf_genrec.training.processes import main_process_first

    if asked.fields.get("history_gap_buckets"):
        raise ValueError("`history_gap_buckets` needs `--architecture`: a sum of several models reads no times.")
    choice, folder = choose(prepared), Path(asked.output) / CHECKPOINTS_NAME
    typer.echo(choice.reason, err=True)
    vectors, texts = folder / "vectors.safetensors", None
    if asked.embeddings is not None:
        found, encoder = read_embeddings(asked.embeddings, prepared)
        texts = found[:, int(encoder.get("behavior_columns", 0)) :]
        if "behavior" in encoder:
            vectors = Path(asked.embeddings)
    asked.ids = str(folder / "ids")
    with main_process_first() as is_main:
        if is_main and asked.embeddings is None:
            embed_items(prepared, vectors, behavior="svd", weight=0.0)
        elif is_main and vectors != Path(asked.embeddings):
            add_behavior(prepared, asked.embeddings, vectors)
        if is_main and not (folder / "ids" / "tokenizer.json").is_file():
            tokenize_items(prepared, vectors, asked.ids, **choice.tokenizer)
    asked.embeddings = str(vectors) if choice.reads_vectors else None
    asked.fields, asked.schedule = choice.shape | asked.fields, choice.schedule | asked.schedule
    return texts if texts is not None and texts.shape[1] else None, choice.beside


def _after_interruption(output: str, resume: bool) -> str:
    """What is kept of an interrupted training, and how it goes on."""
    kept = sorted((Path(output) / "checkpoints").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    if not kept:
        return "Stopped before the first checkpoint; nothing to continue."
    again = command_line() + ("" if resume else " --resume")
    return f"Stopped. {kept[-1]} is kept; continue with:\n  {again}"


def _check_finished(prepared: PreparedDataset, asked: SimpleNamespace, kind: Any) -> None:
    """Refuses to take a finished run for one with other settings, before a model is made or loaded."""
    from hf_genrec.tokenizers.folder import load_tokenized
    from hf_genrec.training.runs import check_same_run

    args = _arguments(asked, kind)
    words = {word.lstrip("-").partition("=")[0].replace("-", "_") for word in asked.words if word.startswith("--")}
    schedule = set(asked.schedule) | words | set(kind.paper_schedule if asked.paper else {})
    expected = {name: getattr(args, name) for name in sorted(schedule)} | (kind.paper_shape if asked.paper else {})
    expected |= {"data_fingerprint": prepared.fingerprint, "from": asked.origin, "targets": asked.targets}
    expected |= {"seed": args.seed} | asked.fields
    if asked.origin is None:  # else ids and architecture are the checkpoint's
        fingerprint = None if asked.ids is None else load_tokenized(asked.ids)[0].fingerprint
        expected |= {"semantic_ids_fingerprint": fingerprint, "architecture": kind.model_type}
    check_same_run(asked.output, expected)
