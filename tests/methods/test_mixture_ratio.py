"""The closed-form ratio: exact where its groups are known, and found where they are not."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from fairbench.core.errors import ContractError
from fairbench.core.method import ImageSet, TrainingData
from fairbench.core.task import Prompt
from fairbench.methods.parts import mixture_ratio as _mixture
from fairbench.methods.parts.finetuning import NoisedImages
from fairbench.methods.parts.mixture_ratio import (
    GaussianGroups,
    MixtureRatio,
    bottleneck_features,
    correction_agreement,
    differing_attributes,
    fit_mixture,
    infer_members,
    principal_directions,
)
from fairbench.methods.parts.ratio import RatioSets, noise_range, noise_shares
from fairbench.methods.tiw import TimeDependentReweighting
from fairbench.runs.hidden_labels import area_under_curve

LEVELS = (-3.0, 4.0)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def groups_of(d=12, captions=2, groups=3, seed=0):
    """Groups in a random basis, in float64."""
    g = draws(seed)
    basis, _ = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))
    shares = torch.rand(2, captions, groups, generator=g, dtype=torch.float64) + 0.1
    return GaussianGroups(
        basis,
        0.2 + torch.rand(d, generator=g, dtype=torch.float64),
        torch.randn(captions, groups, d, generator=g, dtype=torch.float64),
        shares / shares.sum(2, keepdim=True),
        torch.tensor([0.3, 0.7], dtype=torch.float64),
    )


def direct(groups, x, level, caption):
    """The same log ratio from the densities of torch's own distributions."""
    alpha, sigma = noise_shares(level)
    values = []
    for row, a, s, own in zip(x, alpha, sigma, caption.tolist(), strict=True):
        covariance = groups.basis @ (a**2 * groups.variance + s**2).diag() @ groups.basis.T
        parts = []
        for shares in groups.shares:
            terms = []
            for c in range(len(groups.captions)) if own < 0 else [own]:
                for k in range(groups.means.shape[1]):
                    normal = torch.distributions.MultivariateNormal(
                        a * groups.basis @ groups.means[c, k], covariance
                    )
                    weight = shares[c, k] * (groups.captions[c] if own < 0 else 1)
                    terms.append(weight.log() + normal.log_prob(row))
            parts.append(torch.logsumexp(torch.stack(terms), 0))
        values.append(parts[1] - parts[0])
    return torch.stack(values)


def test_ratio_and_gradient_are_those_of_the_noised_densities():
    groups = groups_of()
    x = torch.randn(6, 3, 2, 2, generator=draws(1), dtype=torch.float64).requires_grad_()
    level = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0, 4.0], dtype=torch.float64)
    caption = torch.tensor([0, 1, -1, 0, -1, 1])
    found = MixtureRatio([groups])(x, level, caption)
    expected = direct(groups, x.flatten(1), level, caption)
    assert torch.allclose(found, expected, atol=1e-9)
    mine, theirs = (torch.autograd.grad(one.sum(), x)[0] for one in (found, expected))
    assert torch.allclose(mine, theirs, atol=1e-9)
    assert mine.abs().max() > 0.01


def test_several_fits_are_averaged_and_keep_within_their_bounds():
    one, other = groups_of(seed=0), groups_of(seed=3)
    x = 5 * torch.randn(200, 12, 1, 1, generator=draws(2), dtype=torch.float64)
    level, caption = torch.full((200,), -2.0, dtype=torch.float64), torch.arange(200) % 3 - 1
    both = MixtureRatio([one, other])
    apart = [MixtureRatio([fit])(x, level, caption) for fit in (one, other)]
    found = both(x, level, caption)
    assert torch.allclose(found, (apart[0] + apart[1]) / 2)
    low, high = both.bounds()
    assert low <= float(found.min()) < float(found.max()) <= high
    assert low == pytest.approx(
        np.mean([float((f.shares[1] / f.shares[0]).log().min()) for f in (one, other)])
    )


def toy_rows(n, shares, seed, d=40, gap=1.6):
    """Rows of several captions with one hidden group each way, and who is in it.

    Args:
        n: Rows a caption.
        shares: Of the hidden group in each caption.
    """
    g = draws(seed)
    caption = torch.arange(len(shares)).repeat_interleave(n)
    hidden = torch.rand(len(caption), generator=g) < torch.tensor(shares)[caption]
    place = torch.randn(len(shares), d, generator=draws(99))
    offset = torch.zeros(d)
    offset[:6] = gap / 2
    scale = torch.linspace(1.5, 0.3, d)
    rows = torch.randn(len(caption), d, generator=g) * scale + place[caption]
    return rows + torch.where(hidden[:, None], offset, -offset), caption, hidden


def joined(biased_shares, n=600, reference=200, seed=0, reference_share=0.5):
    """Rows, captions, who is hidden, and the two sets of them."""
    first = toy_rows(n, biased_shares, seed)
    second = toy_rows(reference, [reference_share] * len(biased_shares), seed + 50)
    rows, caption, hidden = (torch.cat(pair) for pair in zip(first, second, strict=True))
    size = len(first[0])
    sets = RatioSets(
        rows,
        caption,
        torch.arange(len(rows)) >= size,
        (np.arange(size), np.arange(size, len(rows))),
        (np.arange(size), np.arange(size, len(rows))),
    )
    return rows, caption, hidden, sets


