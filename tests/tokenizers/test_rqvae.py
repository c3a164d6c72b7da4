"""RQ-VAE: the network's loss and gradients, training, codes, saving, checks."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hf_genrec.tokenizers.base import Quantizer
from hf_genrec.tokenizers.collisions import reassign_by_candidates
from hf_genrec.tokenizers.rqvae import RQVAE
from hf_genrec.tokenizers.rqvae_losses import BehaviorTerms
from hf_genrec.tokenizers.rqvae_network import RQVAEConfig, RQVAEModel, balancing_shifts
from tests.invariants.quantizer import QuantizerInvariants, make_log


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


def balanced_codes(distances, **options):
    return (distances.double() - balancing_shifts(distances, **options)).argmin(dim=1)


@settings(max_examples=10, deadline=None)
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
            self.fitted(vectors[:8])


class TestCOSETTE(TestRQVAE):
    ARGUMENTS = SHORT | {"num_levels": 3, "epochs": 5, "cooccurrence_weight": 0.1, "sinkhorn_epsilon": 0.003}
    WRONG = {"cooccurrence_weight": -1.0}

    def test_log_of_other_rows_or_none_is_refused(self, vectors):
        with pytest.raises(ValueError, match=r"shape \(num_users, 301\): who took the rows; got none"):
            self.new().fit(vectors)
        with pytest.raises(ValueError, match=r"got the shape \(19, 300\)"):
            self.new().fit(vectors, taken=make_log(300))


class TestLETTER(TestRQVAE):
    ARGUMENTS = SHORT | {"num_levels": 3, "epochs": 5, "collaborative_weight": 1.0, "diversity_weight": 0.01}
    WRONG = {"collaborative_weight": -1.0, "diversity_weight": float("inf")}


class TestCoST(TestRQVAE):
    ARGUMENTS = SHORT | {"num_levels": 3, "epochs": 20, "reconstruction": "contrastive"}
    WRONG = {"reconstruction": "cubic"}

    def test_codes_stand_for_embeddings_level_by_level(self, vectors, quantizer):
        # The loss knows directions only: the decoded vectors point at their own, of any length.
        decoded = quantizer.decode(quantizer.encode(vectors)) - vectors.mean(axis=0)
        scaled = vectors - vectors.mean(axis=0)
        unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (decoded, scaled)]
        cosines = unit[0] @ unit[1].T
        assert np.diag(cosines).mean() > cosines.mean() + 0.5


def behavior_terms(taken, **weights) -> BehaviorTerms:
    chosen = dict.fromkeys(("cooccurrence", "collaborative", "diversity"), 0.0) | weights
    return BehaviorTerms(taken, dim=5, batch_size=64, seed=3, weights=chosen)


def test_cooccurrence_is_the_sigmoid_loss_of_all_pairs(model):
    taken = sp.csr_array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    rows = torch.randn(4, 13)
    terms = behavior_terms(taken, cooccurrence=0.5)
    terms.random = np.random.default_rng(0)  # whose users are both

    added = terms(model, rows, torch.arange(4), model(rows))

    unit = torch.nn.functional.normalize(model(rows).quantized, dim=1)
    total = 0.0
    for i in range(4):
        for j in range(4):
            logit = float((torch.e**2 * unit[i] @ unit[j] - 8).detach()) if i != j else None
            if logit is not None:
                total += np.log1p(np.exp(-logit if i // 2 == j // 2 else logit))
    assert added.item() == pytest.approx(0.5 * total / 4, rel=1e-4)


def test_collaborative_term_asks_each_item_for_its_own_vector(model):
    taken = sp.csr_array((np.random.default_rng(5).random((31, 9)) < 0.4).astype(float))
    terms = behavior_terms(taken, collaborative=2.0)
    rows, picked = torch.randn(9, 13), torch.tensor([7, 2, 4])

    output = model(rows[picked])

    logits = output.quantized @ terms.vectors[picked].T
    expected = -2 * logits.log_softmax(dim=1).diagonal().mean()
    torch.testing.assert_close(terms(model, rows, picked, output), expected)
    torch.testing.assert_close(terms.vectors.norm(dim=1), torch.full((9,), 5**0.5))


def test_diversity_draws_the_chosen_centroid_to_one_of_its_cluster(model):
    terms = behavior_terms(sp.csr_array(np.eye(3)), diversity=1.0)
    with torch.no_grad():
        model.codebooks[:] = torch.randn(2, 8, 5) + 9 * (torch.arange(8) % 2)[None, :, None]
    terms.begin_epoch(model)
    output = model(torch.randn(3, 13))

    terms(model, torch.randn(3, 13), torch.arange(3), output).backward()

    assert model.codebooks.grad.abs().sum() > 0
    assert model.encoder[0].weight.grad is None
    for clusters in terms._clusters:
        assert len(set(clusters.tolist())) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"collaborative_weight": 100.0},
        pytest.param({"cooccurrence_weight": 10.0, "epochs": 200, "batch_size": 32}, marks=pytest.mark.slow),
    ],
)
def test_items_that_the_same_users_took_get_the_same_first_code(options):
    random = np.random.default_rng(3)
    groups = np.arange(240) % 6  # a small part of what the vectors say
    rows = np.hstack([3 * random.normal(size=(240, 7)), 0.5 * np.eye(6)[groups]]).astype(np.float32)
    users = np.arange(90) % 6
    taken = sp.csr_array(((users[:, None] == groups) & (random.random((90, 240)) < 0.2)).astype(float))

    def share_alike(**options):
        quantizer = RQVAE(**SHORT | {"epochs": 60, "validation_share": 0.0} | options)
        first = quantizer.fit(rows, taken=taken, show_progress=False).encode(rows)[:, 0]
        same = (first[:, None] == first) & ~np.eye(240, dtype=bool)
        return ((groups[:, None] == groups) & same).sum() / same.sum()

    assert share_alike(**options) > 2.5 * share_alike(epochs=3)  # without, one in six is chance


@pytest.mark.parametrize("arguments", [{"epochs": "many"}, {"latent_dim": "wide"}])
def test_arguments_of_another_type_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        RQVAE(**arguments)


def test_training_that_diverges_is_an_error(embeddings):
    with pytest.raises(ValueError, match="diverged"):
        RQVAE(**SHORT | {"learning_rate": 1e30, "validation_share": 0.0}).fit(embeddings, show_progress=False)
