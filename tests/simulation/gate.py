"""How often `fairbench check` alarms where nothing changed, and what it finds where something did.

    python tests/simulation/gate.py --pairs 400
    python tests/simulation/gate.py --planted

Images are drawn from the analytic data set's mixture, read by its instruments and scored as those
of a run are; nothing is sampled by a diffusion, so that hundreds of pairs take minutes. The first
compares pairs of samples of one generator, with independent noise on both sides. The second plants
a fault in what is drawn, read, kept or compared with, and says in how many trials the check fails.
`docs/gate.md` has what both printed.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass, replace

import numpy as np

from fairbench.core.measurements import Measurements
from fairbench.core.record import PerImage
from fairbench.datasets.analytic import ATTRIBUTES, BIAS, DATASET, DEVIATION, SIDE, means
from fairbench.gate.baseline import Measured
from fairbench.gate.comparing import compare
from fairbench.instruments.analytic import Encoder, Judge, ValidityCheck
from fairbench.metrics import wilson_interval
from fairbench.scores.parts.crossings import Sample
from fairbench.scores.parts.evidence import Columns, FaceEvidence, Reference
from fairbench.scores.scoring import score_all

IMAGES = 400
MOST_ALARMS = 0.07
SHAPE = (2, 2, 3)
JUDGES = (Judge("first"), Judge("second"))
EVEN = np.full(SHAPE, 1 / 12)
FAIR = tuple(EVEN.ravel())


@dataclass(frozen=True)
class World:
    """Everything that a measurement rests on; a planted fault is another value of one field.

    Attributes:
        task: Of the analytic data set.
        shares: Of the 12 components in what is made; `FAIR`: half of each tone, by turns.
        contrast: Of the components' means; below 1 as of a network that learned too little.
        noise: Deviation of the pixels, in that of the mixture.
        faded: Which of the 12 components lost contrast; empty: none.
        left: How much of it is left to them, as a factor.
        same: Share of the images that are copies of the run's first ones.
        leaked: Share of the images that are real ones of the evaluation split.
        learned: Share of the images that are ones that the method learned from.
        obeyed: Share of the images that are in the group that was asked for.
        sides: Share of images that show the side that their prompt asks for.
        biased: Share of dark images that the judge takes for light ones.
        doubt: Power that probabilities of the first judge are raised to.
        brighter: Levels of 255 by which images are brighter for the second judge.
        scaled: What features of generated images are multiplied by.
        reference: Which of the 12 components real images are of; empty: all.
        found: Share of the images in which the face detector finds what is there.
        told: Share of given labels that are right.
        images: How many.
        encoder: Its name; those of public encoders have scores of their own.
    """

    task: str = "tone"
    shares: tuple[float, ...] = FAIR
    contrast: float = 1.0
    noise: float = 1.0
    faded: tuple[bool, ...] = ()
    left: float = 1.0
    same: float = 0.0
    leaked: float = 0.0
    learned: float = 0.0
    obeyed: float = 1.0
    sides: float = 1.0
    biased: float = 0.0
    doubt: float = 1.0
    brighter: int = 0
    scaled: float = 1.0
    reference: tuple[bool, ...] = ()
    found: float = 1.0
    told: float = 1.0
    images: int = IMAGES
    encoder: str = "clip-analytic"


def drawn(world: World, seed: int):
    """Images (N, 8, 8, 3), the side that each prompt asks for, and the tone asked for, (N,)."""
    rng = np.random.default_rng([seed, 1])
    n = world.images
    prompts = 2 if world.task == "tone_by_side" else 1
    asked = np.arange(n) * prompts // n
    requested = np.arange(n) % 2
    side = np.where(rng.random(n) < world.sides, asked, 1 - asked)
    shares = np.reshape(world.shares, (2, 6))
    shares /= shares.sum(axis=1, keepdims=True)
    uniform = rng.random(n)[:, None]
    cell = (uniform > np.cumsum(shares[side], axis=1)[:, :-1]).sum(axis=1)
    tone, hue = np.unravel_index(cell, SHAPE[1:])
    if world.shares == FAIR:
        tone = np.where(rng.random(n) < world.obeyed, requested, tone)
    component = np.ravel_multi_index((side, tone, hue), SHAPE)
    middle, contrast = means().mean(axis=0), np.full(n, world.contrast)
    if world.faded:
        contrast *= np.where(np.array(world.faded)[component], world.left, 1.0)
    mean = middle + contrast[:, None, None, None] * (means()[component] - middle)
    noise = DEVIATION * world.noise * rng.standard_normal((n, 3, SIDE, SIDE))
    pixels = mean + noise
    images = np.clip(np.rint((pixels + 1) * 127.5), 0, 255).astype(np.uint8)
    images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    for share, role in ((world.leaked, "evaluation"), (world.learned, "method_reference")):
        real = DATASET.split(role).images
        places = rng.choice(n, int(share * n), replace=False)
        images[places] = real[rng.choice(len(real), len(places), replace=False)]
    places = np.arange(n - int(world.same * n), n)
    images[places] = images[places % max(1, int(0.05 * n))]
    return images, asked, requested, tone


def measure(world: World, seed: int) -> Measured:
    """One run, as the gate sees it."""
    images, asked, requested, tone = drawn(world, seed)
    task = DATASET.task(world.task, conditional=True)
    crossed = DATASET.crossed(world.task)
    n = len(images)
    rng = np.random.default_rng([seed, 2])
    lit = np.clip(images.astype(np.int64) + world.brighter, 0, 255).astype(np.uint8)
    first, second = JUDGES[0](images), JUDGES[1](lit)
    dark = (first["tone"].argmax(1) == 0) & (rng.random(n) < world.biased)
    first["tone"][dark] = first["tone"][dark][:, ::-1]
    for table in first.values():
        table **= world.doubt
        table /= table.sum(axis=1, keepdims=True)
    valid = ValidityCheck()(images)["validity"] >= ValidityCheck.threshold
    features = Encoder()(images)["features"] * np.float32(world.scaled)
    whole = DATASET.split("evaluation")
    sides = (0, 1) if world.task == "tone_by_side" else (0,)
    kept = np.isin(whole.labels["side"], sides)
    if world.reference:
        place = np.ravel_multi_index([whole.labels[name] for name in ATTRIBUTES], SHAPE)
        kept &= np.array(world.reference)[place]
    real = whole.take(kept)
    answers = real.labels["side"].astype(np.int64)
    reference = Reference(
        {world.encoder: Encoder()(real.images)["features"]}, dict(real.labels), answers, None
    )
    wanted = Encoder()(whole.images)["features"]
    texts = np.stack([wanted[whole.labels["side"] == s].mean(axis=0) for s in (0, 1)])[asked]
    cosine = (features * texts).sum(1) / np.linalg.norm(features, axis=1)
    alignment = (100 * cosine / np.linalg.norm(texts, axis=1)).astype(np.float32)
    classes = first["tone"][:, :, None] * first["hue"][:, None]
    logits = np.log(classes.reshape(n, -1) + 1e-6)
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    known = {hashlib.sha256(image.tobytes()).hexdigest() for image in whole.images}
    given = np.where(rng.random(n) < world.told, tone, 1 - tone)
    inception = world.encoder.startswith("inception")
    stem = "inception" if inception else world.encoder
    distances = ("fid", "kid") if inception else (f"frechet_{stem}", f"kernel_{stem}")
    columns = Columns(stem, *distances)
    measured = Measurements(
        {world.encoder: features},
        {"first": first, "second": second},
        valid,
        {world.encoder: logits.astype(np.float32)},
        {world.encoder: alignment},
    )
    scores, _, facts = score_all(
        Sample(measured, asked, requested, np.arange(n)),
        reference,
        task,
        ATTRIBUTES,
        crossed,
        {judge.name: judge.confusion for judge in JUDGES},
        {world.encoder: columns},
        given={"tone": given} if world.told < 1 else {},
        seen={world.encoder: Encoder()(DATASET.split("method_reference").images)["features"]},
        faces=looked_at(rng.random(n) < world.found) if world.encoder == "clip-faces" else None,
        copies={
            "images": n,
            "distinct": len(set(digests)),
            "evaluation": sum(digest in known for digest in digests),
        },
        seed=0,
    )
    labels = {
        judge: {name: table.argmax(1).astype(np.int64) for name, table in said.items()}
        for judge, said in measured.probabilities.items()
    }
    places = np.arange(n) - np.searchsorted(asked, asked)
    return Measured(
        {"method": "drawn", "dataset": "analytic", "task": world.task, "num_images": n},
        f"{seed}",
        {},
        {score.name: score for score in scores},
        PerImage(tuple(digests), asked, places, requested, np.arange(n), valid, labels),
        n,
        facts.get("not_measured", {}),
    )


def looked_at(seen):
    """What a detector says that finds a face in some images, (N,) bool."""
    from fairbench.instruments.faces import Faces  # loads torch

    faces = Faces(
        np.where(seen, 0.95, 0.1).astype(np.float32),
        np.repeat(seen.astype(np.int64)[:, None], 3, axis=1),
        np.where(seen[:, None], np.float32([0, 0, 8, 8]), np.float32(np.nan)),
        seen.astype(np.float32),
        np.zeros(len(seen), dtype=bool),
    )
    return FaceEvidence(np.arange(len(seen)), faces, no_identity="not asked for")


BIASED = tuple(BIAS.ravel())
LEANING = tuple((EVEN * np.array([1.6, 0.4])[None, :, None]).ravel())
DROPPED = tuple((EVEN * np.array([1.5, 1.5, 0.0])).ravel())
COLLAPSED = tuple((EVEN * np.array([2.6, 0.2, 0.2])).ravel())
DARK = tuple(place // 3 % 2 == 0 for place in range(12))
RED = tuple(place % 3 == 0 for place in range(12))


@dataclass(frozen=True)
class Plant:
    """A fault.

    Attributes:
        name: What is wrong.
        method: Family of methods in which such a fault arises.
        family: Score family that has to see it.
        before, after: Without it, and with it.
        pattern: What a score of that family begins with.
        same: Whether both sides have the same images, as of a fault in what measures them.
    """

    name: str
    method: str
    family: str
    before: World
    after: World
    pattern: tuple[str, ...]
    same: bool = False


W = World()
PARTLY = replace(W, shares=(1.0,) * 12)  # even by chance, not by turns


def plant(name, method, family, before, after, *pattern, same=False):
    """A fault that changes some fields of a world."""
    return Plant(name, method, family, before, replace(before, **after), pattern, same)


GROUPS = tuple(
    f"{name}_clip-analytic_{end}"
    for name in ("kernel", "frechet", "recall")
    for end in ("worst", "group")
)
NEAR = ("recall", "precision", "density", "coverage_clip")
JOINT = ("representation", "effective", "coverage_at", "differential")
SIDES = replace(PARTLY, task="tone_by_side")
HUES = replace(PARTLY, task="tone_hue")
PLANTS = (
    plant(
        "guidance with the wrong sign", "sampling", "discrepancies", PARTLY,
        {"shares": LEANING}, "fairness_discrepancy",
    ),
    plant(
        "target ignored, prompt by prompt", "prompting", "discrepancies", SIDES,
        {"shares": BIASED}, "fairness_discrepancy",
    ),
    plant(
        "a group dropped from the words", "prompting", "intersections", HUES,
        {"shares": DROPPED}, *JOINT,
    ),
    plant("one group in five not as asked", "prompting", "semantics", W, {"obeyed": 0.8}, "hit_"),
    plant(
        "stale cache: another prompt's images", "none", "semantics", SIDES,
        {"sides": 0.85}, "prompt_accuracy",
    ),
    plant("last timestep left out", "sampling", "semantics", PARTLY, {"noise": 1.15}, "validity"),
    plant(
        "worse weights: contrast lost", "training", "distances", PARTLY,
        {"contrast": 0.6}, "frechet", "kernel",
    ),
    plant("images too smooth", "fine-tuning", "neighbours", PARTLY, {"noise": 0.65}, *NEAR),
    plant("mode collapse", "training", "diversity", PARTLY, {"noise": 0.65}, "vendi"),
    plant(
        "one group's images worse", "fine-tuning", "parity", PARTLY,
        {"faded": DARK, "left": 0.6}, *GROUPS,
    ),
    plant("stale cache: images repeated", "sampling", "duplicates", PARTLY, {"same": 0.1}, "dup"),
    plant(
        "evaluation images in the output", "training", "duplicates", PARTLY,
        {"leaked": 0.1}, "leaked",
    ),
    plant(
        "reference set copied", "training", "copying", PARTLY,
        {"learned": 0.2}, "memorisation", "copies",
    ),
    plant(
        "a biased judge", "none", "discrepancies", PARTLY,
        {"biased": 0.15}, "fairness_discrepancy", same=True,
    ),
    plant(
        "a judge's images normalised otherwise", "none", "judges", PARTLY,
        {"brighter": 10}, "judge_disagreement", same=True,
    ),
    plant(
        "a judge's temperature changed", "none", "judges", PARTLY,
        {"doubt": 0.15}, "judge_confidence", same=True,
    ),
    plant(
        "a swapped reference", "none", "distances", PARTLY,
        {"reference": RED}, "frechet", "kernel", same=True,
    ),
    plant(
        "an encoder's preprocessing changed", "none", "distances", PARTLY,
        {"scaled": 1.3}, "frechet", "kernel", same=True,
    ),
    plant("prompts of other images", "prompting", "texts", PARTLY, {"sides": 0.85}, "clip_score"),
    plant(
        "classes collapse", "training", "inception", replace(PARTLY, encoder="inception@clean"),
        {"shares": COLLAPSED}, "inception_score",
    ),
    plant(
        "a face detector that misses", "none", "faces", replace(PARTLY, encoder="clip-faces"),
        {"found": 0.85}, "face_validity", same=True,
    ),
    plant(
        "given labels in another order", "none", "audit", replace(PARTLY, told=0.999),
        {"told": 0.7}, "judge_agreement", "fairness_discrepancy_given", same=True,
    ),
)  # fmt: skip


def alarms(pairs: int, seed: int, worlds: tuple[World, ...]) -> int:
    """Alarms among pairs of samples of one generator; neighbours in a ring are a pair."""
    count = 0
    for place, world in enumerate(worlds):
        mine = len(range(place, pairs, len(worlds)))
        first = before = measure(world, 10**6 * (seed + 1) + place)
        for number in range(1, mine + 1):
            last = number == mine
            after = first if last else measure(world, 10**6 * (seed + 1) + place + 10 * number)
            failing = compare([before], [after]).failing
            count += bool(failing)
            for one in failing:
                print(f"alarm: {world.task} {one.score} {one.change} {one.p_value}", flush=True)
            before = after
    return count


def caught(plant: Plant, trials: int) -> tuple[int, int]:
    """Trials in which the check fails, and in which the family that has to see it does."""
    any_, own = 0, 0
    for trial in range(trials):
        before = measure(plant.before, 2 * trial)
        after = measure(plant.after, 2 * trial + (0 if plant.same else 1))
        found = [one.score for one in compare([before], [after]).of("regressed")]
        any_ += bool(found)
        own += any(name.startswith(plant.pattern) for name in found)
    return any_, own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--only", default="", help="plants whose name holds this")
    parser.add_argument("--trials", type=int, default=10)
    asked = parser.parse_args()
    if asked.pairs:
        worlds = (PARTLY, replace(W, shares=BIASED))
        count = alarms(asked.pairs, asked.seed, worlds)
        print(f"{count} alarms in {asked.pairs} pairs; at most {MOST_ALARMS * asked.pairs:.0f}")
    if asked.planted:
        print("| fault | methods | score family | check fails | the family sees it |")
        print("| --- | --- | --- | --- | --- |")
        for plant in PLANTS:
            if asked.only not in plant.name:
                continue
            found, own = caught(plant, asked.trials)
            low, high = wilson_interval(own, asked.trials)
            print(
                f"| {plant.name} | {plant.method} | {plant.family} | {found} of {asked.trials} | "
                f"{own} of {asked.trials} [{low:.0%}, {high:.0%}] |",
                flush=True,
            )


if __name__ == "__main__":
    main()
