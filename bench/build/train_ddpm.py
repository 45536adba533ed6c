"""Train ``cartoonfaces-ddpm``: ``python -m fairbench.build.train_ddpm OUT``.

A tiny but real unconditional pixel model: UNet2DModel and DDIM schedule in diffusers' folder
format, trained on the same biased images as ``cartoonfaces-sd``. A checkpoint is written every
minute; the same command resumes. With ``--start FOLDER`` a pipeline made before is trained
further.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline
from torch import Tensor

from fairbench.backbones.parts.fresh import SIZES, pixel_schedule, pixel_unet
from fairbench.build.training import (
    BATCH,
    SEED,
    TrainingRun,
    earlier_stages,
    training_set,
    velocity_loss,
    write_facts,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the pipeline; OUT.work: checkpoints")
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--start", type=Path, help="pipeline folder to train further")
    arguments = parser.parse_args()
    work = arguments.out.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    images, _ = training_set()
    torch.manual_seed(SEED)
    unet = pixel_unet(SIZES["tiny"], 32).to(memory_format=torch.channels_last)
    schedule = pixel_schedule()
    command = f"fairbench.build.train_ddpm OUT --steps {arguments.steps}"
    lr = 1e-3
    if arguments.start is not None:
        unet.load_state_dict(DDIMPipeline.from_pretrained(arguments.start).unet.state_dict())
        command, lr = f"{command} --start FOLDER", 6e-4
    seed = SEED + len(earlier_stages(arguments.start))  # other draws than in the stages before
    run = TrainingRun(work / "unet.pt", unet, arguments.steps, lr=lr, decay=0.9995, seed=seed)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            predicted: Tensor = unet(x.to(memory_format=torch.channels_last), t).sample
        return predicted.float()

    def loss_of(rng: np.random.Generator) -> Tensor:
        clean = images[rng.choice(len(images), BATCH, replace=False)]
        return velocity_loss(velocity, clean, schedule, rng)

    unet.train()
    run.train(loss_of)
    unet.eval().to(memory_format=torch.contiguous_format)
    DDIMPipeline(unet, schedule).save_pretrained(arguments.out, safe_serialization=True)
    facts = {"clipping": "consistent"}  # noise and clipped clean image go on to add up
    write_facts(arguments.out, command, run.elapsed, facts, arguments.start)


if __name__ == "__main__":
    main()
