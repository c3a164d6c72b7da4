"""
The network of the RQ-VAE: embeddings `(batch, input_dim)` in, codes `(batch, num_levels)` and reconstructions out.

An encoder maps an embedding to a latent, residual codebooks approximate the latent by one centroid per level, and a
decoder maps the sum of the centroids back. [`RQVAE`] trains it and has the interface of the other quantizers.
"""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from hf_genrec.tokenizers.base import check_sizes


@strict
class RQVAEConfig(PreTrainedConfig):
    """
    Sizes of an RQ-VAE and the weights of its loss.

    Args:
        input_dim (`int`, defaults to 192): Columns of the embeddings.
        hidden_sizes (`list[int]`, defaults to `(512, 256, 128)`): Of the encoder; the decoder mirrors them.
        latent_dim (`int`, defaults to 32): Columns of the latents and of the codebooks.
        num_levels (`int`, defaults to 3): Codebooks.
        codebook_size (`int`, defaults to 256): Centroids per codebook, a power of two.
        commitment_weight (`float`, defaults to 0.25): Weight of what draws latents towards their centroids.
        reconstruction (`str`, defaults to `"squared"`):
            Error of the decoded vector, or `"contrastive"`: among the vectors of the batch it must point at its own
            (InfoNCE on cosines, temperature 0.1), which keeps what distinguishes items. As in CoST.
        dropout (`float`, defaults to 0.0): Dropout after each hidden layer.
        sinkhorn_epsilon (`float`, defaults to 0.0):
            Above 0, training assigns the last `sinkhorn_levels` levels so that all codes are used about equally; the
            smaller, the closer to the nearest centroid. LETTER and LC-Rec take 0.003.
        sinkhorn_iterations (`int`, defaults to 50): Rounds of that balancing.
        sinkhorn_levels (`int`, defaults to 1): Levels that are balanced, counted from the last.
        quantizer_type (`str`, defaults to `"rqvae"`): What [`Quantizer.load`] goes by.

    Raises:
        ValueError: If a size or weight is out of range.

    Source: Rajput et al. 2023, section 3.1 (https://huggingface.co/papers/2305.05065); CoST (2404.14774), section 3.
    """

    model_type = "rqvae"
    keys_to_ignore_at_inference = ["latents", "quantized", "reconstruction_loss", "codebook_loss", "commitment_loss"]

    input_dim: int = 192
    hidden_sizes: list[int] | tuple[int, ...] = (512, 256, 128)
    latent_dim: int = 32
    num_levels: int = 3
    codebook_size: int = 256
    commitment_weight: float = 0.25
    reconstruction: str = "squared"
    dropout: float = 0.0
    sinkhorn_epsilon: float = 0.0
    sinkhorn_iterations: int = 50
    sinkhorn_levels: int = 1
    quantizer_type: str = "rqvae"

    def __post_init__(self, **kwargs) -> None:  # type: ignore[no-untyped-def]
        check_sizes(num_levels=self.num_levels, codebook_size=self.codebook_size)
        for name, least in (("input_dim", 1), ("latent_dim", 1), ("sinkhorn_iterations", 1), ("sinkhorn_levels", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if any(size < 1 for size in self.hidden_sizes):
            raise ValueError(f"`hidden_sizes` must be positive, got {list(self.hidden_sizes)}.")
        for name in ("commitment_weight", "sinkhorn_epsilon"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        if self.reconstruction not in ("squared", "contrastive"):
            raise ValueError(f'`reconstruction` must be "squared" or "contrastive", got {self.reconstruction!r}.')
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must lie in [0, 1), got {self.dropout}.")
        super().__post_init__(**kwargs)


@dataclass
class RQVAEOutput(ModelOutput):
    """What [`RQVAEModel`] returns."""

    loss: torch.Tensor | None = None  # reconstruction, codebook and weighted commitment loss together
    reconstruction: torch.Tensor | None = None  # (batch, input_dim), in the scale of the embeddings
    codes: torch.Tensor | None = None  # (batch, num_levels); balanced in training if so set
    latents: torch.Tensor | None = None  # (batch, latent_dim), what the codes approximate
    quantized: torch.Tensor | None = None  # (batch, latent_dim), the sum of the centroids; straight-through
    # Squared error per row over the mean variance of a column, summed over columns.
    reconstruction_loss: torch.Tensor | None = None
    codebook_loss: torch.Tensor | None = None  # squared distance of centroids to residuals, summed over levels
    commitment_loss: torch.Tensor | None = None  # the same number, whose gradient moves the encoder


class RQVAEModel(PreTrainedModel):
    """
    MLP encoder, residual codebooks with the straight-through estimator, MLP decoder.

    Embeddings are centred and divided by one number, so that learning rates do not depend on their scale; both are
    part of the weights and set by [`RQVAEModel.set_scale`].

    Source: Rajput et al. 2023, section 3.1 (https://huggingface.co/papers/2305.05065).
    """

    config: RQVAEConfig
    config_class = RQVAEConfig
    base_model_prefix = "rqvae"
    main_input_name = "embeddings"
    input_mean: torch.Tensor
    input_scale: torch.Tensor

    def __init__(self, config: RQVAEConfig) -> None:
        super().__init__(config)
        sizes = [config.input_dim, *config.hidden_sizes, config.latent_dim]
        self.encoder = _perceptron(sizes, dropout=config.dropout)
        self.decoder = _perceptron(sizes[::-1], dropout=config.dropout)
        self.codebooks = nn.Parameter(torch.empty(config.num_levels, config.codebook_size, config.latent_dim))
        self.register_buffer("input_mean", torch.zeros(config.input_dim))
        self.register_buffer("input_scale", torch.ones(()))
        # What training saw since the last restart; no part of the weights.
        self._seen: torch.Tensor | None = None  # (L, K) counts
        self._residuals: torch.Tensor | None = None  # (L, B, D) of the last batch
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, RQVAEModel):
            init.normal_(module.codebooks, std=0.02)
            init.zeros_(module.input_mean)
            init.ones_(module.input_scale)

    def forward(self, embeddings: torch.Tensor) -> RQVAEOutput:
        """Codes, reconstruction and loss of a batch of embeddings `(batch, input_dim)`; see [`RQVAEOutput`]."""
        scaled = (embeddings - self.input_mean) / self.input_scale
        latents = self.encoder(scaled)
        codes, residuals, centroids = self._quantize(latents, is_balanced=self.training)
        # Straight-through: forward the sum of the centroids, backward as if the decoder had seen the latents, since
        # choosing a centroid has no gradient. Codebooks learn from the codebook loss alone.
        quantized = latents + (centroids.sum(dim=0) - latents).detach()
        decoded = self.decoder(quantized)
        reconstruction_loss = (
            (decoded - scaled).square().sum(dim=1).mean()
            if self.config.reconstruction == "squared"
            else _contrast(decoded, scaled)
        )
        codebook_loss = (residuals.detach() - centroids).square().sum(dim=(0, 2)).mean()
        commitment_loss = (residuals - centroids.detach()).square().sum(dim=(0, 2)).mean()
        if self.training:
            self._note(codes, residuals.detach())
        return RQVAEOutput(
            loss=reconstruction_loss + codebook_loss + self.config.commitment_weight * commitment_loss,
            reconstruction=decoded * self.input_scale + self.input_mean,
            codes=codes,
            latents=latents,
            quantized=quantized,
            reconstruction_loss=reconstruction_loss,
            codebook_loss=codebook_loss,
            commitment_loss=commitment_loss,
        )

    def encode(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Latents `(batch, latent_dim)` of embeddings `(batch, input_dim)`."""
        return self.encoder((embeddings - self.input_mean) / self.input_scale)

    def assign(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes `(batch, num_levels)` of latents: the nearest centroid per level, the smaller code of equals."""
        return self._quantize(latents, is_balanced=False)[0]

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Embeddings `(batch, input_dim)` that codes stand for; fewer columns decode the first levels alone."""
        levels = torch.arange(codes.shape[1], device=codes.device)
        return self.decoder(self.codebooks[levels, codes].sum(dim=1)) * self.input_scale + self.input_mean

    @torch.no_grad()
    def set_scale(self, embeddings: torch.Tensor) -> None:
        """Note the centre of the rows that training uses and the root of the mean variance of their columns."""
        self.input_mean.copy_(embeddings.mean(dim=0))
        scale = (embeddings - self.input_mean).square().mean().sqrt()
        self.input_scale.copy_(torch.where(scale > 0, scale, torch.ones_like(scale)))

    @torch.no_grad()
    def restart_dead_codes(self, *, generator: torch.Generator | None = None) -> int:
        """
        Put centroids that no training row chose since the last call onto residuals of random rows of the last batch.
        Returns how many moved.
        """
        if self._seen is None or self._residuals is None:
            return 0
        dead = self._seen == 0  # (L, K)
        levels = dead.nonzero()[:, 0]
        rows = torch.randint(self._residuals.shape[1], (len(levels),), generator=generator).to(levels.device)
        self.codebooks[dead] = self._residuals[levels, rows]
        self._seen = None
        return len(levels)

    def _quantize(
        self, latents: torch.Tensor, *, is_balanced: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes (B, L); what is to be approximated at each level, (L, B, D); the chosen centroids, (L, B, D)."""
        first_balanced = self.config.num_levels - self.config.sinkhorn_levels
        epsilon = self.config.sinkhorn_epsilon if is_balanced else 0.0
        codes, residuals, chosen = [], [], []
        residual = latents
        for level, codebook in enumerate(self.codebooks):
            distances = _squared_distances(residual.detach(), codebook.detach())  # (B, K)
            if epsilon and level >= first_balanced:
                # this depends on the rest of the batch, so only training does it
                rounds = self.config.sinkhorn_iterations
                distances = distances.double() - balancing_shifts(distances, epsilon=epsilon, num_iterations=rounds)
            code = distances.argmin(dim=1)
            centroids = nn.functional.embedding(code, codebook)
            codes.append(code)
            residuals.append(residual)
            chosen.append(centroids)
            residual = residual - centroids.detach()  # so that a level's loss does not move the levels before it
        return torch.stack(codes, dim=1), torch.stack(residuals), torch.stack(chosen)

    def _note(self, codes: torch.Tensor, residuals: torch.Tensor) -> None:
        flat = codes + self.config.codebook_size * torch.arange(self.config.num_levels, device=codes.device)
        counts = torch.bincount(flat.flatten(), minlength=self.codebooks.shape[0] * self.codebooks.shape[1])
        counts = counts.view(self.codebooks.shape[:2])
        self._seen = counts if self._seen is None else self._seen + counts
        self._residuals = residuals


def balancing_shifts(distances: torch.Tensor, *, epsilon: float, num_iterations: int = 50) -> torch.Tensor:
    """
    What to take off the distance to each code, `(codebook_size,)`, so that all codes are nearest about equally often.

    Sinkhorn's algorithm finds the soft assignment whose rows and columns have equal sums; the factors of its columns
    are these shifts. Source: LC-Rec, arXiv 2311.09049, section 3.2. Args: see [`RQVAEConfig`]; distances `(batch,
    codebook_size)` are squared.
    """
    # The soft assignment is diag(rows) @ kernel @ diag(columns), with both factors such that rows sum to 1 / num_rows
    # and columns to 1 / num_codes; the two lines of the loop set each in turn. The trap is the range: with epsilon
    # 0.003 the exponents reach -667, so everything is float64, each row is shifted so that its nearest code has
    # exponent 0, and sums that still underflow are clamped.
    low, high = distances.min(), distances.max()
    unit = (high - low).double().clamp_min(1e-12) * epsilon / 2
    scaled = (distances.double() - low) / unit
    kernel = torch.exp(scaled.amin(dim=1, keepdim=True) - scaled)  # (B, K)
    num_rows, num_codes = kernel.shape
    columns = torch.ones(num_codes, dtype=kernel.dtype, device=kernel.device)
    tiny = torch.finfo(kernel.dtype).tiny
    for _ in range(num_iterations):
        rows = 1 / (num_rows * (kernel @ columns).clamp_min(tiny))
        columns = 1 / (num_codes * (rows @ kernel).clamp_min(tiny))
    return columns.log() * unit  # a row's own factor does not change which code is nearest


def _contrast(decoded: torch.Tensor, scaled: torch.Tensor) -> torch.Tensor:
    unit, wanted = nn.functional.normalize(decoded, dim=1), nn.functional.normalize(scaled, dim=1)
    return nn.functional.cross_entropy(unit @ wanted.T / 0.1, torch.arange(len(unit), device=unit.device))


def _perceptron(sizes: list[int], *, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(zip(sizes[:-1], sizes[1:], strict=True), start=2):
        layers.append(nn.Linear(before, after))
        if number < len(sizes):
            layers += [nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def _squared_distances(rows: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Of every row to every centroid: (B, K)."""
    return rows.square().sum(dim=1, keepdim=True) - 2 * rows @ centroids.T + centroids.square().sum(dim=1)
