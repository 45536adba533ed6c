"""Importance reweighting by the density ratio of clean images, the same at every noise level.

Source: IW-DSM of Kim et al., arXiv 2403.01189, after Choi et al., Fair generative modeling via
weak supervision, arXiv 1910.12008.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from fairbench.core.method import MethodCard, Preparation, Sampler, TrainingData
from fairbench.core.task import Task
from fairbench.methods.parts.reweighted import RATIO_FROM_SCRATCH, Reweighted
from fairbench.methods.parts.training_parameters import FINE_TUNED

if TYPE_CHECKING:
    from fairbench.diffusion.backbone import Backbone


@dataclass(frozen=True)
class ImportanceReweighting(Reweighted):
    """Denoising on biased and reference images, each weighted by how much rarer it was made.

    The weight depends on the clean image, which the network doesn't see, and so it moves the
    optimum; a weight that depends on the noised image alone wouldn't.
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="iw",
        title="density ratio of clean reference to clean biased images as a weight",
        arxiv="1910.12008",
        family="training",
        needs=frozenset({"predictions", "training"}),
        supervision=frozenset({"reference-set"}),
        reference_images=800,
        role="control",
        ranked=False,
        uses_target=False,
        trains=True,
        training_set="biased",
        deviations=(
            "A diffusion model instead of the paper's GAN, as in IW-DSM of arXiv 2403.01189.",
            FINE_TUNED,
            "The ratio network is chosen by its cross-entropy on held-out images.",
        ),
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "steps": 2,
            "batch": 4,
            "learning_rate": 0.05,
            "ratio_steps": 2,
            "ratio_batch": 4,
            "ratio_width": 8,
        }
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"from_scratch": RATIO_FROM_SCRATCH}
    )

    def prepare(
        self, task: Task, backbone: Backbone, data: TrainingData, preparation: Preparation
    ) -> Sampler:
        """Train the ratio, weigh the images, then train the network, or load both."""
        from fairbench.methods.parts import tiw as _tiw

        return _tiw.prepare_clean(self, backbone, data, preparation)


METHOD = ImportanceReweighting
