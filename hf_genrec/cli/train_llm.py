"""
`hf-genrec train --architecture llm`: what is particular to language models among the options of `train`.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import typer

from hf_genrec.cli.command_line import command_line


if TYPE_CHECKING:
    from hf_genrec.data.prepared import PreparedDataset

LLM = "llm"
_OF_BACKBONE = (
    "num_latent_tokens", "dense_head", "history_attention", "history_unit", "d_model", "d_ff", "d_kv", "num_heads",
    "num_layers", "num_decoder_layers", "dropout_rate", "label_smoothing",
)  # fmt: skip
_OF_OTHERS = ("embeddings", "origin", "paper", "objective", "plot")


def check_llm(asked: SimpleNamespace) -> None:
    """
    Refuses options that mean nothing for the kind of model, before anything is loaded. Args: what was asked for.
    """
    if asked.architecture != LLM:
        for name in ("backbone", "lora"):
            if getattr(asked, name) is not None:
                raise ValueError(f"`{asked.options[name]}` is for `--architecture llm`: leave it out, or add that.")
        return
    from hf_genrec.llm.runs import check_peft

    check_peft()
    fixed = [f"`{asked.options[name]}`" for name in _OF_BACKBONE if getattr(asked, name) is not None]
    if fixed:
        raise ValueError(f"A language model keeps its network: leave out {', '.join(fixed)}.")
    others = [f"`{asked.options[name]}`" for name in _OF_OTHERS if getattr(asked, name)]
    if asked.latent_aggregation != "max":
        others.append("`--latent-aggregation`")
    if others:
        raise ValueError(f"{', '.join(others)} would have no effect with `--architecture llm`: leave it out.")
    if asked.backbone is None:
        raise ValueError(
            "`--architecture llm` needs `--backbone`: a folder or repository with a causal language model, such as "
            "HuggingFaceTB/SmolLM2-135M."
        )
    if asked.ids is None:
        raise ValueError("`--architecture llm` needs `--ids`, the folder that `hf-genrec tokenize` wrote.")


def run_llm(prepared: PreparedDataset, asked: SimpleNamespace) -> dict[str, Any] | None:
    """The record of the run; `None` in a process that is not the main one. Args: the data, and what was asked for."""
    from hf_genrec.evaluation.record import is_finished, read_training
    from hf_genrec.llm.runs import FULL_SCHEDULE, LORA_SCHEDULE, check_same_llm_run, train_llm
    from hf_genrec.llm.sft import SftSettings
    from hf_genrec.training.arguments import did_you_mean, training_arguments

    fields = dict(asked.fields) | ({} if asked.lora is None else {"lora": asked.lora})
    known = [field.name for field in dataclasses.fields(SftSettings)]
    if unknown := sorted(set(fields) - set(known)):
        raise ValueError(f"`--set` knows {', '.join(known)} here, not {unknown[0]}.{did_you_mean(unknown, known)}")
    settings = SftSettings(**fields)
    schedule = (LORA_SCHEDULE if settings.lora else FULL_SCHEDULE) | asked.schedule
    args = training_arguments(asked.output, settings=schedule, options=asked.words, more=asked.options.values())
    options: dict[str, Any] = {"backbone": asked.backbone, "settings": settings, "targets": asked.targets}
    if is_finished(asked.output) and asked.resume:
        check_same_llm_run(prepared, asked.ids, asked.output, args, **options)
        typer.echo(f"The run in {asked.output} is finished; nothing to resume.", err=True)
        return read_training(asked.output) if args.process_index == 0 else None
    record = train_llm(prepared, asked.ids, asked.output, args, **options, resume=asked.resume, command=command_line())
    return record if args.process_index == 0 else None
