from __future__ import annotations

import numpy as np
import pytest
import torch

from fairbench.backbones.base import load_backbone
from fairbench.datasets.cartoonfaces import DATASET as CARTOONFACES
from fairbench.methods.fair_prompt import FairPrompt, appended
from fairbench.methods.vanilla import Vanilla

LONG = "if all individuals can be one, irrespective of their gender"


@pytest.fixture(scope="module")
def shipped():
    spec = CARTOONFACES.backbones[0]
    return load_backbone(spec.name, spec.folder, device=torch.device("cpu"), dtype=torch.float32)


def test_the_phrase_follows_the_prompt():
    assert appended("a photo of a person", "of any race") == "a photo of a person of any race"
    assert appended("a photo of a person", ", any race") == "a photo of a person, any race"


def test_the_network_sees_the_phrase_and_nothing_of_the_target(
    make_backbone, make_task, data, make_preparation, make_requests
):
    images = []
    for target in ((0.5, 0.5), (1.0, 0.0)):
        backbone, task = make_backbone(), make_task(target=target, prompts=2)
        seen, embed = [], backbone.embed
        backbone.tokens = lambda text: text.split()
        backbone.embed = lambda texts, e=embed, s=seen: (s.extend(texts), e(texts))[1]
        sampler = FairPrompt(phrase="for all").prepare(task, backbone, data, make_preparation())
        samples = sampler(make_requests(task, 2))
        images.append(samples.images)
        assert samples.requested is None
        assert {text for text in seen if text} == {
            "a photo of a person for all",
            "a photo of a tennis player for all",
        }
    assert np.array_equal(*images)
    plain = Vanilla().prepare(task, make_backbone(), data, make_preparation())
    assert not np.array_equal(plain(make_requests(task, 2)).images, images[0])


@pytest.mark.parametrize(
    ("phrase", "words", "known", "cut_off"),
    [("of any gender and race", 5, 5, 0), (LONG, 10, 2, 31)],
)
def test_the_facts_say_how_much_of_the_phrase_is_read(
    phrase, words, known, cut_off, shipped, data, make_preparation
):
    task = CARTOONFACES.task("gender_by_role", conditional=True)
    sampler = FairPrompt(phrase=phrase).prepare(task, shipped, data, make_preparation())
    assert sampler.facts["words"] == words
    assert sampler.facts["words_known"] == known
    assert sampler.facts["tokens_cut_off"] == cut_off
    texts = [appended(prompt.text, phrase) for prompt in task.prompts]
    longest = max(len(ids) for ids in shipped._tokenizer(texts).input_ids)
    assert cut_off == max(0, longest - 16)


def test_the_default_phrase_is_known_word_by_word_and_was_in_no_caption(shipped):
    from fairbench.backbones.parts.captions import caption
    from fairbench.core.prompts import Phrase

    phrase = FairPrompt().phrase
    assert [token.removesuffix("</w>") for token in shipped.tokens(phrase)] == phrase.split()
    rng = np.random.default_rng(0)
    words = {
        word
        for _ in range(500)
        for role in (CARTOONFACES.subjects[0], CARTOONFACES.subjects[2])
        for word in caption(rng, role, (Phrase("female"), Phrase("asian"))).split()
    }
    assert set(phrase.split()) & words == {"of"}


def test_a_backbone_without_tokens_has_no_such_facts(
    make_mixture, make_task, data, make_preparation
):
    sampler = FairPrompt().prepare(make_task(), make_mixture(), data, make_preparation())
    assert sampler.facts == {}
