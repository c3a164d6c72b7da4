"""
RQ-VAE as a quantizer: trains [`RQVAEModel`] until rows held out are no longer reconstructed better.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import nn
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments, get_cosine_schedule_with_warmup
from transformers.training_args import OptimizerNames
from transformers.utils import logging as transformers_logging

from hf_genrec.files import write_json
from hf_genrec.tokenizers.base import PROGRESS_DELAY, Quantizer, as_rows
from hf_genrec.tokenizers.rqvae_losses import BehaviorTerms
from hf_genrec.tokenizers.rqvae_network import RQVAEConfig, RQVAEModel


_TRAINING_NAME = "training.json"
_OF_NETWORK = {field.name for field in dataclasses.fields(RQVAEConfig)}
_TERMS = ("cooccurrence", "collaborative", "diversity")


class RQVAE(Quantizer):
    """
    Residual quantizer in the latent space of an autoencoder, as TIGER's ids are made.

    Codebooks start from k-means over the latents; centroids that no row chose during an epoch are put onto residuals
    of random rows. A share of the rows is held out, and training ends when they are no longer reconstructed better;
    the best weights are kept. Codes are the nearest centroids, one level after the other.

    Three terms teach it behaviour; each has the weight 0 until it is given one, and then `fit` needs `taken`. The
    names `"cosette"`, `"letter"` and `"cost"` stand for the options of these papers.

    After `fit`, `report` says how training went: `num_rows`, `num_validation_rows`, `epochs`, `best_epoch`,
    `relative_error` (of the rows held out; squared error over their variance, `None` for a single row), `history` (a
    list of both at every evaluation) and `num_restarts` of dead codes.

    Args:
        num_levels (`int`, *optional*, defaults to 3): See [`Quantizer`], as for the next two.
        codebook_size (`int`, *optional*, defaults to 256): A power of two.
        seed (`int`, *optional*, defaults to 1234): Of weights, k-means, batches, held-out rows and restarts.
        hidden_sizes, latent_dim, commitment_weight, reconstruction, dropout, sinkhorn_epsilon, sinkhorn_iterations,
        sinkhorn_levels:
            See [`RQVAEConfig`], whose defaults they have.
        cooccurrence_weight (`float`, *optional*, defaults to 0.0):
            Of drawing quantized items together that the same users took, others apart (COSETTE).
        collaborative_weight (`float`, *optional*, defaults to 0.0):
            Of finding an item's collaborative vector, from the log, among those of the batch (LETTER).
        diversity_weight (`float`, *optional*, defaults to 0.0):
            Of drawing near centroids of a level together (LETTER).
        restart_dead_codes (`bool`, *optional*, defaults to `True`): Whether unused centroids are moved.
        epochs (`int`, *optional*, defaults to 100): Passes over the rows at most. TIGER takes 20,000.
        batch_size (`int`, *optional*, defaults to 256): Rows per step. TIGER takes 1,024 and far more epochs.
        learning_rate (`float`, *optional*, defaults to 0.003): Peak; it falls to 0 along a cosine.
        optimizer (`str`, *optional*, defaults to `"adamw_torch"`): A Trainer's `optim`; TIGER takes `"adagrad"`.
        weight_decay (`float`, *optional*, defaults to 0.0): Of the optimizer.
        validation_share (`float`, *optional*, defaults to 0.1): Share of rows held out; 0 trains all epochs on all.
        evaluate_every (`int`, *optional*, defaults to 10): Epochs between evaluations on the rows held out; the
            last epoch is evaluated too.
        patience (`int`, *optional*, defaults to 5): Evaluations without an improvement before training ends.
        device (`str`, *optional*, defaults to `"cpu"`): `"cpu"` or `"cuda"`, for training.

    Raises:
        ValueError: If an argument is out of range.

    Source: Rajput et al. 2023, section 3.1 (https://huggingface.co/papers/2305.05065); COSETTE (2508.14910), LETTER
    (2405.07314), CoST (2404.14774). Their weights belong to mean squared errors; here the error is summed over the
    columns.

    Example:

    ```python
    >>> points = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    >>> quantizer = RQVAE(num_levels=2, codebook_size=4, hidden_sizes=(8,), latent_dim=3, epochs=3)
    >>> codes = quantizer.fit(points, show_progress=False).encode(points)
    >>> codes.shape, quantizer.codebooks.shape, quantizer.latents(points).shape, quantizer.decode(codes).shape
    ((64, 2), (2, 4, 3), (64, 3), (64, 6))

    ```
    """

    quantizer_type = "rqvae"
    names = {
        "rqvae": {},
        "cosette": {"cooccurrence_weight": 0.1, "sinkhorn_epsilon": 0.003},
        "letter": {"collaborative_weight": 1.0, "diversity_weight": 0.01},
        "cost": {"reconstruction": "contrastive"},
    }
    block_size = 4096
    least_rows = 0  # checked in `_fit`: what counts is how many are left without the rows held out

    def __init__(
        self,
        *,
        num_levels: int = 3,
        codebook_size: int = 256,
        seed: int = 1234,
        hidden_sizes: list[int] | tuple[int, ...] = (512, 256, 128),
        latent_dim: int = 32,
        commitment_weight: float = 0.25,
        reconstruction: str = "squared",
        dropout: float = 0.0,
        sinkhorn_epsilon: float = 0.0,
        sinkhorn_iterations: int = 50,
        sinkhorn_levels: int = 1,
        cooccurrence_weight: float = 0.0,
        collaborative_weight: float = 0.0,
        diversity_weight: float = 0.0,
        restart_dead_codes: bool = True,
        epochs: int = 100,
        batch_size: int = 256,
        learning_rate: float = 3e-3,
        optimizer: str = "adamw_torch",
        weight_decay: float = 0.0,
        validation_share: float = 0.1,
        evaluate_every: int = 10,
        patience: int = 5,
        device: str = "cpu",
    ) -> None:
        given = dict(locals())
        super().__init__(num_levels=num_levels, codebook_size=codebook_size, seed=seed)
        self._shape: dict[str, Any] = {name: given[name] for name in self._defaults() if name in _OF_NETWORK}
        self._shape |= {name: float(given[name]) for name in ("commitment_weight", "dropout", "sinkhorn_epsilon")}
        self._shape["hidden_sizes"] = list(hidden_sizes)
        self._schedule: dict[str, Any] = {name: given[name] for name in self._defaults() if name not in self._shape}
        try:
            RQVAEConfig(**self._shape)  # its checks
        except StrictDataclassFieldValidationError as error:
            raise ValueError(f"An argument has the wrong type: {' '.join(str(error).split())}.") from error
        _check_schedule(self._schedule)
        self.model: RQVAEModel | None = None
        self._exact: RQVAEModel | None = None  # the same in float64

    @property
    def codebooks(self) -> np.ndarray:
        """See [`Quantizer.codebooks`]; among the latents, not the embeddings."""
        return self._fitted().codebooks.detach().float().numpy()

    def latents(self, embeddings: np.ndarray) -> np.ndarray:
        """The encoder's output, float32 of shape `(num_items, latent_dim)`; see [`Quantizer.latents`]."""
        rows = as_rows(embeddings, dim=self.dim)
        blocks = [self._latents(block) for block in torch.from_numpy(rows).split(self.block_size)]
        return torch.cat(blocks).float().numpy()

    @property
    def reads_log(self) -> bool:
        """See [`Quantizer.reads_log`]: with any weight of behaviour."""
        return any(self._schedule[f"{name}_weight"] > 0 for name in _TERMS)

    def _fit(self, rows: np.ndarray, *, show_progress: bool) -> None:
        order = np.random.default_rng(self.seed).permutation(len(rows))
        num_held_out = round(len(rows) * self._schedule["validation_share"])
        held_out, rest = np.sort(order[:num_held_out]), np.sort(order[num_held_out:])
        as_rows(rows[rest], at_least=self.codebook_size)
        device = torch.device(self._schedule["device"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = RQVAEModel(RQVAEConfig(input_dim=rows.shape[1], **self._shape))
            train_rows = torch.from_numpy(rows[rest])
            model.set_scale(train_rows)
            _start_codebooks(model, train_rows, seed=self.seed)
            nn.Module.to(model, device)
            validation = torch.from_numpy(rows[held_out]).to(device)
            terms = None
            if self._taken is not None:
                weights = {name: float(self._schedule[f"{name}_weight"]) for name in _TERMS}
                sizes = {"dim": self._shape["latent_dim"], "batch_size": self._schedule["batch_size"]}
                terms = BehaviorTerms(self._taken[:, rest], **sizes, weights=weights, seed=self.seed).to(device)
            self.report = self._train(model, terms, train_rows.to(device), validation, show_progress=show_progress)
        if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
            raise ValueError("Training diverged: weights are not finite. Use a smaller `learning_rate`.")
        self._set_model(model.cpu())

    def _set_model(self, model: RQVAEModel) -> None:
        self.model = model.eval()
        # Codes are chosen in float64: rounding that depends on the batch then decides no code.
        self._exact = copy.deepcopy(self.model).double()

    @torch.no_grad()
    def _latents(self, rows: torch.Tensor) -> torch.Tensor:
        return self._fitted().encode(rows.double())

    @torch.no_grad()
    def _encode(self, rows: np.ndarray) -> np.ndarray:
        return self._fitted().assign(self._latents(torch.from_numpy(rows))).numpy()

    @torch.no_grad()
    def _approximations(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """The decoder's output for the sum of the first centroids."""
        for level in range(codes.shape[1]):
            yield self._fitted().decode(torch.from_numpy(codes[:, : level + 1])).float().numpy()

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, which [`RQVAEModel`] can load too, and `training.json`."""
        if self.model is None:
            raise ValueError("The quantizer is not fitted: call `fit` or `load` first.")
        self.model.save_pretrained(folder)
        write_json({"arguments": self._schedule, "report": self.report}, Path(folder) / _TRAINING_NAME)

    @classmethod
    def _open(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        training = json.loads((folder / _TRAINING_NAME).read_text(encoding="utf-8"))
        arguments = {name: config[name] for name in cls._defaults() if name in config}
        loaded = cls(**arguments | training["arguments"])
        has_bar = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()  # which it shows for the one small file
        try:
            opened: Any = RQVAEModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        except RuntimeError as error:  # transformers' report of shapes that differ
            raise ValueError(f"The weights in {folder} do not fit its config.json: {error}") from error
        finally:
            if has_bar:
                transformers_logging.enable_progress_bar()
        model, found = opened
        if found["missing_keys"]:  # which transformers would fill with random numbers
            raise ValueError(f"The weights in {folder} lack {', '.join(sorted(found['missing_keys']))}.")
        loaded._set_model(model)
        loaded._dim = model.config.input_dim
        loaded.report = training["report"]
        return loaded

    def _fitted(self) -> RQVAEModel:
        if self._exact is None:
            raise ValueError("The quantizer is not fitted: call `fit` or `load` first.")
        return self._exact

    def _train(
        self,
        model: RQVAEModel,
        terms: BehaviorTerms | None,
        rows: torch.Tensor,
        held_out: torch.Tensor,
        *,
        show_progress: bool,
    ) -> dict[str, Any]:
        """Trains in place, ends with the best weights, and returns the report."""
        plan = self._schedule
        batch_size, every = min(plan["batch_size"], len(rows)), min(plan["evaluate_every"], plan["epochs"])
        wanted = TrainingArguments(optim=plan["optimizer"], learning_rate=plan["learning_rate"], report_to="none")
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(wanted)
        parameters = [*model.parameters(), *(() if terms is None else terms.parameters())]
        optimizer = optimizer_class(parameters, **options | {"weight_decay": plan["weight_decay"]})
        num_steps = plan["epochs"] * math.ceil(len(rows) / batch_size)
        schedule = get_cosine_schedule_with_warmup(optimizer, 0, num_steps)
        generator = torch.Generator().manual_seed(self.seed)
        history: list[dict[str, Any]] = []
        best, best_epoch, best_weights = math.inf, None, None
        num_restarts = epoch = 0
        with tqdm(
            total=plan["epochs"], desc="RQ-VAE", unit="epoch", delay=PROGRESS_DELAY, disable=not show_progress
        ) as bar:
            for epoch in range(1, plan["epochs"] + 1):
                model.train()
                if terms is not None:
                    terms.begin_epoch(model)
                for picked in torch.randperm(len(rows), generator=generator).split(batch_size):
                    optimizer.zero_grad()
                    output = model(rows[picked])
                    added = 0.0 if terms is None else terms(model, rows, picked, output)
                    (output.loss + added).backward()
                    optimizer.step()
                    schedule.step()
                bar.update()
                if len(held_out) and (epoch % every == 0 or epoch == plan["epochs"]):
                    error, relative = self._errors(model.eval(), held_out)
                    history.append({"epoch": epoch, "relative_error": relative})
                    bar.set_postfix(held_out_error=f"{error if relative is None else relative:.4f}", refresh=False)
                    if error < best:
                        best, best_epoch, best_weights = error, epoch, copy.deepcopy(model.state_dict())
                    elif epoch - (best_epoch or 0) >= plan["patience"] * every:
                        break
                if plan["restart_dead_codes"] and epoch < plan["epochs"]:  # after the last they would learn nothing
                    num_restarts += model.restart_dead_codes(generator=generator)
        if best_weights is not None:
            model.load_state_dict(best_weights)
        found = {entry["epoch"]: entry["relative_error"] for entry in history}
        return {
            "num_rows": len(rows), "num_validation_rows": len(held_out), "epochs": epoch, "best_epoch": best_epoch,
            "relative_error": found.get(best_epoch), "num_restarts": num_restarts, "history": history,
        }  # fmt: skip

    @torch.no_grad()
    def _errors(self, model: RQVAEModel, rows: torch.Tensor) -> tuple[float, float | None]:
        """What training stops by, and the squared error over the variance of the rows; a single row has none."""
        outputs = [model(block) for block in rows.split(self.block_size)]
        reconstruction = torch.cat([output.reconstruction for output in outputs])
        error = float((reconstruction - rows).double().square().sum())
        spread = float((rows - rows.mean(dim=0)).double().square().sum())
        relative = error / spread if spread > 0 else None
        if self._shape["reconstruction"] == "contrastive":  # which leaves the length of a vector open
            error = float(torch.stack([output.reconstruction_loss for output in outputs]).mean())
        return error, relative


def _check_schedule(schedule: dict[str, Any]) -> None:
    for name in (f"{name}_weight" for name in _TERMS):
        if not 0 <= schedule[name] < math.inf:
            raise ValueError(f"`{name}` must be at least 0, got {schedule[name]}.")
    for name, least in (("seed", 0), ("epochs", 1), ("batch_size", 1), ("evaluate_every", 1), ("patience", 1)):
        if not isinstance(schedule[name], int) or schedule[name] < least:
            raise ValueError(f"`{name}` must be a whole number, at least {least}, got {schedule[name]!r}.")
    optimizers = [name.value for name in OptimizerNames]
    if schedule["optimizer"] not in optimizers:
        raise ValueError(f"`optimizer` must be one of {', '.join(optimizers)}, got {schedule['optimizer']!r}.")
    if not schedule["learning_rate"] > 0:
        raise ValueError(f"`learning_rate` must be above 0, got {schedule['learning_rate']}.")
    if not 0 <= schedule["validation_share"] < 1:
        raise ValueError(f"`validation_share` must lie in [0, 1), got {schedule['validation_share']}.")
    if schedule["device"] not in ("cpu", "cuda"):
        raise ValueError(f"`device` must be 'cpu' or 'cuda', got {schedule['device']!r}.")


@torch.no_grad()
def _start_codebooks(model: RQVAEModel, rows: torch.Tensor, *, seed: int) -> None:
    """Residual k-means over the latents of the untrained encoder."""
    residuals = np.ascontiguousarray(model.eval().encode(rows).numpy())
    for codebook in model.codebooks:
        kmeans = faiss.Kmeans(residuals.shape[1], len(codebook), niter=10, seed=seed, min_points_per_centroid=1)
        kmeans.train(residuals)
        centroids = np.asarray(kmeans.centroids)
        codebook.copy_(torch.from_numpy(centroids))
        residuals = residuals - centroids[kmeans.assign(residuals)[1]]
