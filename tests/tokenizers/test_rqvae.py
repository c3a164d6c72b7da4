"""RQ-VAE: the network's loss and gradients, training, codes, saving, checks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hf_genrec.tokenizers.base import Quantizer
from hf_genrec.tokenizers.collisions import reassign_by_candidates
from hf_genrec.tokenizers.rqvae import RQVAE
from hf_genrec.tokenizers.rqvae_network import RQVAEConfig, RQVAEModel, balanced_codes
from tests.invariants.quantizer import QuantizerInvariants


SIZES = {"num_levels": 2, "codebook_size": 8, "hidden_sizes": (11,), "latent_dim": 5}
SHORT = SIZES | {"epochs": 6, "batch_size": 64, "evaluate_every": 2, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    """301 rows around 23 centres."""
    random = np.random.default_rng(7)
    centres = random.normal(size=(23, 13))
    return (centres[random.integers(23, size=301)] + 0.1 * random.normal(size=(301, 13)) + 3).astype(np.float32)


@pytest.fixture(scope="module")
def quantizer(embeddings) -> RQVAE:
    return RQVAE(**SHORT).fit(embeddings, show_progress=False)


@pytest.fixture
def model() -> RQVAEModel:
    torch.manual_seed(0)
    model = RQVAEModel(RQVAEConfig(input_dim=13, **SIZES))
    with torch.no_grad():
        model.codebooks.normal_()
    return model


def test_loss_is_reconstruction_and_codebooks_and_a_quarter_of_commitment(model):
    rows = torch.randn(3, 13)

    output = model(rows)

    latents = model.encode(rows)
    first = torch.cdist(latents, model.codebooks[0]).argmin(dim=1)
    rest = latents - model.codebooks[0][first]
    second = torch.cdist(rest, model.codebooks[1]).argmin(dim=1)
    torch.testing.assert_close(output.codes, torch.stack([first, second], dim=1))
    left = rest - model.codebooks[1][second]
    distances = (rest.square().sum(1) + left.square().sum(1)).mean()
    torch.testing.assert_close(output.codebook_loss, distances)
    torch.testing.assert_close(output.commitment_loss, distances)
    error = (model.decode(output.codes) - rows).square().sum(dim=1).mean()
    torch.testing.assert_close(output.reconstruction_loss, error)
    torch.testing.assert_close(output.reconstruction, model.decode(output.codes))
    torch.testing.assert_close(output.loss, error + 1.25 * distances)


def test_reconstruction_trains_the_encoder_straight_through_and_no_codebook(model):
    rows = torch.randn(3, 13)

    model(rows).reconstruction_loss.backward()

    weight = model.encoder[-1].weight
    through_codes = weight.grad.clone()
    assert model.codebooks.grad is None
    model.zero_grad()
    latents = model.encode(rows)
    quantized = (model.codebooks[[0, 1], model.assign(latents)].sum(dim=1)).detach().requires_grad_()
    (model.decoder(quantized) - rows).square().sum(dim=1).mean().backward()
    latents.backward(quantized.grad)
    torch.testing.assert_close(weight.grad, through_codes)


def test_codebook_loss_moves_centroids_alone_and_commitment_the_encoder_alone(model):
    output = model(torch.randn(3, 13))

    output.codebook_loss.backward(retain_graph=True)

    assert model.encoder[0].weight.grad is None
    chosen = torch.zeros(2, 8, dtype=torch.bool)
    chosen[0, output.codes[:, 0]] = chosen[1, output.codes[:, 1]] = True
    torch.testing.assert_close(model.codebooks.grad.abs().sum(dim=2) > 0, chosen)
    model.zero_grad()
    output.commitment_loss.backward()
    assert model.codebooks.grad is None
    assert model.encoder[0].weight.grad.abs().sum() > 0


def test_scale_of_the_embeddings_changes_nothing_but_the_scale_of_the_reconstruction(embeddings):
    fitted = [RQVAE(**SHORT).fit(rows, show_progress=False) for rows in (embeddings, 4 * embeddings)]

    codes = fitted[0].encode(embeddings)
    np.testing.assert_array_equal(fitted[1].encode(4 * embeddings), codes)
    np.testing.assert_allclose(fitted[1].decode(codes), 4 * fitted[0].decode(codes), rtol=1e-4, atol=1e-3)


def test_dead_codes_restart_on_residuals_of_the_last_batch(model):
    model.train()
    rows = torch.randn(3, 13)
    output = model(rows)
    before = model.codebooks.detach().clone()

    num_restarts = model.restart_dead_codes(generator=torch.Generator().manual_seed(0))

    latents = output.latents.detach()
    residuals = [latents, latents - before[0][output.codes[:, 0]]]
    moved = 0
    for level in range(2):
        used = set(output.codes[:, level].tolist())
        for code in range(8):
            centroid = model.codebooks[level, code]
            if code in used:
                torch.testing.assert_close(centroid, before[level, code])
            else:
                assert (centroid == residuals[level]).all(dim=1).any()
                moved += 1
    assert num_restarts == moved > 0
    assert model.restart_dead_codes() == 0  # nothing was seen since


def test_evaluation_is_not_counted_as_use(model):
    model.eval()(torch.randn(3, 13))

    assert model.restart_dead_codes() == 0


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([2, 4, 8]), st.integers(1, 6), st.integers(0, 99))
def test_balanced_codes_are_used_equally_and_no_two_rows_should_swap(num_codes, per_code, seed):
    distances = torch.rand(num_codes * per_code, num_codes, generator=torch.Generator().manual_seed(seed))

    codes = balanced_codes(distances, epsilon=0.003, num_iterations=2000)

    counts = torch.bincount(codes, minlength=num_codes)
    assert (counts - per_code).abs().max() <= 1
    # Optimal for the number of rows that each code got: swapping two rows never pays.
    cost = distances[torch.arange(len(codes)), codes]
    swapped = distances[:, codes] + distances[:, codes].T
    assert (cost[:, None] + cost[None, :] <= swapped + 0.02).all()


def test_large_epsilon_gives_up_distances_and_small_epsilon_many_rounds_balance():
    distances = torch.tensor([[0.0, 9.0], [0.0, 1.0], [0.0, 5.0], [0.0, 6.0]])

    assert balanced_codes(distances, epsilon=0.01, num_iterations=500).tolist() == [0, 1, 1, 0]


def test_sinkhorn_balances_the_last_level_in_training_only(model):
    model.config.sinkhorn_epsilon = 0.01
    rows = torch.randn(1, 13).repeat(16, 1) + 0.001 * torch.randn(16, 13)  # all would choose the same code

    trained, evaluated = model.train()(rows).codes, model.eval()(rows).codes

    assert len(trained[:, 0].unique()) == len(evaluated[:, 0].unique()) == len(evaluated[:, 1].unique()) == 1
    assert len(trained[:, 1].unique()) >= 6


def test_training_reconstructs_better_and_keeps_the_best_weights(embeddings):
    longer = RQVAE(**SHORT | {"epochs": 60, "evaluate_every": 5}).fit(embeddings, show_progress=False)

    report = longer.report
    errors = {entry["epoch"]: entry["relative_error"] for entry in report["history"]}
    assert (report["num_rows"], report["num_validation_rows"]) == (271, 30)
    assert report["relative_error"] == min(errors.values()) == errors[report["best_epoch"]]
    assert report["relative_error"] < 0.6 * errors[5]
    held_out = np.sort(np.random.default_rng(1234).permutation(301)[:30])
    rows = embeddings[held_out]
    found = longer.relative_errors(rows, longer.encode(rows))
    assert found[-1] == pytest.approx(report["relative_error"], rel=1e-4)


def test_last_epoch_is_looked_at_and_its_weights_kept(embeddings):
    fitted = RQVAE(**SHORT | {"epochs": 5, "evaluate_every": 3}).fit(embeddings, show_progress=False)

    assert [entry["epoch"] for entry in fitted.report["history"]] == [3, 5]
    assert fitted.report["best_epoch"] == 5
    rows = embeddings[np.sort(np.random.default_rng(1234).permutation(301)[:30])]
    found = fitted.relative_errors(rows, fitted.encode(rows))
    assert found[-1] == pytest.approx(fitted.report["relative_error"], rel=1e-4)


def test_a_single_row_held_out_has_no_relative_error(embeddings):
    report = RQVAE(**SHORT | {"validation_share": 0.02}).fit(embeddings[:50], show_progress=False).report

    assert (report["num_validation_rows"], report["relative_error"]) == (1, None)
    assert [entry["relative_error"] for entry in report["history"]] == [None, None, None]
    assert report["best_epoch"] in (2, 4, 6)


def test_last_epoch_is_looked_at_once(quantizer):
    assert [entry["epoch"] for entry in quantizer.report["history"]] == [2, 4, 6]


def test_training_stops_when_rows_held_out_no_longer_improve():
    noise = np.random.default_rng(3).normal(size=(101, 13)).astype(np.float32)  # nothing to generalise

    report = RQVAE(**SHORT | {"epochs": 500, "evaluate_every": 1, "patience": 2}).fit(noise).report

    assert report["epochs"] == report["best_epoch"] + 2 < 500


def test_without_rows_held_out_all_epochs_run_on_all_rows(embeddings):
    report = RQVAE(**SHORT | {"validation_share": 0.0}).fit(embeddings, show_progress=False).report

    assert (report["num_rows"], report["num_validation_rows"], report["epochs"]) == (301, 0, 6)
    assert (report["history"], report["relative_error"]) == ([], None)


def test_codes_are_the_nearest_centroids_of_the_latents(embeddings, quantizer):
    codes = quantizer.encode(embeddings)

    residuals = quantizer.latents(embeddings)
    assert residuals.dtype == quantizer.codebooks.dtype == np.float32
    for level, centroids in enumerate(quantizer.codebooks):
        nearest = ((residuals[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
        assert (codes[:, level] == nearest).mean() > 0.99  # rounding
        residuals = residuals - centroids[codes[:, level]]


def test_collision_policies_work_in_the_latent_space(embeddings, quantizer):
    unique = reassign_by_candidates(
        quantizer.encode(embeddings)[:31], embeddings=quantizer.latents(embeddings)[:31],
        codebooks=quantizer.codebooks, widen=True,
    )  # fmt: skip

    assert len(np.unique(unique, axis=0)) == 31


def test_saved_quantizer_assigns_the_same_codes_and_opens_as_a_model(tmp_path, embeddings, quantizer):
    quantizer.save(tmp_path)
    loaded = Quantizer.load(tmp_path)

    assert isinstance(loaded, RQVAE)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "training.json"}
    codes = quantizer.encode(embeddings)
    np.testing.assert_array_equal(loaded.encode(embeddings), codes)
    np.testing.assert_array_equal(loaded.decode(codes), quantizer.decode(codes))
    assert (loaded._shape, loaded._schedule, loaded.report) == (
        quantizer._shape, quantizer._schedule, quantizer.report,
    )  # fmt: skip
    model = RQVAEModel.from_pretrained(tmp_path)
    assert model.config.hidden_sizes == [11]
    torch.testing.assert_close(model.codebooks, quantizer.model.codebooks)


def test_weights_that_lack_a_tensor_are_refused(tmp_path, quantizer):
    quantizer.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["codebooks"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match="lack codebooks"):
        RQVAE.load(tmp_path)


class TestRQVAE(QuantizerInvariants):
    QUANTIZER = RQVAE
    ARGUMENTS = SHORT | {"num_levels": 3, "epochs": 20}
    FILES = ["config.json", "model.safetensors", "training.json"]
    OTHER_SIZE = "codebook_size"
    WRONG = {
        "latent_dim": 0, "hidden_sizes": (4, 0), "dropout": 1.0, "commitment_weight": -0.1, "sinkhorn_epsilon": -1.0,
        "sinkhorn_iterations": 0, "epochs": 0, "learning_rate": 0.0, "validation_share": 1.0, "patience": 0,
        "device": "tpu", "seed": -1, "optimizer": "best",
    }  # fmt: skip

    def test_too_few_rows_to_learn_from_are_refused(self, vectors):
        with pytest.raises(ValueError, match="7 rows, fewer than the 8 centroids"):
            self.new().fit(vectors[:8], show_progress=False)


@pytest.mark.parametrize("arguments", [{"epochs": "many"}, {"latent_dim": "wide"}])
def test_arguments_of_another_type_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        RQVAE(**arguments)


def test_training_that_diverges_is_an_error(embeddings):
    with pytest.raises(ValueError, match="diverged"):
        RQVAE(**SHORT | {"learning_rate": 1e30, "validation_share": 0.0}).fit(embeddings, show_progress=False)
