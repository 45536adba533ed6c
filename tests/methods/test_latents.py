"""Latents that are too many to be held are made when they are drawn, and are the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairbench.core.errors import InputError
from fairbench.methods import get_method
from fairbench.methods.parts import classifier, contract, latents
from fairbench.methods.parts.latents import DrawnLatents, chunk_of, in_chunks, latents_of, whole


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8) for n in (11, 7)]


@pytest.fixture
def backbone(make_unconditional):
    made = make_unconditional()
    asked, encode = [], made.encode

    def counted(some):
        asked.append(len(some))
        return encode(some)

    made.encode, made.asked = counted, asked
    return made


def test_drawn_latents_are_those_that_are_held(backbone, images, monkeypatch):
    held = latents_of(backbone, images)
    assert isinstance(held, torch.Tensor)
    assert held.shape == (18, 3, 4, 4)
    assert torch.equal(held, torch.cat([backbone.encode(part) for part in images]))
    monkeypatch.setattr(latents, "MOST_HELD", 18 * 48 * 4 - 1)
    drawn = latents_of(backbone, images)
    assert isinstance(drawn, DrawnLatents)
    assert (len(drawn), drawn.shape, drawn.device) == (18, held.shape, held.device)
    for rows in (np.array([17, 0, 11, 10, 0]), torch.tensor([5, 12]), slice(9, 13)):
        index = rows if isinstance(rows, (slice, torch.Tensor)) else torch.from_numpy(rows)
        assert torch.equal(drawn[rows], held[index])
    monkeypatch.setattr(latents, "AT_ONCE", 5 * 48 * 4)
    parts = list(in_chunks(drawn))
    assert [len(part) for part in parts] == [5, 5, 5, 3]
    assert torch.equal(torch.cat(parts), held)
    assert [one is held for one in in_chunks(held)] == [True]


def test_few_bytes_are_taken_at_once(backbone, images, monkeypatch):
    large = np.broadcast_to(np.uint8(0), (10_000, 512, 512, 3))
    assert chunk_of(large) == 85
    assert chunk_of(large, 8) == 80
    assert chunk_of(large, 200) == 200
    assert chunk_of(images[0], 4) == 1024
    monkeypatch.setattr(latents, "AT_ONCE", 4 * 48)
    latents_of(backbone, images)
    assert backbone.asked == [4, 4, 3, 4, 3]


def test_what_needs_all_latents_at_once_says_so(backbone, images, monkeypatch):
    assert whole(latents_of(backbone, images), "a ratio").shape == (18, 3, 4, 4)
    monkeypatch.setattr(latents, "MOST_HELD", 0)
    with pytest.raises(InputError, match="a ratio needs all latents at once") as caught:
        whole(latents_of(backbone, images), "a ratio")
    assert "18 images of 3x4x4" in str(caught.value)
    assert "--backbone" in str(caught.value)


TRAINED = ["balanced_data", "dsm_observed", "dsm_reference", "debiased_loss_weighting", "iw"]
TRAINED += ["invdiff", "fairgen_distilled", "rejection"]


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_learns_the_same_from_images_that_are_drawn(name, monkeypatch, tmp_path):
    kind = "text" if get_method(name).card.prompts != "none" else "pixels"
    trial = contract.Trial(name, kind, tmp_path)
    requests = trial.requests(2)
    expected = contract.images_of(trial.sampler(cache="held"), requests, 4)
    monkeypatch.setattr(latents, "MOST_HELD", 0)
    monkeypatch.setattr(classifier, "MOST_HELD", 0)
    found = contract.images_of(trial.sampler(cache="drawn"), requests, 4)
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_a_mixture_ratio_is_refused_where_it_can_t_be_fitted(monkeypatch, tmp_path):
    monkeypatch.setattr(latents, "MOST_HELD", 0)
    with pytest.raises(InputError, match="a mixture ratio needs all latents at once"):
        contract.Trial("tiw", "text", tmp_path).sampler()
