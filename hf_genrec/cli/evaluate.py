"""
`hf-genrec evaluate`: a run folder and prepared data become metrics beside the baselines.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_genrec.cli.command_line import app, given, name_values, output_on
from hf_genrec.cli.options import (
    Aggregation,
    AsJson,
    Beams,
    Decoding,
    Device,
    Dtype,
    Model,
    Prepared,
    SearchOptions,
    torch_dtype,
)


if TYPE_CHECKING:
    from hf_genrec.evaluation.evaluate import EvaluationRecord


@app.command("evaluate")
def _evaluate(
    model: Model,
    prepared_folder: Prepared,
    split: Annotated[Literal["test", "validation"], typer.Option()] = "test",
    num_beams: Beams = None,
    decoding: Decoding = None,
    latent_aggregation: Aggregation = None,
    search_options: SearchOptions = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Users decoded at a time.")] = 64,
    max_users: Annotated[int | None, typer.Option(min=1, help="A sample of this many users.")] = None,
    seen: Annotated[
        Literal["allowed", "excluded", "auto"],
        typer.Option(
            help="Items of the history in the first column, which has all figures: papers allow them; auto excludes "
            "them where the data has almost no repeats. The other column is measured too.",
        ),
    ] = "allowed",
    exclude_seen: Annotated[bool, typer.Option("--exclude-seen", help="The same as --seen excluded.")] = False,
    no_baselines: Annotated[bool, typer.Option("--no-baselines", help="Without popularity and item-kNN.")] = False,
    exact_sample: Annotated[
        int, typer.Option(min=0, help="Score all items exactly for this many users: what does the search miss?")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples and the bootstrap.")] = 0,
    device: Device = None,
    dtype: Dtype = None,
    output: Annotated[
        str | None, typer.Option(help="Write the record to this JSON file too, and ranks per user beside it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """
    Measure a model beside baselines, on held-out items.

    The whole catalog is ranked for every user; recall, ndcg and what the lists are like are shown. An evaluation of
    all users on the test split with the weights as saved is also written into the run folder, as evaluation.json and,
    one row per user, evaluation_users.parquet.

    \b
    Examples:
      hf-genrec evaluate run data
      hf-genrec evaluate run data --split validation --max-users 2000 --beams 20
      hf-genrec evaluate run data --exact-sample 200
      hf-genrec evaluate user/repository data --json > record.json
      torchrun --nproc_per_node 2 -m hf_genrec.cli.main evaluate run data
    """
    with output_on(as_json) as show:
        from hf_genrec.cli.tables import evaluation_tables
        from hf_genrec.data.checks import check_trained_on
        from hf_genrec.data.prepared import PreparedDataset
        from hf_genrec.evaluation.baselines import save_neighbors
        from hf_genrec.evaluation.evaluate import EvaluationSettings, evaluate
        from hf_genrec.evaluation.record import evaluation_run, read_training
        from hf_genrec.files import single_writer
        from hf_genrec.serving.recommender import Recommender
        from hf_genrec.training.initial import check_same_catalog

        options = given({"decoding": decoding}) | name_values("--search", search_options or [])
        beams = given({"num_beams": num_beams, "latent_aggregation": latent_aggregation})
        processes = _processes(device)
        device = device or (None if processes is None else str(processes.device))
        recommender = Recommender.from_pretrained(
            model, batch_size=batch_size, device=device, dtype=torch_dtype(dtype), **(beams | options)
        )
        prepared = PreparedDataset.load(prepared_folder)
        check_same_catalog(recommender.item_ids, prepared, owner=f"The checkpoint {model}")
        check_trained_on(read_training(model), prepared.metadata, owner=f"The run {model}")
        settings = EvaluationSettings(
            split=split, max_users=max_users, seed=seed, exact_sample=exact_sample, show_progress=True,
            exclude_seen=_SEEN["excluded" if exclude_seen else seen],
        )  # fmt: skip
        asked = {name: getattr(recommender.config, name) for name in ("num_beams", "latent_aggregation")}
        run = evaluation_run(model, **asked, decoding=recommender.decoding, dtype=recommender.model.dtype)
        run |= {"search_options": options}
        baselines: dict[str, Any] | None = {} if no_baselines else None
        is_whole = split == "test" and max_users is None and not settings.exclude_seen
        is_kept = is_whole and dtype is None and Path(model).is_dir()
        write = partial(_write, output=output, run=Path(model) if is_kept else None, config=recommender.model.config)
        with single_writer(model) if is_kept else nullcontext():
            record = evaluate(
                recommender, prepared, settings, baselines=baselines, run=run, on_result=write, accelerator=processes
            )
            if processes is not None and not processes.is_main_process:
                return
            if is_kept:
                save_neighbors(prepared, model)
        notes = []
        if is_whole and dtype is not None and output is None:
            notes.append("With --dtype nothing is written into the run folder: give --output to keep the figures.")
        if split == "validation" and baselines is None:
            notes.append("item_knn was tuned on users of this split: its numbers here are higher than they should be.")
        show(*evaluation_tables(record), *notes, result=record)


def _processes(device: str | None) -> Any:
    """Those that `accelerate launch` or torchrun started, which share the users; `None` for a single one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    import torch
    from accelerate import Accelerator

    return Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())  # else it sees one process on a CPU


_SEEN: dict[str, Literal["auto"] | bool] = {"allowed": False, "excluded": True, "auto": "auto"}


def _write(record: EvaluationRecord, *, output: str | None, run: Path | None, config: Any) -> None:
    """After the model and after each baseline: what comes later cannot lose it."""
    from hf_genrec.evaluation.record import users_path, write_users
    from hf_genrec.files import write_json
    from hf_genrec.training.runs import write_evaluation

    if output is not None:
        write_json(record, output)
        write_users(record.users, users_path(output))
    if run is not None:
        write_evaluation(run, config, record, users=record.users)
