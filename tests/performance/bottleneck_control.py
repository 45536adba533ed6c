"""What of an image follows its bottleneck: the limit of methods that edit h.

Run by hand, from anywhere:

    python tests/performance/bottleneck_control.py --backbone cartoonfaces-ddpm
    python tests/performance/bottleneck_control.py --images 512 --share 0.5

Every image is made twice from the same noise: as it is, and with the bottleneck h of another one,
its donor, in the place of its own at every step of the sampler. The data set's judge reads both.
Of pairs whose groups differ in an attribute, printed with 95 % intervals: how often the image then
shows its donor's group, how often it keeps its own, and how often it shows a third. An attribute
that stays as it is even so lies elsewhere in the network than in h, as in the skip connections,
however well heads tell its groups apart in h; an edit reaches it only by leaving what h ever is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairbench.backbones.base import load_backbone
from fairbench.core.method import Request
from fairbench.core.task import Prompt
from fairbench.datasets.base import get_dataset
from fairbench.diffusion.denoisers import Denoiser, conditioned, edited
from fairbench.diffusion.sampling import DDIMSampler
from fairbench.instruments.measuring import load_instruments
from fairbench.methods.parts.distribution_guidance import split
from fairbench.metrics.counting import wilson_interval


class Lending(DDIMSampler):
    """Keeps h of each step, or puts that of the image half a batch further on in its place."""

    kept: list[Tensor]
    lends = False
    share = 1.0
    asymmetric = False

    def branch(
        self,
        name: str,
        context: Tensor | None,
        requests: Sequence[Request],
        groups: Sequence[int | None],
    ) -> Denoiser:
        """Only the prompt's branch is edited, as distribution guidance does."""
        plain = super().branch(name, context, requests, groups)
        if name != "cond":
            return plain
        steps = iter(self.kept if self.lends else ())

        def edit(h: Tensor, t: int) -> Tensor:
            if not self.lends:
                self.kept.append(h.clone())
                return h
            given = torch.roll(next(steps), len(requests) // 2, 0)
            return (1 - self.share) * h + self.share * given

        return edited(plain, self.backbone, edit)

    def denoiser(
        self, requests: Sequence[Request], groups: Sequence[int | None]
    ) -> tuple[Denoiser, int]:
        """With the noise of the unedited prediction, if asked for."""
        steered, calls = super().denoiser(requests, groups)
        if not (self.lends and self.asymmetric):
            return steered, calls
        contexts = self.contexts(requests, groups)
        direction, more = self.joined(
            {name: conditioned(self.backbone, one) for name, one in contexts.items()}
        )
        return split(steered, direction), calls + more


def main() -> None:
    """Make pairs, read them and print a line an attribute."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", help="default: the data set's first")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--attributes", nargs="+", default=["gender", "race"])
    parser.add_argument("--share", type=float, default=1.0, help="of the donor's h in the mixture")
    parser.add_argument(
        "--asymmetric", action="store_true", help="as distribution guidance's asymmetric=true"
    )
    parser.add_argument("--guidance", type=float, help="default: the backbone's own")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    dataset = get_dataset("cartoonfaces")
    spec = dataset.backbone(chosen.backbone)
    backbone = load_backbone(
        spec.name, spec.folder, device=torch.device(chosen.device), dtype=torch.float32
    )
    config = spec.sampling
    if chosen.guidance is not None:
        config = replace(config, guidance=chosen.guidance)
    sampler = Lending(backbone, config)
    sampler.share, sampler.asymmetric = chosen.share, chosen.asymmetric
    prompt = Prompt("person", template="a photo of a {}") if backbone.conditional else Prompt("")
    judge = load_instruments(chosen.device, dataset.instruments()).judges[0]
    own: dict[str, list[NDArray[np.int64]]] = {name: [] for name in chosen.attributes}
    after = {name: list[NDArray[np.int64]]() for name in chosen.attributes}
    donors = {name: list[NDArray[np.int64]]() for name in chosen.attributes}
    for start in range(0, chosen.images, 64):
        size = min(64, chosen.images - start)
        requests = [Request(prompt, 0, start + i, 0) for i in range(size)]
        sampler.kept, sampler.lends = [], False
        before = judge(sampler(requests).images)
        sampler.lends = True
        read = judge(sampler(requests).images)
        for name in chosen.attributes:
            labels = before[name].argmax(1)
            own[name].append(labels)
            donors[name].append(np.roll(labels, size // 2))
            after[name].append(read[name].argmax(1))
    print(f"{'attribute':<14}{'pairs':>6}{'donor':>22}{'own':>22}{'third':>22}")
    for name in chosen.attributes:
        mine, lent, seen = map(np.concatenate, (own[name], donors[name], after[name]))
        differ = mine != lent
        counts = [int((seen == lent)[differ].sum()), int((seen == mine)[differ].sum())]
        counts.append(int(differ.sum()) - sum(counts))
        told = []
        for count in counts:
            low, high = wilson_interval(count, int(differ.sum()))
            told.append(f"{count / differ.sum():.2f} [{low:.2f}, {high:.2f}]")
        print(f"{name:<14}{differ.sum():>6}" + "".join(f"{one:>22}" for one in told))


if __name__ == "__main__":
    main()
