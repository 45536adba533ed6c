"""What every method has to hold to, as checks that ``check-method`` and the tests share.

Each check raises :class:`ContractError` with what was expected and seen.
"""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fairbench.backbones.small import SMALL_BACKBONES
from fairbench.core.errors import ContractError, FairbenchError, InputError
from fairbench.core.method import (
    ImageSet,
    Method,
    MethodCard,
    Preparation,
    Request,
    Sampler,
    SamplingConfig,
    TrainingData,
)
from fairbench.core.parameters import parameters_of
from fairbench.core.task import Prompt, Task
from fairbench.diffusion.backbone import Backbone, check_needs
from fairbench.methods import get_method, make_method

__all__ = ["Outcome", "Trial", "check_method", "fitting", "images_of", "small_data"]

SUBJECTS = ("person", "tennis player", "santa")
LEVELS = {"gender": ("female", "male"), "race": ("asian", "black", "white")}

Images = dict[tuple[int, int], NDArray[np.uint8]]
"""(prompt index, image index) -> (H, W, 3)."""


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ContractError(otherwise)


def small_images(n: int, seed: int, male_share: float, side: int = 4) -> ImageSet:
    """Random images of 4 x 4 squares with labels, men brighter than women."""
    rng = np.random.default_rng(seed)
    labels = {
        "gender": (rng.random(n) < male_share).astype(np.uint8),
        "race": rng.integers(3, size=n).astype(np.uint8),
    }
    bright = np.where(labels["gender"], 180, 70)[:, None, None, None]
    images = (bright + rng.normal(0, 25, (n, 4, 4, 3))).clip(0, 255).astype(np.uint8)
    images = images.repeat(side // 4, axis=1).repeat(side // 4, axis=2)
    return ImageSet(images, rng.integers(len(SUBJECTS), size=n), labels)


def small_data(card: MethodCard | None = None, side: int = 4) -> TrainingData:
    """What a method with this card may see of images with this side; None: all of it."""
    subjects = tuple(Prompt(role, template="a photo of {}") for role in SUBJECTS)
    whole = TrainingData(
        neutral_prompts=subjects,
        subjects=subjects,
        training=small_images(48, 0, 0.9, side),
        reference=small_images(24, 1, 0.5, side),
        attributes=LEVELS,
    )
    if card is None:
        return whole
    labelled, declared = "labels" in card.supervision, card.supervision
    training = whole.training if card.training_set != "none" else None
    reference = whole.reference if "reference-set" in declared else None
    if not labelled:
        training = dataclasses.replace(training, labels=None) if training else None
        reference = dataclasses.replace(reference, labels=None) if reference else None
    return TrainingData(
        neutral_prompts=subjects if "prompts" in declared else (),
        subjects=subjects,
        training=training,
        reference=reference,
        attributes=LEVELS if labelled else {},
    )


def fits(card: MethodCard, backbone: Backbone) -> bool:
    """Whether the card allows the backbone, by its prompts."""
    return card.prompts == "either" or backbone.conditional == (card.prompts == "needed")


@dataclass(frozen=True)
class Trial:
    """A method with quick parameters on one small backbone.

    Attributes:
        name: The method.
        kind: Of `SMALL_BACKBONES`.
        cache: Empty folder for what it trains.
        parameters: None: the method's own `quick` ones.
        make: Makes the backbone, a fresh one each time; None: the small one of that kind.
    """

    name: str
    kind: str
    cache: Path
    parameters: Mapping[str, Any] | None = None
    make: Callable[[], Backbone] | None = None

    def fresh(self) -> Backbone:
        """A backbone that no method has had."""
        return SMALL_BACKBONES[self.kind]() if self.make is None else self.make()

    @property
    def method(self) -> Method:
        """The method with its parameters."""
        made = get_method(self.name)
        quick = getattr(made, "quick", {}) if self.parameters is None else self.parameters
        return made(**quick)

    def task(self) -> Task:
        """Two prompts and two groups, each to have half of the images."""
        prompts = tuple(Prompt(role, template="a photo of {}") for role in SUBJECTS[:2])
        return Task("tiny", {"gender": LEVELS["gender"]}, prompts, (0.5, 0.5), True)

    def requests(self, images: int, seed: int = 0) -> list[Request]:
        """So many images of each of the two prompts."""
        prompts = enumerate(self.task().prompts)
        return [Request(prompt, p, i, seed) for p, prompt in prompts for i in range(images)]

    def sampler(
        self, seed: int = 0, cache: str = "first", backbone: Backbone | None = None
    ) -> Sampler:
        """The prepared method; another `cache` has it train again."""
        method = self.method
        preparation = Preparation(
            seed=seed,
            sampling=SamplingConfig(2, 3.0),
            images_per_prompt=(64, 64),
            cache=self.cache / cache,
            progress=lambda *_: None,
        )
        (self.cache / cache).mkdir(parents=True, exist_ok=True)
        backbone = backbone or self.fresh()
        card = method.configured_card()
        check_needs(card, backbone)
        data = small_data(card, backbone.image_size)
        return method.prepare(self.task(), backbone, data, preparation)


def images_of(sampler: Sampler, requests: Sequence[Request], size: int) -> Images:
    """Request -> its image, made in the sampler's own batches of at most `size`."""
    made: Images = {}
    for batch in sampler.batches(requests, size):
        samples = sampler(batch)
        coupled = len(batch) > 1 and len(set(samples.batch_id)) == 1
        _expect(
            1 <= len(batch) <= size or coupled, f"expected batches of {size}, seen {len(batch)}"
        )
        _expect(
            samples.images.dtype == np.uint8, f"expected uint8 images, seen {samples.images.dtype}"
        )
        parts: list[NDArray[Any]] = [samples.images, samples.network_calls, samples.batch_id]
        parts += [] if samples.requested is None else [samples.requested]
        sizes = [len(part) for part in parts]
        _expect(
            set(sizes) == {len(batch)},
            f"expected {len(batch)} images, network calls, batch ids and groups, seen {sizes}",
        )
        for request, image in zip(batch, samples.images, strict=True):
            key = request.prompt_index, request.image_index
            _expect(key not in made, f"image {key} is made twice")
            made[key] = image
    _expect(len(made) == len(requests), f"expected {len(requests)} images, seen {len(made)}")
    return made


def _same(one: Images, other: Images) -> bool:
    return all(np.array_equal(one[key], other[key]) for key in one)


def one_image_a_request(trial: Trial) -> None:
    """Every request gets its own image, and the same one in any batch and order."""
    sampler, requests = trial.sampler(), trial.requests(5)
    whole = images_of(sampler, requests, 10)
    different = len({image.tobytes() for image in whole.values()})
    _expect(different == len(requests), f"only {different} of {len(requests)} images differ")
    order = np.random.default_rng(0).permutation(len(requests))
    for size in (1, 3):
        again = images_of(sampler, [requests[i] for i in order], size)
        _expect(_same(whole, again), f"images in batches of {size} differ from those of 10")


def a_seed_repeats(trial: Trial) -> None:
    """Prepared anew a seed gives the same images, and another seed others."""

    def run(seed: int, cache: str) -> Images:
        return images_of(trial.sampler(seed, cache), trial.requests(2, seed), 4)

    first, second, other = run(0, "once"), run(0, "again"), run(1, "other")
    _expect(_same(first, second), "the same seed gives other images when prepared anew")
    equal = sum(np.array_equal(first[key], other[key]) for key in first)
    _expect(equal == 0, f"{equal} of {len(first)} images of seeds 0 and 1 are the same")


def _global_state() -> tuple[Any, bytes, bytes]:
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    torch_state = torch.get_rng_state().numpy().tobytes()
    return random.getstate(), numpy_state[1].tobytes(), torch_state


@contextmanager
def _kept_global_state() -> Iterator[None]:
    ours: Any = np.random.get_state()  # noqa: NPY002
    python, torchs = random.getstate(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(ours)  # noqa: NPY002
        torch.set_rng_state(torchs)


def global_randomness_is_untouched(trial: Trial) -> None:
    """Images don't depend on the global random state, which stays as it was."""
    made = []
    with _kept_global_state():
        for seed in (11, 12):
            backbone = trial.fresh()
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            before = _global_state()
            sampler = trial.sampler(cache=f"global {seed}", backbone=backbone)
            made.append(images_of(sampler, trial.requests(2), 4))
            after = _global_state()
            for what, one, other in zip(
                ("random", "numpy.random", "torch"), before, after, strict=True
            ):
                _expect(one == other, f"the global state of {what} changed; use own generators")
    _expect(_same(*made), "images depend on the global random state; use own generators")


def network_calls_are_counted(trial: Trial) -> None:
    """`Samples.network_calls` are the calls of the backbone's network that were made."""
    backbone = trial.fresh()
    sampler = trial.sampler(backbone=backbone)
    kind: Any = type(backbone)  # a method may have a second network behind a backbone of its own
    network, rows = kind._network, []

    def counting(self: Backbone, x: Any, t: Any, context: Any) -> Any:
        rows.append(len(x))
        return network(self, x, t, context)

    kind._network = counting
    try:
        samples = sampler(trial.requests(3)[:3])  # one network batch, one prompt
    finally:
        kind._network = network
    seen = samples.network_calls.tolist()
    _expect(
        seen == [len(rows)] * 3, f"expected {len(rows)} network calls for each image, seen {seen}"
    )
    widths = sorted(set(rows))
    _expect(
        widths == [backbone.network_batch],
        f"expected network batches of {backbone.network_batch} rows, seen {widths}",
    )


def additions_are_said(trial: Trial) -> None:
    """The card says in words what is added to the backbone, where something is."""
    count = trial.sampler().extra_parameters
    said = trial.method.configured_card().extra_parameters
    _expect(
        (count > 0) == (said != "none"),
        f"{count} parameters are added, and the card's extra_parameters says {said!r}",
    )


SAMPLING_CHECKS: Mapping[str, Callable[[Trial], None]] = MappingProxyType(
    {
        "one image a request, whatever batch it is made in": one_image_a_request,
        "a seed gives the same images, another seed others": a_seed_repeats,
        "global random state is neither used nor changed": global_randomness_is_untouched,
        "network calls are those that were made": network_calls_are_counted,
        "the card says what is added to the backbone": additions_are_said,
    }
)


def card_is_well_formed(name: str) -> None:
    """A frozen dataclass with a card that bears its name and parameters that have help."""
    made: Any = get_method(name)
    frozen = getattr(getattr(made, "__dataclass_params__", None), "frozen", False)
    _expect(frozen, "expected a frozen dataclass: @dataclass(frozen=True)")
    _expect(isinstance(made(), Method), "expected a method: derive it from MethodBase")
    card = made.card
    _expect(isinstance(card, MethodCard), f"expected a MethodCard, seen {type(card).__name__}")
    _expect(card.name == name, f"expected the card's name to be {name}, seen {card.name}")
    _expect(bool(card.title), "expected a title on the card, seen none")
    _expect(made.version >= 1, f"expected version 1 or more, seen {made.version}")
    for one in dataclasses.fields(made):
        _expect(bool(one.metadata.get("help")), f"parameter {one.name} has no help")
        _expect(one.default is not dataclasses.MISSING, f"parameter {one.name} has no default")
    parameters_of(made)
    hash(made())
    if card.arxiv and card.trains:
        _expect(bool(card.deviations), f"follows {card.arxiv} and says nothing of how it differs")


def limits_hold(name: str) -> None:
    """A parameter of the wrong type or outside its limits is refused however it is made."""
    made: Any = get_method(name)
    for one in dataclasses.fields(made):
        wrong: list[Any] = [None, [1]]
        if isinstance(one.default, bool):
            wrong += ["true", 2]
        elif isinstance(one.default, str):
            wrong += ["", 3]
        else:
            wrong += ["1", True, float("nan"), float("-inf")]
            if "minimum" in one.metadata:
                kind: Any = type(one.default)
                wrong.append(kind(one.metadata["minimum"] - 1))
        for value in wrong:
            try:
                made(**{one.name: value})
            except InputError as error:
                said = f"param {one.name} must be"
                _expect(said in str(error), f"expected {said!r}, seen {error}")
            else:
                raise ContractError(f"{one.name}={value!r} isn't refused")


def presets_parse(name: str) -> None:
    """Presets are what the command line would accept, and all different."""
    made: Any = get_method(name)
    every: list[Method] = []
    for preset, values in made.presets.items():
        chosen, _ = make_method(name, [f"preset={preset}"])
        _expect(bool(values), f"preset {preset} sets nothing")
        _expect(chosen not in every, f"preset {preset} is the same as another")
        every.append(chosen)
        spelled = [
            f"{key}={str(value).lower() if isinstance(value, bool) else value}"
            for key, value in values.items()
        ]
        _expect(make_method(name, spelled)[0] == chosen, f"preset {preset} can't be spelled out")
    _expect(set(every) != {made()}, "the presets are all the default")


def file_imports_no_torch(name: str) -> None:
    """Listing methods stays quick: torch and diffusers are imported when a method is prepared."""
    code = (
        "import sys; from fairbench.methods import get_method\n"
        f"get_method({name!r})()\n"
        "print(*[heavy for heavy in ('torch', 'diffusers') if heavy in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    _expect(run.returncode == 0, f"can't be imported: {run.stderr.strip().splitlines()[-1:]}")
    seen = run.stdout.strip()
    _expect(not seen, f"importing the file imports {seen}; import it inside prepare")


FILE_CHECKS: Mapping[str, Callable[[str], None]] = MappingProxyType(
    {
        "the card and the parameters are complete": card_is_well_formed,
        "parameters outside their limits are refused": limits_hold,
        "presets are what the command line would accept": presets_parse,
        "the file imports no torch": file_imports_no_torch,
    }
)


def backbones_that_do_not_fit_are_refused(name: str, cache: Path) -> None:
    """A backbone that the method can't work on is refused in one line, before or in prepare."""
    for kind, make in SMALL_BACKBONES.items():
        for conditional in (True, False):
            backbone = make()
            if conditional != backbone.conditional and kind != "mixture":
                continue  # only the formula can do both
            backbone.conditional = conditional
            card = get_method(name).card
            try:
                Trial(name, kind, cache).sampler(
                    cache=f"refused {kind} {conditional}", backbone=backbone
                )
            except InputError as error:
                _expect(
                    len(str(error).splitlines()) == 1, f"expected one line, seen {str(error)!r}"
                )
            else:
                taken = "prompts" if conditional else "no prompts"
                _expect(
                    fits(card, backbone),
                    f"a backbone that takes {taken} isn't refused, though the card says "
                    f"prompts={card.prompts!r}; raise InputError in prepare",
                )


def fitting(name: str, cache: Path) -> list[str]:
    """Kinds of small backbones that the method works on, smallest first."""
    card, found = get_method(name).card, []
    for kind, make in SMALL_BACKBONES.items():
        backbone = make()
        if not fits(card, backbone):
            continue
        try:
            Trial(name, kind, cache).sampler(cache=f"fitting {kind}", backbone=backbone)
        except InputError:
            continue
        found.append(kind)
    return found


@dataclass(frozen=True)
class Outcome:
    """One check of one method.

    Attributes:
        what: What is checked, in words.
        problem: What doesn't hold; None if it does.
    """

    what: str
    problem: str | None = field(default=None)


def _outcome(what: str, check: Callable[[], None]) -> Outcome:
    try:
        check()
    except FairbenchError as error:
        return Outcome(what, str(error))
    except Exception as error:  # a method under test may fail in any way
        first = (str(error).splitlines() or [""])[0]
        return Outcome(what, f"{type(error).__name__}: {first}")
    return Outcome(what)


def check_method(name: str) -> Iterator[Outcome]:
    """Every check of the contract on every small backbone that the method works on.

    Raises:
        InputError: If there is no such method.
    """
    get_method(name)
    for what, check in FILE_CHECKS.items():
        yield _outcome(what, partial(check, name))
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        yield _outcome(
            "a backbone that doesn't fit is refused in one line",
            partial(backbones_that_do_not_fit_are_refused, name, cache),
        )
        kinds: list[str] = []

        def works() -> None:
            kinds.extend(fitting(name, cache))
            _expect(bool(kinds), f"expected one of {', '.join(SMALL_BACKBONES)} to fit, seen none")

        yield _outcome("a small backbone fits", works)
        for kind in kinds:
            for i, (what, test) in enumerate(SAMPLING_CHECKS.items()):
                trial = Trial(name, kind, cache / f"{kind} {i}")
                yield _outcome(f"{what} ({kind})", partial(test, trial))
