"""What cards and keys promise of every method, checked without training."""

from __future__ import annotations

import dataclasses

import pytest

from fairbench.core.errors import InputError
from fairbench.methods import get_method, make_method, method_names
from fairbench.runs.config import RunConfig
from fairbench.runs.plan import generation_config, plan_run


@pytest.fixture
def planned(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "cache"))

    def plan(name, *parameters, backbone=None):
        config = RunConfig(
            name, backbone=backbone, parameters=parameters, results=tmp_path, device="cpu"
        )
        return plan_run(config)

    return plan


@pytest.mark.parametrize(
    ("name", "wrong", "fitting"),
    [
        ("fairgen", "cartoonfaces-ddpm", "cartoonfaces-sd"),
        ("prompt_append", "cartoonfaces-ddpm", "cartoonfaces-sd"),
        ("fair_prompt", "cartoonfaces-ddpm", "cartoonfaces-sd"),
        ("fairgen_distilled", "cartoonfaces-sd", "cartoonfaces-ddpm"),
    ],
)
def test_a_backbone_of_the_wrong_kind_is_refused_before_anything_is_loaded(
    name, wrong, fitting, planned
):
    with pytest.raises(InputError, match=f"choose --backbone {fitting}"):
        planned(name, backbone=wrong)
    planned(name, backbone=fitting)


@pytest.mark.parametrize("name", ["tiw", "invdiff", "rejection", "distribution_guidance"])
def test_what_auto_precision_means_here_is_part_of_the_key(name, planned, monkeypatch):
    plan = planned(name)
    keys = []
    for native in (True, False):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda native=native: native)
        keys.append(generation_config(plan, "hash")["autocast"])
    assert keys == ["bfloat16", "float32"]


def test_methods_that_train_nothing_so_have_no_such_key(planned):
    for name in ("vanilla", "fairgen", "prompt_append"):
        assert "autocast" not in generation_config(planned(name), "hash")


def test_a_compiled_network_is_another_question(planned):
    plain = planned("vanilla")
    compiled = dataclasses.replace(plain, config=dataclasses.replace(plain.config, compile=True))
    expected = generation_config(plain, "hash") | {"compiled": True}
    assert generation_config(compiled, "hash") == expected


def test_the_number_of_processes_is_part_of_the_key_of_what_trains(planned, monkeypatch):
    alone = generation_config(planned("tiw"), "hash")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert generation_config(planned("tiw"), "hash") == alone  # the first trains alone
    shared = dataclasses.replace(
        planned("tiw"), config=dataclasses.replace(planned("tiw").config, data_parallel=True)
    )
    assert generation_config(shared, "hash") == {**alone, "processes": 2}
    assert "processes" not in generation_config(planned("vanilla"), "hash")


