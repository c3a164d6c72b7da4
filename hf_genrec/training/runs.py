"""
A prepared data set and a model to train in, a run folder out: the Hub folder, `training.json` and `checkpoints/`.

A run is finished when its `training.json` exists. Until then `checkpoints/run.json` says what is being
trained, so that a run is only continued with the settings it began with.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import HubStrategy

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.baselines import save_neighbors
from hf_genrec.evaluation.record import (
    TRAINING_NAME,
    is_finished,
    read_training,
    users_path,
    write_users,
)
from hf_genrec.files import single_writer, write_json, write_text
from hf_genrec.hub.cards import folder_card, is_generated
from hf_genrec.hub.push import full_name, push_recommender
from hf_genrec.hub.save import save_recommender
from hf_genrec.modeling.genrec_folder import recorded
from hf_genrec.training.arguments import CHECKPOINTS_NAME, GenRecTrainingArguments
from hf_genrec.training.initial import Starting
from hf_genrec.training.trainer import GenRecTrainer, Stopwatch, make_trainer


logger = logging.getLogger(__name__)

EVALUATION_NAME = "evaluation.json"


def train_run(
    prepared: PreparedDataset,
    starting: Starting,
    output_dir: str | os.PathLike[str],
    args: GenRecTrainingArguments,
    *,
    targets: str = "all",
    resume: bool | str = False,
    command: str = "",
    make: Callable[..., GenRecTrainer] = make_trainer,
) -> dict[str, Any]:
    """
    Train and write the run folder. Under `accelerate launch` only the main process writes.

    With `args.push_to_hub` the finished folder is published once, as `args.hub_model_id` (or the folder's name): see
    [`push_recommender`]. `hub_private_repo` (private if not given), `hub_token` and `hub_revision` apply.

    Args:
        prepared ([`PreparedDataset`]): The data set.
        starting ([`Starting`]): What to train.
        output_dir (`str` or `Path`): The run folder.
        args ([`GenRecTrainingArguments`]): How; see [`training_arguments`].
        targets (`str`, *optional*, defaults to `"all"`): Train on every item of a sequence or the `"last"` only.
        resume (`bool` or `str`, *optional*, defaults to `False`):
            Continue from the last whole checkpoint (from the beginning if there is none), or from the one named.
        command (`str`, *optional*): Recorded in `training.json`.
        make (`Callable`, *optional*): What makes the trainer, with the arguments of [`make_trainer`].

    Returns:
        `dict`: the content of `training.json`.

    Raises:
        ValueError: If the folder holds another run, or an unfinished one and `resume` is `False`.
        BlockingIOError: If another process writes the folder.
        ConnectionError: If the run is to be published and the Hub does not know who you are.
    """
    folder = Path(output_dir)
    with single_writer(folder):
        settings = run_settings(prepared, starting, args, targets=targets)
        checkpoint = _checkpoint_to_resume(folder, settings, resume)
        repo_id = _repository(folder, args)
        silent = copy.copy(args)
        silent.push_to_hub = False  # Trainer would publish checkpoints
        stopwatch = Stopwatch(checkpoint)  # a teacher's lists are part of the training
        trainer = make(starting.model, prepared, silent, targets=targets)
        if not args.disable_tqdm:
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(TrainingProgress())
        if trainer.is_world_process_zero():
            (folder / CHECKPOINTS_NAME).mkdir(parents=True, exist_ok=True)
            write_json(settings, folder / CHECKPOINTS_NAME / "run.json")
        trainer.add_callback(stopwatch)
        trainer.train(resume_from_checkpoint=checkpoint)
        record = {
            "command": command,
            "settings": settings,
            "data": {"category": prepared.metadata.get("category")},
            "semantic_ids": _shape_of_ids(starting),
            **stopwatch.read(of_all=True),
            "num_threads": trainer.num_threads,
            "device": trainer.device_name,
            "resumed_from": checkpoint and Path(checkpoint).name,
            "num_parameters": sum(parameter.numel() for parameter in starting.model.parameters()),
            "num_train_targets": _num_targets(trainer.train_dataset),
            "best_metric": trainer.state.best_metric,
            "log_history": _finite(trainer.state.log_history),
        }
        if trainer.is_world_process_zero():
            _write_run(folder, prepared, starting, record)
            if repo_id is not None:
                _push_run(folder, repo_id, args)
        trainer.accelerator.wait_for_everyone()
        return record


def run_settings(
    prepared: PreparedDataset, starting: Starting, args: GenRecTrainingArguments, *, targets: str = "all"
) -> dict[str, Any]:
    """
    What decides the result of a run, without what is a matter of the machine or the display. Two runs with equal
    settings on one machine end with equal weights. A run that begins with a checkpoint has `trained_on`, the
    fingerprints of all data its weights will have seen, where known.

    Args: see [`train_run`].
    """
    defaults = json.loads(GenRecTrainingArguments(output_dir=args.output_dir).to_json_string())
    training = {
        name: value
        for name, value in json.loads(args.to_json_string()).items()
        if name not in _NO_SETTINGS and value != defaults.get(name)
    }
    seen = [*(name for name in starting.trained_on if name != prepared.fingerprint), prepared.fingerprint]
    return {
        "data_fingerprint": prepared.fingerprint,
        "protocol": prepared.metadata["protocol"],
        "semantic_ids_fingerprint": starting.semantic_ids and starting.semantic_ids.fingerprint,
        "from": starting.origin,
        "targets": targets,
        "seed": args.seed,
        **({"num_processes": args.world_size} if args.world_size > 1 else {}),
        "model": config_settings(starting.model.config),
        "training": training,
        **starting.settings,
    } | ({"trained_on": seen} if starting.trained_on else {})


def one_process(settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    Settings in which a run may go on: those of the same run in one process that accumulates nothing, since a step is
    the same however processes share it.

    Args: what [`run_settings`] returns.
    """
    training, alone = dict(settings["training"]), GenRecTrainingArguments.per_device_train_batch_size
    parts = training.pop("gradient_accumulation_steps", 1) * settings.get("num_processes", 1)
    targets = training.pop("per_device_train_batch_size", alone) * parts
    training |= {} if targets == alone else {"per_device_train_batch_size": targets}
    return {name: value for name, value in settings.items() if name != "num_processes"} | {"training": training}


def config_settings(config: Any) -> dict[str, Any]:
    """What of a model's config decides the result of a run. Args: the config."""
    not_decisive = {"transformers_version", "architectures", "dtype", "auto_map", "_name_or_path"}
    return {name: value for name, value in config.to_diff_dict().items() if name not in not_decisive}


def check_same_run(folder: str | os.PathLike[str], expected: Mapping[str, Any]) -> None:
    """
    Raises a `ValueError` that names each difference, where a finished run is not the one that is asked for.

    Args: its folder, and settings by their names in [`run_settings`], in [`GenRecTrainingArguments`] or in the model's
    config; `architecture` is the type of the model.
    """
    settings = read_training(folder)["settings"]
    kind = settings["model"].get("model_type")
    made = json.loads(GenRecTrainingArguments(output_dir=os.fspath(folder)).to_json_string()) | settings["training"]
    made |= CONFIG_MAPPING[kind].from_dict(settings["model"]).to_dict() | settings | {"architecture": kind}
    counts = {name: value for name, value in expected.items() if name not in _NO_SETTINGS - {"seed"}}
    found = differences(made, counts)
    if found:
        raise ValueError(
            f"The run in {folder} is finished and is another one than asked for: {found}. Repeat its settings, or "
            "choose another folder."
        )


def write_evaluation(
    folder: str | os.PathLike[str], config: Any, record: Mapping[str, Any], *, users: pa.Table | None = None
) -> None:
    """
    Puts an evaluation into a run folder: `evaluation.json`, `evaluation_users.parquet`, and the card unless it
    was edited.

    Args: the run folder, the model's config, the record, and its results per user; `None` removes those of an earlier
    one.
    """
    folder = Path(folder)
    path, card = folder / EVALUATION_NAME, folder / "README.md"
    with single_writer(folder):
        users_path(path).unlink(missing_ok=True)  # a record never stands beside another one's users
        with recorded(folder, path.name):
            write_json(record, path)
        if card.is_file() and is_generated(card.read_text(encoding="utf-8")):
            write_text(folder_card(folder, config=config), card)
        if users is not None:
            write_users(users, users_path(path), keep_names=True)


class TrainingProgress(ProgressCallback):
    """
    One readable line per evaluation on stderr instead of dictionaries on stdout, and a progress bar.

    Where stderr is no terminal, a line every few seconds takes the place of the bar, which would flood a file.
    """

    def __init__(self) -> None:
        super().__init__()
        self._has_bar, self._last_line, self._loss = sys.stderr.isatty(), time.monotonic(), ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `ProgressCallback`."""
        if self._has_bar:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `ProgressCallback`."""
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)
        elif state.is_world_process_zero and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            values = (state.global_step, state.max_steps, state.epoch or 0.0, self._loss)
            logger.log(_PROGRESS, "step %d of %d, epoch %.2f%s", *values)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `ProgressCallback`."""
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """An evaluation's log is a line; the loss stands beside the bar or in the next line."""
        if not state.is_world_process_zero or not logs:
            return
        shown = {name.removeprefix("eval_"): value for name, value in logs.items() if isinstance(value, float)}
        if "eval_loss" in logs:
            metrics = "  ".join(f"{name} {shown[name]:.4f}" for name in ("loss", "recall@10", "ndcg@10"))
            logger.log(_PROGRESS, "epoch %.2f  validation: %s", state.epoch or 0.0, metrics)
        elif "loss" in logs:
            self._loss = f", loss {shown['loss']:.3f}"
            if self.training_bar is not None:
                self.training_bar.set_postfix(loss=f"{shown['loss']:.3f}", refresh=False)


