"""
Named settings: what `train` uses unless told otherwise, and what the papers used. Data only.

Shapes are fields of the architecture's config ([`LatteConfig`], [`RPGConfig`], [`ACERecConfig`], [`SASRecConfig`]),
schedules fields of [`GenRecTrainingArguments`]; all else keeps its default.
"""

from __future__ import annotations

from typing import Any


# Latte: the shape that learns most per minute on two processor cores, chosen on validation.
QUICK_SHAPE: dict[str, Any] = {
    "history_attention": "causal",
    "history_unit": "item",
    "normalization": "catalog",
    "num_latent_tokens": 8,
    "d_model": 128,
    "d_ff": 512,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "dropout_rate": 0.1,
    "initializer_factor": 0.3,
    "embedding_std": 0.1,
}
QUICK_SCHEDULE: dict[str, Any] = {"learning_rate": 1.5e-3}

# Hou et al. 2026, section 5.1 and the published code (https://huggingface.co/papers/2605.06331).
PAPER_SHAPE: dict[str, Any] = {"history_attention": "bidirectional", "num_latent_tokens": 8}
PAPER_SCHEDULE: dict[str, Any] = {
    "num_train_epochs": 150,
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 256,
    "weight_decay": 0.05,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10_000,
    "early_stopping_patience": 20,
    "eval_num_beams": 50,
    "num_eval_users": -1,
    "precision": "fp32",
    "seed": 2024,
}
PAPER_TOKENIZER: dict[str, Any] = {
    "num_levels": 3,
    "codebook_size": 256,
    "num_whitened": 192,
    "fit_on": "all",
    "policy": "widen",
}
PAPER_ENCODER = "sentence-transformers/sentence-t5-base"
PAPER_TEST_BEAMS = 500

# RPG and ACERec: the shape is the papers' but for the scale of RPG's positions, see `RPGConfig`. The papers' warm-up
# is longer than a short run, so their batches of 256 sequences (about 1,536 targets) and their rates do not suit one.
# Nor do their windows that move by one item: they read twice the items for the same targets.
RPG_SHAPE: dict[str, Any] = {"position_std": 0.002}
PARALLEL_SCHEDULE: dict[str, Any] = {
    "num_train_epochs": 30,
    "learning_rate": 5e-4,
    "per_device_train_batch_size": 512,
    "weight_decay": 0.0,
}
# Hou et al. 2025 (https://huggingface.co/papers/2506.05781) and the published code; Beauty's learning rate.
RPG_PAPER_SCHEDULE: dict[str, Any] = {
    "num_train_epochs": 150,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 1536,
    "weight_decay": 0.0,
    "window_stride": 1,
    "warmup_steps": 10_000,
    "early_stopping_patience": 20,
    "num_eval_users": -1,
    "precision": "fp32",
    "seed": 2024,
}
# ACERec (https://huggingface.co/papers/2602.13573): one of the two learning rates that it searched; what it does not
# state is taken from RPG.
ACEREC_PAPER_SCHEDULE: dict[str, Any] = RPG_PAPER_SCHEDULE | {"learning_rate": 3e-3}

# SASRec: chosen on the validation part of Amazon 2014 Beauty; a catalog of few interactions wants much dropout.
SASREC_SHAPE: dict[str, Any] = {"d_model": 128, "num_heads": 2, "dropout_rate": 0.6}
SASREC_SCHEDULE: dict[str, Any] = {
    "num_train_epochs": 12,
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 512,
    "weight_decay": 0.3,
}
# Kang and McAuley 2018, section 4.3, but for the loss (https://arxiv.org/abs/1808.09781). Their 128 sequences of
# Beauty hold about 768 targets.
SASREC_PAPER_SHAPE: dict[str, Any] = {"d_model": 50, "d_ff": 50}
SASREC_PAPER_SCHEDULE: dict[str, Any] = {
    "num_train_epochs": 200,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 768,
    "weight_decay": 0.0,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "early_stopping_patience": 20,
    "num_eval_users": -1,
    "precision": "fp32",
    "seed": 2024,
}

SHAPES: dict[str, dict[str, Any]] = {"latte": QUICK_SHAPE, "rpg": RPG_SHAPE, "acerec": {}, "sasrec": SASREC_SHAPE}
SCHEDULES: dict[str, dict[str, Any]] = {
    "latte": QUICK_SCHEDULE,
    "rpg": PARALLEL_SCHEDULE,
    "acerec": PARALLEL_SCHEDULE,
    "sasrec": SASREC_SCHEDULE,
}
PAPER_SHAPES: dict[str, dict[str, Any]] = {
    "latte": PAPER_SHAPE,
    "rpg": {},
    "acerec": {},
    "sasrec": SASREC_PAPER_SHAPE,
}
PAPER_SCHEDULES: dict[str, dict[str, Any]] = {
    "latte": PAPER_SCHEDULE,
    "rpg": RPG_PAPER_SCHEDULE,
    "acerec": ACEREC_PAPER_SCHEDULE,
    "sasrec": SASREC_PAPER_SCHEDULE,
}