def test_known_groups_are_fitted_as_they_are():
    rows, caption, hidden, sets = joined([0.8, 0.1, 0.9])
    member = torch.stack([~hidden, hidden], 1).float()
    groups = GaussianGroups.fitted(rows, caption, sets.reference, member, 3, pooled=False)
    assert torch.allclose(groups.basis.T @ groups.basis, torch.eye(40), atol=1e-4)
    assert groups.shares[0, :, 1].tolist() == pytest.approx([0.8, 0.1, 0.9], abs=0.05)
    assert groups.shares[1, :, 1].tolist() == pytest.approx([0.5] * 3, abs=0.1)
    assert groups.captions.tolist() == pytest.approx([1 / 3] * 3)
    means = groups.means @ groups.basis.T
    for c in range(3):
        for k in range(2):
            own = (caption == c) & (hidden == bool(k))
            assert torch.allclose(means[c, k], rows[own].mean(0), atol=0.15)
    difference = (means[:, 1] - means[:, 0]).mean(0)
    assert difference[:6].tolist() == pytest.approx([1.6] * 6, abs=0.2)
    assert difference[6:].abs().max() < 0.25
    expected = torch.linspace(1.5, 0.3, 40).square()
    assert groups.variance.tolist() == pytest.approx(expected.tolist(), rel=0.25)
    pooled = GaussianGroups.fitted(rows, caption, sets.reference, member, 3, pooled=True)
    assert torch.equal(pooled.shares[1, 0], pooled.shares[1, 2])


