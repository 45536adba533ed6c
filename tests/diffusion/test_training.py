"""The one trainer: exact resuming, guards, averages, parts of a batch, several processes."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fairbench.core.errors import ContractError, InputError
from fairbench.core.method import Preparation, SamplingConfig
from fairbench.diffusion import training
from fairbench.diffusion.training import Draws, TrainingPlan, train_or_load

CPU = torch.device("cpu")
STEPS = 12


@pytest.fixture(autouse=True)
def checkpoint_at_every_step(monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)


def plan(**changes):
    return TrainingPlan(
        **{
            "steps": STEPS,
            "batch": 8,
            "learning_rate": 0.1,
            "warmup": 2,
            "ema_decay": 0.8,
            "precision": "float32",
        }
        | changes
    )


def network(seed=0):
    draws = torch.Generator().manual_seed(seed)
    module = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    return module


def regression(module):
    """A loss that uses every kind of draw and logs something."""

    def loss_of(draws):
        x = draws.gaussian(draws.rows, 3)
        scale = torch.from_numpy(draws.rng.random(draws.rows)).float() + draws.stratified().float()
        error = (module(x) - scale[:, None] * x[:, :2]).square().mean()
        draws.log("size", x.square().mean())
        return error

    return loss_of


def run(folder, *, module=None, loss_of=None, seed=0, progress=lambda *_: None, **options):
    """Train; the module and its facts."""
    module = network() if module is None else module
    own_plan = options.pop("plan", plan())
    preparation = Preparation(seed, SamplingConfig(1, 1.0), (1,), Path(folder), progress)
    facts = train_or_load(
        module,
        "probe",
        options.pop("content", {"what": "probe"}),
        own_plan,
        regression(module) if loss_of is None else loss_of,
        preparation,
        device=CPU,
        what="training probe",
        **options,
    )
    return module, facts


def assert_same(one, other):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def files(folder):
    return sorted(path.name.split("-")[0] + "".join(path.suffixes) for path in folder.rglob("*.*"))


class StopError(Exception):
    pass


def stop_in(module, step, error=StopError):
    """The loss of a training that is killed within a step, after its randomness was used."""
    inner, calls = regression(module), []

    def loss_of(draws):
        calls.append(inner(draws))
        if len(calls) == step + 1:
            raise error
        return calls[-1]

    return loss_of


# A constant rate: a training is the beginning of every longer one


def constant(steps, **changes):
    return plan(steps=steps, rate_schedule="constant", **changes)


@pytest.mark.parametrize("ema_decay", [0.0, 0.8])
def test_at_a_constant_rate_a_longer_training_goes_on_where_a_shorter_one_ended(
    ema_decay, tmp_path
):
    whole, facts = run(tmp_path / "whole", plan=constant(9, ema_decay=ema_decay))
    seen = []
    ended = {}
    for steps in (4, 6, 9):
        ended[steps], again = run(
            tmp_path / "parts",
            plan=constant(steps, ema_decay=ema_decay),
            progress=lambda what, done, total: seen.append(done),
        )
    assert seen == [*range(5), *range(4, 7), *range(6, 10)]
    assert_same(ended[9], whole)
    assert again["steps"] == 9
    assert {name: again[name] for name in again if name != "seconds"} == {
        name: facts[name] for name in facts if name != "seconds"
    }
    # Asked for once more, a shorter one is what it was: the first weights, not the last.
    loaded, _ = run(tmp_path / "parts", plan=constant(4, ema_decay=ema_decay))
    assert_same(loaded, ended[4])
    assert not torch.equal(ended[4].weight, ended[9].weight)


def test_a_shorter_training_after_a_longer_one_and_a_damaged_end_begin_anew(tmp_path):
    short, _ = run(tmp_path / "alone", plan=constant(4))
    run(tmp_path / "parts", plan=constant(9))
    seen = []
    again, _ = run(
        tmp_path / "parts", plan=constant(4), progress=lambda what, done, total: seen.append(done)
    )
    assert seen == list(range(5))
    assert_same(again, short)
    for path in tmp_path.glob("parts/networks/*.ended.pt"):
        path.write_bytes(path.read_bytes()[:-9])
    whole, _ = run(tmp_path / "more", plan=constant(11))
    longer, _ = run(tmp_path / "parts", plan=constant(11))
    assert_same(longer, whole)


def test_only_the_number_of_steps_may_differ(tmp_path):
    run(tmp_path, plan=constant(4))
    for other in ({"batch": 4}, {"learning_rate": 0.05}, {"warmup": 1}):
        seen = []
        run(
            tmp_path,
            plan=constant(5, **other),
            progress=lambda what, done, total, seen=seen: seen.append(done),
        )
        assert seen[0] == 0


def test_rates():
    assert constant(1000).rate(999) == 0.1
    assert constant(1000).rate(0) == pytest.approx(0.1 / 3)
    assert plan(steps=1000).rate(500) == pytest.approx(0.1 * (0.01 + 0.99 / 2))
    assert plan(steps=1000, final_rate=0.0).rate(1000) == 0.0
    assert "rate_schedule" not in plan().content()
    assert constant(3).content()["rate_schedule"] == "constant"


# Resuming


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("ema_decay", [0.0, 0.8])
def test_an_interrupted_training_ends_in_the_same_weights(validated, ema_decay, tmp_path):
    def options(module):
        own = plan(ema_decay=ema_decay, validate_every=2)
        watched = (
            {"validate": lambda: float(module.weight.detach().square().sum())} if validated else {}
        )
        return {"module": module, "plan": own, **watched}

    whole, facts = run(tmp_path / "whole", **options(network()))
    module = network()
    with pytest.raises(StopError):
        run(tmp_path / "parts", loss_of=stop_in(module, 5), **options(module))
    assert files(tmp_path / "parts") == ["probe.partial.pt"]
    module = network(seed=9)  # as another process: everything comes from the file
    stopping = stop_in(module, 4, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", loss_of=stopping, **options(module))
    seen = []
    resumed, again = run(
        tmp_path / "parts",
        progress=lambda what, done, total: seen.append(done),
        **options(network(seed=9)),
    )
    assert 0 < seen[0] < STEPS
    assert seen[-1] == STEPS
    assert_same(resumed, whole)
    timed = {"seconds"}
    assert {k: v for k, v in again.items() if k not in timed} == {
        k: v for k, v in facts.items() if k not in timed
    }
    assert files(tmp_path / "parts") == ["probe.safetensors"]


def test_training_does_something_and_depends_on_the_seed(tmp_path):
    module, facts = run(tmp_path)
    assert facts["loss_last_tenth"] < 0.5 * facts["loss_first"]
    assert facts["steps"] == STEPS
    assert facts["trained_parameters"] == 8
    assert facts["diagnostics"]["size"] == pytest.approx(1, abs=0.3)
    other, _ = run(tmp_path, seed=1)
    assert not torch.equal(module.weight, other.weight)
    same, _ = run(tmp_path / "elsewhere")
    assert_same(module, same)


def test_a_finished_training_is_loaded(tmp_path):
    module, facts = run(tmp_path)
    loaded, again = run(tmp_path, module=network(seed=9), loss_of=lambda draws: 1 / 0)
    assert_same(module, loaded)
    assert again == facts
    assert not loaded.training


@pytest.mark.parametrize(
    "changes",
    [{"plan": plan(learning_rate=0.2)}, {"content": {"what": "another"}}, {"seed": 3}],
    ids=str,
)
def test_another_plan_content_or_seed_is_another_training(changes, tmp_path):
    run(tmp_path)
    before = files(tmp_path)
    run(tmp_path, **changes)
    assert len(files(tmp_path)) == len(before) + 1


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.98])
def test_a_damaged_checkpoint_begins_again(keep, tmp_path):
    whole, _ = run(tmp_path / "whole")
    module = network()
    with pytest.raises(StopError):
        run(tmp_path / "parts", module=module, loss_of=stop_in(module, 5))
    (path,) = (tmp_path / "parts").rglob("*.pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    seen = []
    again, _ = run(tmp_path / "parts", progress=lambda what, done, total: seen.append(done))
    assert seen[0] == 0
    assert_same(again, whole)


def test_a_damaged_result_is_trained_again(tmp_path):
    from safetensors.torch import load_file, save_file

    whole, _ = run(tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    content = path.read_bytes()
    damages = [
        lambda: path.write_bytes(content[:-3]),
        lambda: path.write_bytes(b""),
        lambda: save_file(load_file(path), path),  # without its facts
        lambda: save_file({"other": torch.zeros(2)}, path, {"facts": "{}"}),
    ]
    for damage in damages:
        damage()
        again, facts = run(tmp_path)
        assert_same(again, whole)
        assert facts["steps"] == STEPS


# Guards


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_training_that_diverges_stops_with_advice_and_keeps_what_was_good(bad, tmp_path):
    module = network()
    inner, calls, states = regression(module), [], []

    def loss_of(draws):
        calls.append(None)
        states.append(module.weight.detach().clone())
        return inner(draws) * (bad if len(calls) == 6 else 1)

    with pytest.raises(InputError) as caught:
        run(tmp_path, module=module, loss_of=loss_of)
    message = str(caught.value)
    assert "training probe diverged" in message
    assert "at step 6 of 12" in message
    assert "lower its learning rate (seen 0.1)" in message
    assert "the state after step 4 is kept" in message
    (path,) = tmp_path.rglob("*.partial.pt")
    saved = torch.load(path, weights_only=True)
    assert saved["step"] == 4  # the newest whose loss was seen to be finite
    assert torch.equal(saved["parameters"][0], states[4])
    whole, _ = run(tmp_path / "whole")
    again, _ = run(tmp_path)  # with a loss that doesn't fail
    assert_same(again, whole)


def test_nothing_is_kept_of_a_training_that_diverges_at_once(tmp_path):
    module = network()
    with pytest.raises(InputError, match="no state was kept yet"):
        run(tmp_path, module=module, loss_of=lambda draws: module.weight.sum() * math.nan)
    assert files(tmp_path) == []


def test_a_step_whose_bfloat16_gradients_are_no_numbers_is_taken_in_float32(tmp_path):
    """As of stride-2 convolutions of 1 × 1 inputs in oneDNN on some CPUs."""
    module = network()
    inner, kinds = regression(module), []

    def loss_of(draws):
        half = torch.is_autocast_enabled("cpu")
        kinds.append(half)
        return inner(draws) * (math.nan if half and len(kinds) == 3 else 1)

    _, facts = run(tmp_path, module=module, loss_of=loss_of, plan=plan(precision="bfloat16"))
    assert facts["float32_steps"] == 1
    assert facts["steps"] == STEPS
    assert kinds.count(False) == 1
    assert all(torch.isfinite(value).all() for value in module.parameters())


def test_weights_of_the_last_step_are_looked_at_too(tmp_path):
    module = network()
    inner, calls = regression(module), []

    def loss_of(draws):
        calls.append(None)
        loss = inner(draws)
        if len(calls) == STEPS:
            with torch.no_grad():
                module.weight[0, 0] = math.inf
        return loss

    with pytest.raises(InputError, match="weights that aren't finite at step 12 of 12"):
        run(tmp_path, module=module, loss_of=loss_of, plan=plan(ema_decay=0.0))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_infinite_gradient_is_seen_too(tmp_path):
    module = network()

    def loss_of(draws):
        return (module.weight * 0).sum().sqrt()  # 0, with an infinite slope

    with pytest.raises(InputError, match="gradient norm"):
        run(tmp_path, module=module, loss_of=loss_of)


def test_autocast_leaves_weights_and_averages_exact_and_resumes_to_the_last_bit(tmp_path):
    half = plan(precision="bfloat16")
    seen = []

    def watched(module):
        inner = regression(module)

        def loss_of(draws):
            seen.append(module(torch.ones(1, 3)).dtype)
            return inner(draws)

        return loss_of

    module = network()
    whole, facts = run(tmp_path / "whole", module=module, loss_of=watched(module), plan=half)
    assert facts["precision"] == "bfloat16"
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in whole.parameters())
    exact, _ = run(tmp_path / "exact")
    for a, b in zip(whole.parameters(), exact.parameters(), strict=True):
        assert not torch.equal(a, b)
        assert torch.allclose(a, b, atol=0.05)
    stopped = network()
    with pytest.raises(StopError):
        run(tmp_path / "parts", module=stopped, loss_of=stop_in(stopped, 5), plan=half)
    (path,) = (tmp_path / "parts").rglob("*.partial.pt")
    saved = torch.load(path, weights_only=True)
    assert {value.dtype for value in saved["parameters"]} == {torch.float32}
    resumed, _ = run(tmp_path / "parts", plan=half)
    assert_same(resumed, whole)


def test_activations_are_made_again_on_gpus_only():
    """That it changes no weights is tested with the methods' networks."""
    assert training.recomputes_activations(torch.device("cuda"))
    assert not training.recomputes_activations(CPU)


