"""`cips3d finetune`: transfers a trained model to another set of images (paper Section 4.4)."""

from __future__ import annotations

import os
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from cips3d.cli.options import Data, Derived, Limited, Model, Preset, RunOptions, Seed, Share
from cips3d.errors import UserError


def finetune(
    model: Model,
    run_dir: Path,
    /,
    run: OmitArgPrefixes[RunOptions],
    data: Data,
    kimg: Limited = 30.0,
    augment: Derived[Share] = None,
    freeze_d: int = 0,
    preset: Derived[Preset] = None,
    seed: Seed = 0,
) -> None:
    """Transfer a model to another set of images.

    A few hundred images are enough. The radiance field and the shape mapping are frozen, so shape
    and pose stay bit-exact; the implicit network, the appearance mapping and the discriminators
    train. The result can be blended with the original (`cips3d blend`). `cips3d train RUN-DIR`
    resumes an interrupted run.

    Args:
        run_dir: New folder for the run, laid out as by `cips3d train`.
        data: Folder or zip of the new images, or "heads-cartoon".
        kimg: Length in thousands of real images shown.
        augment: Probability of DiffAugment, 0 to 1. Default: adaptive (StyleGAN2-ADA).
        freeze_d: Number of discriminator blocks to freeze, from the image on (FreezeD); needs a
            model with discriminators.
        preset: Preset for learning rates and discriminators. Default: the one with the model's
            networks.
        seed: Seed of all random numbers.

    Examples:
        cips3d finetune heads runs/cartoon --data heads-cartoon
        cips3d finetune heads runs/drawings --data drawings.zip --kimg 10 --augment 0.5
    """
    # on other processes, the first one may have written it already
    if os.environ.get("RANK", "0") == "0" and (run_dir / "config.json").exists():
        raise UserError(
            f"{run_dir}: already contains a run; resume it with cips3d train {run_dir}, "
            "or give another folder"
        )

    from dataclasses import replace

    from cips3d import pretrained
    from cips3d.cli.running import print_outcome, train_here
    from cips3d.configuration import with_settings
    from cips3d.training.presets import transfer

    generator = pretrained.load(model)
    discriminators = pretrained.load_discriminators(model)
    if freeze_d and discriminators is None:
        raise UserError(
            f"--freeze-d: {model} has no discriminators, so new ones must train; leave it out"
        )
    config = transfer(generator.config, model, data, discriminators, kimg, preset)
    (stage,) = config.stages
    stage = replace(stage, batch=run.batch or stage.batch, augment=augment or 0.0)
    config = replace(
        config,
        stages=(stage,),
        seed=seed,
        frozen_discriminator_blocks=freeze_d,
        augment_target=config.augment_target if augment is None else None,
    )
    config = with_settings(config, run.set, "--set")
    print_outcome(train_here(config, run_dir, run.processes), run_dir)
