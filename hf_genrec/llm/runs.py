"""
A prepared data set, semantic IDs and the name of a language model in, a run folder out, as for every other model.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback, set_seed
from transformers.trainer_utils import IntervalStrategy

from hf_genrec.data.checks import check_learned_on
from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.sequences import SequenceCollator
from hf_genrec.evaluation.record import read_training
from hf_genrec.llm.answers import AnswerLoss
from hf_genrec.llm.mix import training_mix
from hf_genrec.llm.prompts import is_chat, sequence_prefix
from hf_genrec.llm.recommender import as_recommender
from hf_genrec.llm.sft import AnswerRows, SftSettings, SftTrainer, with_adapter
from hf_genrec.llm.vocabulary import BEGIN, SidVocabulary
from hf_genrec.modeling.modeling_causal_lm import CausalLMForItemGeneration
from hf_genrec.serving.recommender import check_model_name
from hf_genrec.tokenizers.base import Quantizer
from hf_genrec.tokenizers.folder import QUANTIZER_NAME, load_tokenized
from hf_genrec.training.arguments import GenRecTrainingArguments
from hf_genrec.training.initial import Starting, check_same_catalog
from hf_genrec.training.runs import differences, train_run
from hf_genrec.training.trainer import check_beams, validation_rows


# over those of `GenRecTrainingArguments`: adapters learn fast, and a whole network slowly
LORA_SCHEDULE = {"num_train_epochs": 3, "per_device_train_batch_size": 128, "learning_rate": 1e-3, "weight_decay": 0.0}
FULL_SCHEDULE = LORA_SCHEDULE | {"learning_rate": 3e-4, "weight_decay": 0.01}


def train_llm(
    prepared: PreparedDataset,
    tokenized: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    args: GenRecTrainingArguments,
    *,
    backbone: str | os.PathLike[str],
    settings: SftSettings | None = None,
    targets: str = "all",
    resume: bool | str = False,
    command: str = "",
) -> dict[str, Any]:
    """
    Fine-tune a language model on the histories and texts of a data set, and write the run folder.

    The folder holds an adapter of peft with the name of its base, or with `lora=0` the whole network, in the format of
    transformers; [`Recommender.from_pretrained`] and everything else read it as they read any run.

    Args:
        prepared ([`PreparedDataset`]): The data set.
        tokenized (`str` or `Path`): The tokenized folder of the same items.
        output_dir (`str` or `Path`): The run folder.
        args ([`GenRecTrainingArguments`]): How; see [`training_arguments`], `LORA_SCHEDULE` and `FULL_SCHEDULE`.
        backbone (`str` or `Path`): A causal LM of transformers: a folder, or the name of a repository.
        settings ([`SftSettings`], *optional*): What is particular to language models; `None` for the defaults.
        targets (`str`, *optional*, defaults to `"all"`): Train on every item of a sequence or the `"last"` only.
        resume (`bool` or `str`, *optional*, defaults to `False`): See [`train_run`].
        command (`str`, *optional*): Recorded in `training.json`.

    Returns:
        `dict`: the content of `training.json`.

    Raises:
        ImportError: If peft is not installed.
        ValueError: If data, ids and language model do not fit each other, and as for [`train_run`].
    """
    settings = settings or SftSettings()
    starting = start_llm(prepared, tokenized, backbone, settings=settings, seed=args.seed)
    return train_run(
        prepared,
        starting,
        output_dir,
        args,
        targets=targets,
        resume=resume,
        command=command,
        make=partial(make_sft_trainer, settings=settings),
    )


def check_same_llm_run(
    prepared: PreparedDataset,
    tokenized: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    args: GenRecTrainingArguments,
    *,
    backbone: str | os.PathLike[str],
    settings: SftSettings,
    targets: str = "all",
) -> None:
    """
    Raises a `ValueError` that names each difference, where a finished run is not the one that is asked for.

    Args: see [`train_llm`].
    """
    made = read_training(folder)["settings"]
    own = {name: value for name, value in dataclasses.asdict(settings).items() if (name, value) != ("chat", None)}
    expected = {"backbone": backbone_name(backbone), "targets": targets, "seed": args.seed, **own}
    expected |= {"data_fingerprint": prepared.fingerprint}
    expected |= {"semantic_ids_fingerprint": load_tokenized(tokenized)[0].fingerprint}
    found = differences(made | made.get("llm", {}), expected)
    if found:
        raise ValueError(
            f"The run in {folder} is finished and is another one than asked for: {found}. Repeat its settings, or "
            "choose another folder."
        )


def backbone_name(backbone: str | os.PathLike[str]) -> str:
    """The name by which an adapter finds its base: a repository, or the whole path of a folder. Args: its name."""
    name = os.fspath(backbone)
    check_model_name(name)
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def start_llm(
    prepared: PreparedDataset,
    tokenized: str | os.PathLike[str],
    backbone: str | os.PathLike[str],
    *,
    settings: SftSettings,
    seed: int,
) -> Starting:
    """
    A language model with tokens of codes and an adapter, as a recommender that is to be trained.

    Args: see [`train_llm`]; the seed is that of new rows and LoRA matrices.
    """
    check_peft()
    semantic_ids, made = load_tokenized(tokenized)
    check_same_catalog(semantic_ids.item_ids, prepared, owner=f"The tokenized folder {tokenized}")
    check_learned_on(made, prepared.metadata, owner=f"the tokenized folder {tokenized}")
    name = backbone_name(backbone)
    tokenizer = AutoTokenizer.from_pretrained(name)
    causal_lm = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    chat = is_chat(tokenizer) if settings.chat is None else settings.chat
    if chat and not is_chat(tokenizer):
        raise ValueError(f"`chat` needs a tokenizer with a chat template; that of {backbone} has none.")
    sizes = {"num_levels": semantic_ids.num_levels, "codebook_size": semantic_ids.codebook_size}
    vocabulary = SidVocabulary.add_to(tokenizer, **sizes)
    quantizer = Path(tokenized) / QUANTIZER_NAME
    options: dict[str, Any] = {"codes": semantic_ids.codes.copy(), "texts": _texts(prepared)}
    if settings.init == "codebook":
        if not quantizer.is_dir():
            raise ValueError(f"`init='codebook'` needs the quantizer, which {tokenized} does not hold: use 'words'.")
        options["centroids"] = Quantizer.load(quantizer).codebooks
    vocabulary.resize(causal_lm, tokenizer, init=settings.init, seed=seed, **options)
    set_seed(seed)
    model: Any = as_recommender(
        with_adapter(causal_lm, vocabulary, lora=settings.lora, seed=seed),
        tokenizer,
        semantic_ids,
        prefix=sequence_prefix(tokenizer, chat=chat),
        suffix=BEGIN,
        max_history_length=settings.max_history_length,
        normalization=settings.normalization,
        closes_items=False,
    )
    model.set_item_counts(torch.from_numpy(prepared.train_item_counts()))
    own = {"backbone": name, **dataclasses.asdict(settings), "chat": chat}
    return Starting(model, semantic_ids, quantizer if quantizer.is_dir() else None, settings={"llm": own})


def make_sft_trainer(
    model: CausalLMForItemGeneration,
    prepared: PreparedDataset,
    args: GenRecTrainingArguments,
    *,
    targets: str = "all",
    settings: SftSettings,
) -> SftTrainer:
    """
    A trainer of a language model over the training part of a data set; call its `train()`.

    Args: a model of [`start_llm`], and see [`train_llm`].
    """
    check_beams(model, args)
    config, tokenizer = model.config, model.tokenizer
    codes: Any = model.item_codes
    if args.teacher is not None:
        raise ValueError("`teacher` is not supported for language models: leave it out.")
    if args.streaming:
        raise ValueError("`streaming` is not supported for language models, whose rows are texts: leave it out.")
    vocabulary = SidVocabulary.from_tokenizer(tokenizer)
    loss = AnswerLoss(model.llm, vocabulary, model.catalog, normalization=settings.normalization)
    loss.check()
    length = config.max_history_length
    rows = training_mix(
        prepared,
        codes.cpu().numpy(),
        vocabulary,
        tokenizer,
        mix=settings.mix,
        chat=is_chat(tokenizer) if settings.chat is None else settings.chat,
        max_history_length=length,
        stride=max(1, length // 2) if args.window_stride is None else args.window_stride,
        loss_on=settings.loss_on,
        targets=targets,  # type: ignore[arg-type]
        seed=args.seed,
    )
    eval_rows = validation_rows(
        prepared,
        first_item_token=config.first_item_token,
        max_history_length=length,
        num_users=args.num_eval_users,
        seed=args.seed,
    )
    if args.eval_strategy != IntervalStrategy.NO and not len(eval_rows):
        raise ValueError("There are no validation users: set `eval_strategy` and `save_strategy` to 'no'.")
    patience = args.early_stopping_patience
    trainer = SftTrainer(
        model=loss,
        args=args,
        train_dataset=AnswerRows(rows, config.num_levels),
        eval_dataset=eval_rows,
        data_collator=SequenceCollator(),
        callbacks=[] if patience is None else [EarlyStoppingCallback(early_stopping_patience=patience)],
    )
    trainer.settings, trainer.recommender = settings, model
    trainer.leaves_out_seen = not prepared.has_repeats
    return trainer


def check_peft() -> None:
    """Raises an `ImportError` that names the extra where peft is missing."""
    if importlib.util.find_spec("peft") is None:
        raise ImportError('Training a language model needs peft: `pip install "hf-genrec[llm]"`.')


def _texts(prepared: PreparedDataset) -> list[str]:
    """What the rows of new tokens start from: titles, or where an item has none its text."""
    columns = (prepared.items[name].to_pylist() for name in ("title", "text"))
    return [title or text or "" for title, text in zip(*columns, strict=True)]