def test_what_can_not_be_trained_is_an_error(tmp_path):
    with pytest.raises(ContractError, match="at least 1"):
        plan(steps=0)
    with pytest.raises(ContractError, match="parameters to train"):
        run(tmp_path, module=network().requires_grad_(False))
    with pytest.raises(InputError, match="can't be split into 3"):
        run(tmp_path, plan=plan(accumulate=3))


# Parts of a batch


def test_accumulated_parts_are_the_whole_batch(tmp_path):
    """Two parts of four rows, against one loss that takes the same draws and their mean."""
    parts, facts = run(tmp_path, plan=plan(accumulate=2))
    module, steps = network(), []
    inner = regression(module)

    def both(draws):
        assert draws.rows == 8
        shared = [Draws(0, len(steps), part, 4, CPU) for part in range(2)]
        steps.append(None)
        return (inner(shared[0]) + inner(shared[1])) / 2

    whole, other = run(tmp_path, module=module, loss_of=both, content={"what": "both"})
    for a, b in zip(parts.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert facts["loss_first"] == pytest.approx(other["loss_first"], rel=1e-6)
    assert facts["diagnostics"]["size"] == pytest.approx(1, abs=0.3)


def test_draws_of_parts_and_steps_differ_and_repeat():
    def taken(seed=0, step=0, part=0):
        draws = Draws(seed, step, part, 4, CPU)
        return torch.cat(
            [draws.gaussian(4), draws.stratified(), torch.from_numpy(draws.rng.random(2))]
        )

    first = taken()
    assert torch.equal(taken(), first)
    others = [taken(seed=1), taken(step=1), taken(part=1)]
    assert all(not torch.isin(other, first).any() for other in others)


def test_stratified_draws_cover_the_unit_interval_evenly():
    values = np.stack([Draws(0, step, 0, 10, CPU).stratified().numpy() for step in range(300)])
    assert np.array_equal(np.sort((values * 10).astype(int)), np.tile(np.arange(10), (300, 1)))
    assert values.mean() == pytest.approx(0.5, abs=0.005)
    assert np.corrcoef(values[:, 0], values[:, 1])[0, 1] == pytest.approx(-1 / 9, abs=0.2)


# What training returns


def test_the_averaged_weights_are_returned(tmp_path):
    module, seen = network(), []
    inner = regression(module)

    def loss_of(draws):
        seen.append(module.weight.detach().clone())
        return inner(draws)

    averaged, _ = run(tmp_path, module=module, loss_of=loss_of)
    last, _ = run(tmp_path, plan=plan(ema_decay=0.0))
    # The average after step n has decay min(0.8, 1 - (1 + n - 1)^-0.75), as in EMAModel.
    wanted = seen[0]
    for n, weight in enumerate([*seen[1:], last.weight.detach()], start=1):
        decay = min(0.8, 1 - n**-0.75) if n > 1 else 0.0
        wanted = decay * wanted + (1 - decay) * weight
    assert torch.allclose(averaged.weight, wanted, atol=1e-5)
    assert not torch.allclose(averaged.weight, last.weight, atol=1e-3)


def test_the_best_validated_weights_are_returned(tmp_path):
    module, seen = network(), []
    values = iter([3.0, 1.0, 2.0])

    def validate():
        assert not module.training
        seen.append(module.weight.detach().clone())
        return next(values)

    best, facts = run(tmp_path, module=module, validate=validate, plan=plan(validate_every=4))
    assert facts["validation"] == {"best": 1.0, "step": 8}
    assert torch.equal(best.weight, seen[1])
    assert not torch.equal(seen[1], seen[2])
    unwatched, _ = run(tmp_path, content={"what": "unwatched"})
    assert torch.equal(seen[2], unwatched.weight)  # validation changes no training


def test_frozen_parameters_stay_and_are_not_kept(tmp_path):
    module = network()
    module.bias.requires_grad_(False)
    before = module.bias.clone()
    trained, facts = run(tmp_path, module=module)
    assert torch.equal(trained.bias, before)
    assert facts["trained_parameters"] == 6


def test_the_learning_rate_is_warmed_up_and_decayed():
    rates = [plan(steps=100, warmup=10).rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 / 11, rel=0.01)
    assert np.argmax(rates) == 10
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.001, rel=0.1)


