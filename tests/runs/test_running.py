"""Whole runs on the shipped backbone, with few steps so that each takes seconds."""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fairbench import leaderboards
from fairbench.backbones import base
from fairbench.backbones import diffusers_pipelines as backbones
from fairbench.core.errors import AssetError, InputError
from fairbench.core.progress import Reporter
from fairbench.datasets.base import get_dataset
from fairbench.methods import get_method
from fairbench.methods.vanilla import Vanilla
from fairbench.runs import generation
from fairbench.runs import running as pipeline
from fairbench.runs.config import RunConfig
from fairbench.runs.external import evaluate
from fairbench.runs.generation import find_generated, training_data
from fairbench.runs.plan import generation_config, plan_run
from fairbench.runs.running import baseline_of, run, take_part
from fairbench.storage import shards
from fairbench.storage.readings import ImageList
from fairbench.storage.records import read_per_image, read_record, read_records, write_record

STEPS = 4
N = 100


@pytest.fixture(scope="session")
def measured_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measurements that all tests share, so that the real images are read once."""
    return tmp_path_factory.mktemp("measurements")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured_before: Path) -> Path:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "features").symlink_to(measured_before)
    monkeypatch.setenv("FAIRBENCH_CACHE", str(cache))
    return cache


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., RunConfig]:
    def make(method: str = "vanilla", **changes: Any) -> RunConfig:
        start = RunConfig(method, num_images=N, steps=STEPS, results=tmp_path / "results")
        return dataclasses.replace(start, **changes)

    return make


def images_of(cache: Path, key: str | None) -> np.ndarray:
    found = find_generated(str(key), cache)
    assert found is not None
    return np.concatenate(list(found.images.batches(64)))


def test_a_run_leaves_a_record_and_a_picture_and_is_found_again(
    config: Callable[..., RunConfig],
) -> None:
    first = run(config())
    again = run(config())

    assert not first.found
    assert again.found
    assert again.record == first.record == read_record(first.path)
    assert first.path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert first.record.status == "complete"
    assert len(first.manifest) == N
    assert {len(digest) for _, _, digest in first.manifest} == {64}


def test_every_score_says_n_interval_and_source(config: Callable[..., RunConfig]) -> None:
    record = run(config("prompt_append")).record

    names = [score.name for score in record.scores]
    assert len(set(names)) == len(names)
    for needed in (
        "fairness_discrepancy",
        "fairness_discrepancy_gender",
        "fairness_discrepancy_race",
        "fairness_discrepancy_gender_race",
        "frechet_cartoonfaces_balanced",
        "kernel_cartoonfaces_balanced",
        "validity",
        "prompt_accuracy",
        "hit_rate",
    ):
        score = record.score(needed)
        assert score is not None, needed
        assert score.n > 0
        assert score.low is not None
        assert score.high is not None
        assert score.low <= score.value <= score.high
        assert score.source


def test_all_declared_groups_are_listed_and_sum_to_n(config: Callable[..., RunConfig]) -> None:
    record = run(config()).record

    assert [row["group"] for row in record.groups["gender"]] == ["female", "male"]
    assert len(record.groups["gender/race"]) == 8
    for rows in record.groups.values():
        assert sum(row["count"] for row in rows) == rows[0]["n"]
        assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_methods_with_a_reference_set_are_asked_whether_they_copy_it(
    config: Callable[..., RunConfig],
) -> None:
    record = run(
        config("dsm_reference", parameters=("steps=1", "batch=4", "precision=float32"))
    ).record
    score = record.score("memorisation_cartoonfaces")
    assert score is not None
    assert score.low is not None
    assert score.high is not None
    assert 0 <= score.low < score.value < score.high <= 1
    assert "of 800 images learned from" in score.source
    copies = record.score("copies_cartoonfaces")
    assert copies is not None
    assert copies.value < 0.5
    assert run(config()).record.score("memorisation_cartoonfaces") is None


def test_tasks_that_need_the_same_images_share_them(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    gender = run(config(task="gender"))
    monkeypatch.setattr(generation, "_prepared", None)  # generating again would fail

    race = run(config(task="race"))

    assert race.record.key != gender.record.key
    assert race.record.generation_key == gender.record.generation_key
    assert race.manifest == gender.manifest


def test_a_control_variable_adds_tables_to_the_same_images_and_scores(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(config()).record
    monkeypatch.setattr(generation, "_prepared", None)  # generating again would fail

    with pytest.raises(InputError, match="role"):
        run(config(controls=("rol",)))
    split = run(config(controls=("glasses",))).record

    assert "control" not in plain.config
    assert split.key != plain.key
    assert split.generation_key == plain.generation_key
    assert split.scores == plain.scores
    assert [row["level"] for row in split.facts["control"]["glasses"]] == ["no", "yes"]
    (row,) = leaderboards.rows([plain, split], warn=lambda line: None)
    assert row.keys == (split.key,)


@pytest.mark.parametrize("method", ["vanilla", "prompt_append", "fairgen"])
def test_same_seed_same_images(
    config: Callable[..., RunConfig], own_cache: Path, method: str
) -> None:
    few = ("iterations=2",) if method == "fairgen" else ()
    first = run(config(method, steps=4, parameters=few))
    manifest = first.manifest
    one = images_of(own_cache, first.record.generation_key)
    forced = run(config(method, steps=4, parameters=few, force=True))
    two = images_of(own_cache, forced.record.generation_key)

    np.testing.assert_array_equal(one, two)
    assert forced.manifest == manifest
    assert forced.record.scores == first.record.scores
    other = run(config(method, steps=4, parameters=few, seed=1))
    assert not {d for *_, d in other.manifest} & {d for *_, d in first.manifest}


def test_another_network_batch_is_another_question_with_nearly_the_same_images(
    config: Callable[..., RunConfig], own_cache: Path
) -> None:
    usual, same, other = (run(config(steps=4, network_batch=n)) for n in (None, 64, 7))
    assert usual.record.key == same.record.key
    assert "network_batch" not in usual.record.config
    assert other.record.generation_key != usual.record.generation_key
    assert other.record.config["network_batch"] == 7
    one, two = (images_of(own_cache, each.record.generation_key) for each in (usual, other))
    assert np.abs(one.astype(int) - two).max() <= 1


def test_images_decoded_in_other_batches_are_nearly_the_same(
    config: Callable[..., RunConfig], own_cache: Path
) -> None:
    usual, other = (run(config(steps=4, decode_batch=n)) for n in (None, 9))
    assert other.record.config["decode_batch"] == 9
    one, two = (images_of(own_cache, each.record.generation_key) for each in (usual, other))
    assert np.abs(one.astype(int) - two).max() <= 1
    with pytest.raises(InputError, match="has no decoder"):
        run(config(backbone="cartoonfaces-ddpm", decode_batch=9))


def test_progress_moves_by_the_step(config: Callable[..., RunConfig]) -> None:
    told: list[float] = []

    def progress(what: str, done: float, total: float) -> None:
        if what == "generating images":
            assert total == N
            told.append(done)

    run(config(steps=4), Reporter(progress=progress))
    assert told == sorted(told)
    assert told[0] == 0
    assert 0 < told[1] < 64 < told[-2]
    assert told[-1] == N


def test_methods_start_from_the_same_noise(config: Callable[..., RunConfig]) -> None:
    """A method that does nothing makes the vanilla images: adapters of strength 0."""
    off = ("iterations=1", "strength=0.0")
    plain = run(config(steps=4))
    adapted = run(config("fairgen", steps=4, parameters=off))

    assert adapted.manifest == plain.manifest


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("vanilla", ()), ("rejection", ("classifier_steps=20", "max_attempts=2"))],
)
def test_an_interrupted_run_goes_on_where_it_stopped(
    config: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    method: str,
    parameters: tuple[str, ...],
) -> None:
    """What its record says of all images counts those made before it stopped."""
    asked = {"method": method, "parameters": parameters, "network_batch": 20}
    whole = run(config(results=tmp_path / "elsewhere", **asked))
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "second"))
    made: list[float] = []

    def stop(what: str, done: float, total: float) -> None:
        if what == "generating images" and done > 60:
            raise KeyboardInterrupt

    def count(what: str, done: float, total: float) -> None:
        if what == "generating images":
            made.append(done)

    with pytest.raises(KeyboardInterrupt):
        run(config(**asked), Reporter(progress=stop))
    left = read_records(tmp_path / "results", pytest.fail)
    assert [record.status for record in left] == ["interrupted"]

    resumed = run(config(**asked), Reporter(progress=count))

    assert min(made) == 60
    assert resumed.record.status == "complete"
    assert resumed.manifest == whole.manifest
    for name in ("images", "attempts", "given_up"):
        assert resumed.record.facts.get(name) == whole.record.facts.get(name)
    assert ("attempts" in resumed.record.facts) == (method == "rejection")
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("name", ["all.npz", "batch-*.npz"])
def test_a_cut_off_cache_file_is_made_again(
    config: Callable[..., RunConfig], own_cache: Path, name: str
) -> None:
    first = run(config())
    folder = own_cache / "images" / str(first.record.generation_key)
    stored = min(folder.glob(name))
    stored.write_bytes(stored.read_bytes()[:1000])

    again = run(config(task="race"))

    assert again.manifest == first.manifest


def test_a_failed_run_is_recorded_and_never_found(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of luck\nsecond line")

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "generate", fail)
        with pytest.raises(RuntimeError):
            run(config())
    (record,) = read_records(tmp_path / "results", pytest.fail)
    assert record.status == "failed"
    assert record.error == "RuntimeError: out of luck"

    assert not run(config()).found


def test_other_images_of_the_same_configuration_are_reported(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    first = run(config())
    images = read_per_image(first.path, first.record)
    assert images is not None
    others = ("0" * 64, *images.sha256[1:])
    write_record(first.path.parents[2], first.record, dataclasses.replace(images, sha256=others))
    warnings: list[str] = []

    run(config(force=True), Reporter(warn=warnings.append))

    assert len(warnings) == 1
    assert "1 of 100 images differ" in warnings[0]


def test_a_damaged_record_is_named_before_the_work_and_kept(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run(config()).path
    path.write_text("{")
    monkeypatch.setattr(pipeline, "generate", None)

    with pytest.raises(InputError, match=path.name):
        run(config())
    assert path.read_text() == "{"


def test_the_baseline_is_the_same_question_and_seed(config: Callable[..., RunConfig]) -> None:
    run(config(seed=1))
    run(config(task="race"))
    record = run(config("prompt_append")).record
    assert baseline_of(record, config().results, pytest.fail) is None

    baseline = run(config()).record

    assert baseline_of(record, config().results, pytest.fail) == baseline


def test_evaluate_measures_images_from_a_folder(
    config: Callable[..., RunConfig], own_cache: Path, tmp_path: Path
) -> None:
    from PIL import Image

    made = run(config()).record
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(images_of(own_cache, made.generation_key)):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    arguments: dict[str, Any] = {"dataset": "cartoonfaces", "task": "gender", "name": "mine"}

    outcome = evaluate(folder, results=config().results, **arguments)
    again = evaluate(folder, results=config().results, **arguments)

    mine = outcome.record
    assert again.found
    for name in ("fairness_discrepancy", "frechet_cartoonfaces_balanced", "validity"):
        assert mine.score(name) == made.score(name)
    assert mine.groups["gender"] == [
        {k: v for k, v in row.items() if k in mine.groups["gender"][0]}
        for row in made.groups["gender"]
    ]
    (folder / "000.png").unlink()
    with pytest.raises(InputError, match="at least 100"):
        evaluate(folder, results=config().results, **arguments)


def test_the_record_is_json_that_anybody_can_read(config: Callable[..., RunConfig]) -> None:
    outcome = run(config("fairgen", parameters=("iterations=1",)))
    document = json.loads(outcome.path.read_text())

    assert document["schema"] == 2
    assert document["config"]["parameters"]["iterations"] == 1
    assert document["card"]["supervision"] == ["prompts"]
    assert document["facts"]["hit_matrix"]["groups"] == ["female", "male"]
    assert np.sum(document["facts"]["hit_matrix"]["counts"]) == document["scores"][0]["n"]
    assert document["extra_parameters"] > 0
    assert document["network_calls_per_image"] == 2 * STEPS


def test_a_method_learns_from_images_of_the_size_that_its_backbone_makes() -> None:
    card = get_method("dsm_reference").card
    data = get_dataset(None)
    native, larger = (training_data(data, card, side).reference for side in (32, 48))
    assert native is not None
    assert larger is not None
    plain = training_data(data, card).reference
    assert plain is not None
    np.testing.assert_array_equal(native.images, plain.images)
    assert larger.images.shape == (len(native), 48, 48, 3)
    assert abs(float(larger.images.mean()) - float(native.images.mean())) < 1


def test_changed_weights_of_a_shipped_backbone_are_refused(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "weights_sha256", lambda folder: "0" * 64)

    with pytest.raises(AssetError, match="reinstall"):
        run(config())


def test_out_of_memory_goes_on_with_smaller_calls_and_says_so(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = backbones.DiffusersBackbone.predict

    def tight(self: backbones.DiffusersBackbone, x: Any, t: Any, context: Any) -> Any:
        if self.network_batch > 16:
            raise torch.OutOfMemoryError("too much")
        return predict(self, x, t, context)

    monkeypatch.setattr(backbones.DiffusersBackbone, "predict", tight)
    warnings: list[str] = []

    record = run(config(steps=4), Reporter(warn=warnings.append)).record

    assert record.facts["network_batch"] == 16
    assert "network_batches" not in record.facts  # nothing was made before
    assert len(warnings) == 2
    assert record.status == "complete"


def test_out_of_memory_repeats_no_finished_image_and_the_next_run_begins_small(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory lacks from the third batch on, and for decoding of more than two rows."""
    predict, pixels = backbones.DiffusersBackbone.predict, backbones.DiffusersBackbone.pixels
    made: list[int] = []
    stop = [False]

    def tight(self: backbones.DiffusersBackbone, x: Any, t: Any, context: Any) -> Any:
        if len(made) >= 40 and self.network_batch > 10:
            raise torch.OutOfMemoryError("too much")
        if stop[0] and len(made) >= 60:
            raise KeyboardInterrupt
        return predict(self, x, t, context)

    def narrow(self: backbones.DiffusersBackbone, latents: torch.Tensor) -> torch.Tensor:
        if (self.decode_batch or self.network_batch) > 5:
            raise torch.OutOfMemoryError("too much")
        made.extend([1] * len(latents))
        return pixels(self, latents)

    monkeypatch.setattr(backbones.DiffusersBackbone, "predict", tight)
    monkeypatch.setattr(backbones.DiffusersBackbone, "pixels", narrow)
    stop[0] = True
    with pytest.raises(KeyboardInterrupt):
        run(config(network_batch=20))
    stop[0], notes = False, []

    record = run(config(network_batch=20), Reporter(note=notes.append)).record

    assert len(made) == 100  # none was decoded twice, so none was sampled twice to its end
    assert any("an earlier run was out of memory" in note for note in notes)
    assert record.facts["network_batch"] == 10
    assert record.facts["network_batches"] == {"10": [[40, 99]], "20": [[0, 39]]}
    assert record.facts["decode_batch"] == 5


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_a_method_that_needs_too_much_memory_is_bad_input(
    error: Exception, config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(Vanilla, "prepare", prepare)
    with pytest.raises(InputError, match="too little memory to prepare vanilla"):
        run(config(steps=2))


def test_a_broken_method_is_no_bad_input(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*args: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Vanilla, "prepare", prepare)
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(config(steps=2))


@pytest.mark.parametrize(("target", "lines"), [("uniform", 0), ("female=0.8,male=0.2", 1)])
def test_who_follows_no_target_says_so(
    target: str, lines: int, config: Callable[..., RunConfig]
) -> None:
    warnings: list[str] = []
    run(config(steps=2, target=target), Reporter(warn=warnings.append))
    assert sum("doesn't follow a target" in line for line in warnings) == lines


def test_images_from_two_places_share_one_table(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    from PIL import Image

    from fairbench import leaderboards
    from fairbench.datasets.cartoonfaces import load_split

    images = load_split("evaluation").images
    for name, part in (("one", images[:N]), ("two", images[N : 2 * N])):
        (tmp_path / name).mkdir()
        for i, image in enumerate(part):
            Image.fromarray(np.asarray(image)).save(tmp_path / name / f"{i}.png")
        evaluate(
            tmp_path / name,
            dataset="cartoonfaces",
            task="race",
            name=name,
            results=tmp_path / "results",
        )

    records = read_records(tmp_path / "results", pytest.fail)
    rows = leaderboards.rows(records, warn=pytest.fail)

    assert [row.comparable for row in rows] == ["yes", "yes"]


def test_a_new_parameter_enters_the_key_once_it_is_changed(
    config: Callable[..., RunConfig],
) -> None:
    def parameters(*given: str) -> dict[str, Any]:
        plan = plan_run(config("fairgen", parameters=given))
        made: dict[str, Any] = generation_config(plan, "weights")["parameters"]
        return made

    assert not {"joint", "orthogonality"} & parameters().keys()
    assert parameters("joint=false", "orthogonality=0") == parameters()
    assert parameters("joint=true") == {**parameters(), "joint": True}
    assert parameters("orthogonality=0.5") == {**parameters(), "orthogonality": 0.5}


def test_processes_share_the_batches_and_any_number_of_them_goes_on(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = config(network_batch=20)
    whole = run(dataclasses.replace(asked, results=tmp_path / "elsewhere"))
    cache = tmp_path / "second"
    monkeypatch.setenv("FAIRBENCH_CACHE", str(cache))
    waits: list[int] = []

    def meet(device: torch.device) -> None:
        waits.append(1)
        if len(waits) == 2:  # the first time it waits for what the first process trains
            raise KeyboardInterrupt

    with monkeypatch.context() as second:
        second.setattr(generation, "meet", meet)
        second.setenv("WORLD_SIZE", "2")
        second.setenv("RANK", "1")
        with pytest.raises(KeyboardInterrupt):
            take_part(asked)
    made = sorted(path.name for path in cache.rglob("batch-*.npz"))
    assert made == ["batch-0000020-20.npz", "batch-0000060-20.npz"]
    assert not list((tmp_path / "results").rglob("*.json"))

    alone = run(asked)

    assert alone.manifest == whole.manifest
    assert alone.record.scores == whole.record.scores
    assert len(list(cache.rglob("batch-*.npz"))) == 5


def test_a_run_that_the_disk_can_t_hold_is_refused_before_it_begins(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free = 3072 * 40
    monkeypatch.setattr(generation.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setattr(generation, "_backbone", None)  # would fail if it were called
    with pytest.raises(InputError, match="at most 40 fit") as caught:
        run(config())
    assert "32x32" in str(caught.value)
    assert not list((tmp_path / "results").rglob("*.json"))


def test_images_are_read_from_their_files_a_few_at_a_time(
    config: Callable[..., RunConfig], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run(config(network_batch=20)).record
    found = find_generated(str(record.generation_key), own_cache)
    assert found is not None
    images = found.images
    seen: list[weakref.ref[np.ndarray]] = []
    most = 0
    whole = shards.load_arrays

    def counted(path: Path) -> dict[str, np.ndarray] | None:
        nonlocal most
        stored = whole(path)
        assert stored is not None
        seen.append(weakref.ref(stored["images"]))
        most = max(most, sum(one() is not None for one in seen))
        return stored

    monkeypatch.setattr(shards, "load_arrays", counted)
    monkeypatch.setattr(shards, "HELD_BYTES", 1)
    read = [batch.copy() for batch in images.batches(8)]
    assert [len(batch) for batch in read] == [8] * 12 + [4]
    assert most <= 3  # that which is used, and the one that is read ahead
    assert ImageList.of(np.concatenate(read)) == images.listing
    some = np.array([70, 3, 4, 99])
    (few,) = images.take(some).batches(10)
    np.testing.assert_array_equal(few, np.concatenate(read)[some])