def test_a_caption_s_rare_group_borrows_from_the_others():
    """Nobody of the hidden group in one caption: its mean is the sum of two parts."""
    rows, caption, hidden, sets = joined([0.5, 0.0, 0.5], reference_share=0.0, reference=4)
    member = torch.stack([~hidden, hidden], 1).float()
    groups = GaussianGroups.fitted(rows, caption, sets.reference, member, 3, pooled=False)
    means = groups.means @ groups.basis.T
    expected = rows[caption == 1].mean(0)
    expected = expected + means[0, 1] / 2 - means[0, 0] / 2 + means[2, 1] / 2 - means[2, 0] / 2
    assert torch.allclose(means[1, 1], expected, atol=0.3)
    assert (groups.shares > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_hidden_groups_are_found_from_set_membership_and_captions(seed):
    rows, caption, hidden, sets = joined([0.85, 0.1, 0.9], seed=seed)
    member = infer_members(rows, rows, sets, caption, 2, LEVELS, draws(seed))
    assert torch.allclose(member.sum(1), torch.ones(len(rows)), atol=1e-5)
    found = area_under_curve(member[:, 0].double().numpy(), hidden.numpy())
    assert max(found, 1 - found) > 0.95
    groups = GaussianGroups.fitted(rows, caption, sets.reference, member, 3, pooled=True)
    truth = torch.stack([~hidden, hidden], 1).float()
    oracle = GaussianGroups.fitted(rows, caption, sets.reference, truth, 3, pooled=True)
    x = rows[::7].reshape(-1, 40, 1, 1)
    for level in (1.0, 2.0, 3.0):
        alpha, sigma = noise_shares(torch.full((len(x),), level))
        noise = torch.randn(x.shape, generator=draws(9))
        noisy = alpha[:, None, None, None] * x + sigma[:, None, None, None] * noise
        at = torch.full((len(x),), level), caption[::7]
        (mine, _), (true, _) = (
            _mixture._gradient(MixtureRatio([one]), noisy, *at) for one in (groups, oracle)
        )
        slope = float((mine * true).sum() / true.square().sum())
        cosine = float((mine * true).sum() / (mine.norm() * true.norm()))
        assert slope == pytest.approx(1, abs=0.25), level
        assert cosine > 0.9, level


def test_two_halves_of_one_set_have_hardly_a_ratio():
    rows, caption, _, sets = joined([0.3, 0.3, 0.3], reference=600, reference_share=0.3)
    member = infer_members(rows, rows, sets, caption, 2, LEVELS, draws())
    groups = GaussianGroups.fitted(rows, caption, sets.reference, member, 3, pooled=True)
    fresh, own, _ = toy_rows(200, [0.3] * 3, 77)
    level = torch.full((600,), -1.0)
    found = MixtureRatio([groups])(fresh.reshape(600, 40, 1, 1), level, own)
    assert float(found.square().mean().sqrt()) < 0.35


def test_large_latents_are_seen_along_their_principal_directions(monkeypatch):
    assert torch.equal(principal_directions(torch.zeros(9, 5), 0), torch.eye(5))
    monkeypatch.setattr(_mixture, "WIDEST", 30)
    monkeypatch.setattr(_mixture, "REDUCED", 7)
    rows, *_ = toy_rows(300, [0.5, 0.5], 0)
    directions = principal_directions(rows, 0)
    assert directions.shape == (40, 7)
    assert torch.allclose(directions.T @ directions, torch.eye(7), atol=1e-5)
    exact = torch.linalg.eigvalsh(torch.cov(rows.T)).flip(0)[:7].sum()
    kept = torch.linalg.eigvalsh(torch.cov((rows @ directions).T)).sum()
    assert float(kept) == pytest.approx(float(exact), rel=0.02)


# On backbones


def toned(n, seed, shares, levels=(70, 180)):
    """4 x 4 images of several subjects, dark or bright; tone is the label."""
    rng = np.random.default_rng(seed)
    subject = np.arange(n) % len(shares)
    dark = rng.random(n) < np.array(shares)[subject]
    level = np.where(dark, *levels)[:, None, None, None]
    images = (level + rng.normal(0, 25, (n, 4, 4, 3))).clip(0, 255).astype(np.uint8)
    labels = {"tone": dark.astype(np.uint8), "side": rng.integers(2, size=n).astype(np.uint8)}
    return ImageSet(images, subject, labels)


SUBJECTS = tuple(Prompt(name, template="a photo of {}") for name in ("a", "b", "c"))


@pytest.fixture
def case(make_backbone, make_unconditional):
    """A backbone, its images, and the two labelled sets."""

    def make(conditional=True):
        backbone = (make_backbone if conditional else make_unconditional)(network_batch=64)
        parts = [toned(1200, 0, (0.1, 0.8, 0.1)), toned(300, 1, (0.5, 0.5, 0.5))]
        return backbone, NoisedImages(backbone, parts, SUBJECTS), parts

    return make


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("kind", ["mixture", "labelled_mixture"])
def test_the_fit_of_a_run_agrees_with_the_oracle(kind, conditional, case, make_preparation):
    backbone, images, parts = case(conditional)
    method = TimeDependentReweighting(ratio=kind)
    labels = ("tone",) if kind == "labelled_mixture" else ()
    preparation = make_preparation()
    fitted = fit_mixture(method, backbone, images, parts, preparation, labels=labels)
    again = fit_mixture(method, backbone, images, parts, preparation, labels=labels)
    assert again.sha256 == fitted.sha256
    assert again.facts == fitted.facts
    assert fitted.facts["kind"] == kind
    assert not any(p.requires_grad for p in fitted.ratio.parameters())
    assert [len(part) for part in fitted.held] == [120, 30]
    whole = TrainingData((), SUBJECTS, *parts, {"tone": ("bright", "dark")})
    told = correction_agreement(fitted.ratio, backbone, images, fitted.held, whole, seed=0)
    assert told["attributes"] == ["tone"]
    assert [one["t"] for one in told["by_timestep"]] == [
        999,
        960,
        920,
        880,
        800,
        700,
        600,
        400,
        200,
    ]
    for one in told["by_timestep"][:6]:
        assert one["slope"] == pytest.approx(1, abs=0.3), one
        assert one["cosine"] > 0.9, one
        assert one["correlation"] > 0.9, one


def test_agreement_tells_strength_and_sign(case, make_preparation):
    backbone, images, parts = case()
    whole = TrainingData((), SUBJECTS, *parts, {"tone": ("bright", "dark")})
    everything = np.arange(len(images))
    groups = _mixture._labelled_groups(images, parts, ["tone"], everything, 0)

    class Scaled(MixtureRatio):
        def __init__(self, factor):
            super().__init__([groups])
            self.factor = factor

        def forward(self, x, level, caption):
            return self.factor * super().forward(x, level, caption)

    held = (np.arange(200), np.arange(1200, 1300))
    for factor in (1.0, 2.0, -0.5):
        told = correction_agreement(Scaled(factor), backbone, images, held, whole, seed=0)
        for one in told["by_timestep"]:
            assert one["slope"] == pytest.approx(factor, rel=1e-4)
            assert one["cosine"] == pytest.approx(math.copysign(1, factor), rel=1e-4)


def test_features_are_the_middle_block_s_and_latents_where_there_is_none(
    case, make_preparation, monkeypatch
):
    backbone, images, _ = case(conditional=False)
    features = bottleneck_features(backbone, images, make_preparation(), "float32")
    assert features.shape == (1500, 64)
    again = bottleneck_features(backbone, images, make_preparation(), "float32")
    assert torch.equal(features, again)
    monkeypatch.setattr(type(backbone), "capability", lambda self, kind: None)
    plain = bottleneck_features(backbone, images, make_preparation(), "float32")
    assert torch.equal(plain, images.latents.flatten(1))


def test_attributes_that_differ_between_the_sets():
    biased, reference = toned(2000, 0, (0.1, 0.1)), toned(400, 1, (0.5, 0.5))
    assert differing_attributes([biased, reference], ["tone", "side"]) == ("tone",)
    assert differing_attributes([biased, toned(400, 2, (0.1, 0.1))], ["tone", "side"]) == ()
    with pytest.raises(ContractError, match="labelled"):
        differing_attributes([biased, dataclasses.replace(reference, labels=None)], ["tone"])


def test_noise_levels_of_a_schedule_are_those_of_the_fit(make_unconditional):
    low, high = noise_range(make_unconditional().schedule)
    assert low < -2
    assert high > 3