_SECONDS_BETWEEN_LINES = 10
_PROGRESS = 25  # between INFO and WARNING: shown unless `--quiet` is given


_NO_SETTINGS = {"output_dir", "logging_dir", "run_name", "disable_tqdm", "report_to", "seed", "use_cpu", "threads"}
_NO_SETTINGS |= {"push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "hub_revision", "hub_strategy"}


def _checkpoint_to_resume(folder: Path, settings: Mapping[str, Any], resume: bool | str) -> str | None:
    """The checkpoint's folder; `None` to begin at the beginning."""
    if is_finished(folder):
        raise ValueError(f"The run in {folder} is finished ({TRAINING_NAME} exists). Choose another folder.")
    if isinstance(resume, str):
        if not _is_whole(Path(resume)):
            raise ValueError(f"{resume} is no whole checkpoint folder.")
        return resume
    whole = sorted(
        (path for path in (folder / CHECKPOINTS_NAME).glob("checkpoint-*") if _is_whole(path)),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    if not whole:
        return None
    if not resume:
        raise ValueError(
            f"{folder} holds an unfinished run ({whole[-1].name}). Pass `--resume` to continue it, or choose another "
            "folder."
        )
    begun = json.loads((folder / CHECKPOINTS_NAME / "run.json").read_text(encoding="utf-8"))
    now = json.loads(json.dumps(dict(settings)))
    if "trained_on" not in begun:  # before runs wrote it down
        now.pop("trained_on", None)
    shown = differences(one_process(begun), one_process(now))
    if shown:
        raise ValueError(
            f"The run in {folder} was started with other settings: {shown}. Repeat them, or choose another folder."
        )
    return str(whole[-1])


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of `now` was another value before, in words. Args: settings by name."""
    return "; ".join(
        f"{name} was {before.get(name)}, is {value}" for name, value in now.items() if value != before.get(name)
    )


def _is_whole(checkpoint: Path) -> bool:
    """
    A killed process leaves a checkpoint without a readable `trainer_state.json`, which is written last; a checkpoint
    with damaged weights is left out with a warning.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        for weights in checkpoint.glob("*.safetensors"):
            with safe_open(weights, framework="pt"):  # compares the header with the size of the file
                pass
    except (OSError, ValueError):
        return False
    except SafetensorError as error:
        logger.warning("The weights of %s are damaged (%s): an earlier checkpoint is taken.", checkpoint, error)
        return False
    return True


def _write_run(folder: Path, prepared: PreparedDataset, starting: Starting, record: Mapping[str, Any]) -> None:
    starting.model.recommend_config.exclude_seen = not prepared.has_repeats
    save_recommender(folder, starting.model, starting.semantic_ids, prepared.items, quantizer=starting.quantizer)
    if not prepared.is_large:  # they are found in all histories at once
        save_neighbors(prepared, folder)
    write_json(record, folder / TRAINING_NAME)  # last: it says that the run is finished


def _num_targets(rows: Any) -> int:
    """Targets of an epoch, of rows in memory or streamed."""
    return rows.num_targets if hasattr(rows, "num_targets") else int(sum(rows.targets_per_row))


def _shape_of_ids(starting: Starting) -> dict[str, Any] | None:
    """Policy, levels and codes of the semantic IDs; `None` without any, and where a checkpoint does not say."""
    if starting.semantic_ids is None:
        return None
    if starting.origin is not None:  # its catalog holds codes, not the policy that made them
        return read_training(starting.origin).get("semantic_ids")
    return {name: getattr(starting.semantic_ids, name) for name in ("policy", "num_levels", "codebook_size")}


def _repository(folder: Path, args: GenRecTrainingArguments) -> str | None:
    """Where the run is to be published; asked before the training, so that hours later it is not an error."""
    if not args.push_to_hub:
        return None
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError(
            f"`hub_strategy` {HubStrategy(args.hub_strategy).value!r} is not supported: checkpoints are not "
            "uploaded and the finished run is published once. Leave it out."
        )
    owner = full_name(folder.resolve().name, token=args.hub_token).partition("/")[0]
    name = args.hub_model_id or folder.resolve().name
    return name if "/" in name else f"{owner}/{name}"


def _push_run(folder: Path, repo_id: str, args: GenRecTrainingArguments) -> None:
    """Publish a finished run; what goes wrong is logged and does not undo the training."""
    is_private = True if args.hub_private_repo is None else args.hub_private_repo
    try:
        published = push_recommender(
            folder, repo_id, private=is_private, revision=args.hub_revision, token=args.hub_token
        )
    except (OSError, ValueError) as error:
        logger.error("%s\nThe run is finished. Publish it with: hf-genrec push %s --repo %s", error, folder, repo_id)
    else:
        logger.log(_PROGRESS, "published: %s", published.url)


def _finite(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """JSON knows no NaN: a gradient norm may be one."""
    return [{name: value if math.isfinite(value) else None for name, value in entry.items()} for entry in log_history]