@pytest.mark.parametrize(
    ("name", "parameters", "role"),
    [
        ("tiw", ["strength=0"], "ablation"),
        ("tiw", ["preset=oracle_ratio"], "oracle"),
        ("invdiff", ["r_sample=0"], "ablation"),
        ("invdiff", ["variance_weight=0"], "ablation"),
        ("invdiff", ["preset=oracle_groups"], "oracle"),
        ("distribution_guidance", ["newton=0"], "control"),
        ("distribution_guidance", ["step_rule=paper", "scale=0"], "control"),
        ("distribution_guidance", ["preset=as_released"], "ablation"),
        ("fairgen", ["strength=0"], "control"),
        ("fairgen", ["eta=0"], "control"),
        ("fairgen_distilled", ["strength=0"], "control"),
        ("fairgen_distilled", ["scale=0"], "control"),
        ("fairgen_distilled", ["preset=classifier_guidance"], "ablation"),
        ("tiw", ["reference_share=1"], "control"),
    ],
)
def test_a_method_without_its_effect_or_with_labels_is_not_ranked(name, parameters, role):
    card = make_method(name, parameters)[0].configured_card()
    assert (card.role, card.ranked) == (role, False)
    assert make_method(name, [])[0].configured_card().ranked


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("tiw", ["accumulate=3"], "multiple of accumulate"),
        ("balanced_data", ["ema_decay=2"], "below 1"),
        ("invdiff", ["accumulate=2"], "can't split it"),
        ("tiw", ["max_weight=10"], "native has none"),
        ("tiw", ["p2_gamma=0.5"], "loss_weighting=p2 alone"),
        ("debiased_loss_weighting", ["min_snr_gamma=1"], "loss_weighting=min_snr alone"),
        ("invdiff", ["module=copy", "width=0.25"], "module=narrow alone"),
        ("distribution_guidance", ["scale=9"], "step_rule=paper alone"),
        ("distribution_guidance", ["preset=as_released", "newton=3"], "step_rule=newton alone"),
        ("distribution_guidance", ["preset=as_released", "step_rule=newton"], "or by the preset"),
        ("tiw", ["normalise_weights=false"], "a loss_weighting alone"),
        ("tiw", ["preset=weight_only", "clamp=false"], "correction=true alone"),
        ("invdiff", ["preset=erm", "groups=4"], "grouping=dispersion or random alone"),
        ("invdiff", ["preset=oracle_groups", "groups=4"], "grouping=dispersion or random alone"),
        ("invdiff", ["preset=erm", "variance_weight=2"], "groups alone"),
        ("invdiff", ["preset=oracle_groups", "risk_draws=16"], "components or dispersion"),
        ("invdiff", ["preset=random_groups", "kappa=3"], "grouping=dispersion alone"),
        ("fairgen_distilled", ["preset=classifier_guidance", "rank=2"], "distil=true alone"),
        ("latent_editing", ["features=inversion"], "features=trajectory"),
        ("latent_editing", ["weight_decay=1"], "fits no heads"),
        ("fairgen", ["strength=1e300"], "at most 1e"),
        ("fairgen", ["rank=100000000000"], "at most 1e"),
    ],
)
def test_trainings_that_cannot_work_are_refused_at_once(name, parameters, message):
    with pytest.raises(InputError, match=message):
        make_method(name, parameters)


def test_random_groups_are_as_many_as_asked_for():
    assert make_method("invdiff", ["preset=random_groups", "groups=4"])[0].groups == 4


def test_trainings_from_papers_say_where_they_differ_and_can_be_from_scratch():
    for name in method_names():
        card = get_method(name).card
        if card.arxiv and card.trains and not card.deviations:
            pytest.fail(f"{name} follows {card.arxiv} and says nothing of how it differs")
    scratch = {}
    for name in ("tiw", "iw", "dsm_reference", "dsm_observed"):
        method, _ = make_method(name, ["preset=from_scratch"])
        scratch[name] = {
            key: getattr(method, key) for key in ("start", "steps", "batch", "learning_rate")
        }
        if name in ("tiw", "iw"):
            ratio = (method.ratio_batch, method.ratio_steps, method.ratio_learning_rate)
            assert ratio == (256, 20_000, 3e-4)
    assert all(values == scratch["tiw"] for values in scratch.values())
    assert scratch["tiw"]["start"] == "scratch"


@pytest.mark.parametrize("name", method_names())
def test_presets_add_to_the_backbone_what_the_method_does(name):
    """What the method itself adds is part of the contract."""
    method = get_method(name)
    for values in method.presets.values():
        added = method(**values).configured_card().extra_parameters
        assert (added != "none") == (method.card.extra_parameters != "none"), values


def test_only_methods_that_declare_labels_become_oracles_or_use_classifiers():
    for name in method_names():
        method = get_method(name)
        for values in [{}, *method.presets.values()]:
            card = method(**values).configured_card()
            if card.role == "oracle" or "classifier" in card.supervision:
                assert "labels" in card.supervision, (name, values)