@pytest.mark.parametrize("layers", [(), (nn.Dropout(0.5), nn.AlphaDropout(0.5))])
def test_global_random_state_is_neither_used_nor_changed(layers, tmp_path):
    made = []
    modules = {i: nn.Sequential(network(), *layers) for i in (1, 2)}  # whose class draws from it
    for seed, module in modules.items():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        made.append(run(tmp_path / str(seed), module=module)[0])
        after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert np.array_equal(before[1], after[1])
        assert before[2] == after[2]
    assert_same(*made)


# Several processes


def launched(code, folder, processes, *arguments):
    """Run a file on several CPU processes, as torchrun does; what it printed.

    ``accelerate launch`` starts several processes on GPUs; on a CPU it starts one without MPI.
    """
    script = folder / "script.py"
    script.write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={processes}", str(script), *map(str, arguments)),
        ],
        capture_output=True,
        text=True,
        env=environment,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_train_as_one_with_two_parts(tmp_path):
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_training as shared
shared.training.CHECKPOINT_SECONDS = -1.0
module, facts = shared.run(sys.argv[1])
rank = shared.os.environ["RANK"]
Path(sys.argv[1], rank + ".json").write_text(json.dumps([
    [p.tolist() for p in module.parameters()], facts["loss_first"], facts["loss_last_tenth"]]))
"""
    launched(code, tmp_path, 2, tmp_path)
    made = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert made[0] == made[1]
    one, facts = run(tmp_path / "one", plan=plan(accumulate=2))
    assert made[0][0] == [p.tolist() for p in one.parameters()]
    assert made[0][1:] == [facts["loss_first"], facts["loss_last_tenth"]]
    assert files(tmp_path / "networks") == ["probe.safetensors"]


@pytest.mark.slow
def test_two_processes_make_one_record(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "cache"))
    results = tmp_path / "results"
    code = "from fairbench.app.cli import main\nmain()"
    command = (
        *("run", "--method", "balanced_data", "--num-images", 100, "--steps", 2),
        *("--seeds", "0,1", "--json", "--device", "cpu", "--results", results),
        *("--param", "steps=2", "--param", "batch=8"),
    )
    documents = json.loads(launched(code, tmp_path, 2, *command))
    assert [document["status"] for document in documents] == ["complete"] * 2
    paths = sorted(path.stem for path in results.rglob("*.json"))
    assert paths == sorted(document["key"] for document in documents)
    again = json.loads(launched(code, tmp_path, 2, *command))  # found, and nobody waits
    assert again == documents
