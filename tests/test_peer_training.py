"""Training pi-GAN and the 2D CIPS: two steps of each, costs, presets, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cips3d
import tiny
from cips3d.configuration import with_settings
from cips3d.errors import UserError
from cips3d.heads import SyntheticHeads
from cips3d.models.discriminator import DiscriminatorConfig
from cips3d.models.registry import GENERATORS, build_generator
from cips3d.training.health import Watch
from cips3d.training.planning import in_mode, parameters, step_cost, visible_share
from cips3d.training.presets import PI_GAN_RATE, preset
from cips3d.training.recipe import Stage, TrainConfig
from cips3d.training.trainer import Trainer

PEERS = ("pi-gan", "cips-2d")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.pictures(tmp_path_factory.mktemp("data") / "pictures")


TELLING = {"discriminator": DiscriminatorConfig({4: 8, 8: 8}, pose_head=True)}


def run_config(architecture: Architecture, data: str = "heads", **changes: Any) -> TrainConfig:
    """Two steps of four pictures."""
    stage = {
        name: changes.pop(name) for name in tuple(changes) if name in Stage.__dataclass_fields__
    }
    stages = (
        Stage(8, **({"kimg": 0.008, "batch": 4, "auxiliary": architecture == "cips-3d"} | stage)),
    )
    generator = replace(tiny.GENERATOR, architecture=architecture)
    return tiny.config(data, **({"generator": generator, "stages": stages} | changes))


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("pi-gan", {"sample_kimg": 0.004}),
        (
            "pi-gan",
            {
                "transmittance_weight": 0.5,
                "share_fakes": True,
                "gradients": "checkpointed",
                "chunk": 30,
            },
        ),
        ("pi-gan", {"gradients": "partial", "gradient_rays": 40, "frozen": ("shape_mapping",)}),
        ("cips-2d", {"sample_kimg": 0.004}),
        ("cips-2d", {"share_fakes": True, "gradients": "checkpointed"}),
        ("cips-2d", {"gradients": "partial", "gradient_rays": 40, "frozen": ("embedding",)}),
    ],
)
def test_the_trainer_takes_two_steps(
    architecture: Architecture, changes: dict[str, Any], tmp_path: Path, data: str
) -> None:
    config = run_config(architecture, data, **changes)
    trainer = Trainer(config, tmp_path / "run")
    start = {name: p.clone() for name, p in trainer.networks.generator.named_parameters()}
    model = trainer.run()
    assert (trainer.counters.step, trainer.counters.skipped) == (2, 0)
    averaged = dict(trainer.networks.ema.named_parameters())
    for name, p in trainer.networks.generator.named_parameters():
        if name.startswith(config.stages[0].frozen):
            assert torch.equal(p, start[name])
        else:
            assert not torch.equal(p, start[name]) and not torch.equal(
                averaged[name], start[name]
            ), name
    assert type(cips3d.load(model)) is GENERATORS[architecture]
    assert Trainer(config, tmp_path / "run").counters.step == 2
    assert ("sample_kimg" in changes) == (tmp_path / "run/samples").exists()


def test_only_a_geometry_can_be_flat_or_mirrored() -> None:
    watch = Watch.of(SyntheticHeads(4, 8))
    of_geometry = {"non_flatness", "mirror_jump", "two_hypothesis_score"}
    for architecture, names in (
        ("pi-gan", {"diversity"} | of_geometry),
        ("cips-2d", {"diversity"}),
    ):
        generator = small(architecture, dtype=torch.float32)
        assert watch.figures(generator, generator.sampling).keys() == names


@pytest.mark.parametrize("architecture", BASELINES)
def test_costs(architecture: Architecture) -> None:
    generator = small(architecture)
    numbers = sum(p.numel() for p in generator.parameters())
    assert generator_cost(generator.config, 8).parameters == numbers
    config = run_config(architecture, precision="bf16")
    for mode in ("full", "partial", "checkpointed"):
        assert step_cost(config, in_mode(config.stages[0], mode), 4, 2**34).flops > 0
    assert visible_share(config) <= 1
    sparse = replace(generator.config, coarse_samples=3, fine_samples=0)
    assert (generator_cost(sparse, 8).flops < generator_cost(generator.config, 8).flops) is (
        architecture == "pi-gan"
    )


@pytest.mark.parametrize(
    ("architecture", "transmittance_weight"), [("pi-gan", 0.5), ("cips-2d", 0.0)]
)
def test_presets_differ_from_heads_32_by_the_generator(
    architecture: Architecture, transmittance_weight: float
) -> None:
    ours, theirs = preset("heads-32"), preset(f"heads-32-{architecture}")
    assert theirs.generator.architecture == architecture
    assert parameters(theirs)["generator"] == pytest.approx(parameters(ours)["generator"], rel=0.03)
    rate = {"generator_lr": PI_GAN_RATE} if architecture == "pi-gan" else {}
    stages = tuple(replace(stage, auxiliary=False, **rate) for stage in ours.stages)
    assert theirs.pose_weight == (
        0.0 if architecture == "cips-2d" else ours.pose_weight
    )  # cips-2d shows no pose
    weights = {"transmittance_weight": ours.transmittance_weight, "pose_weight": ours.pose_weight}
    same = replace(theirs, generator=ours.generator, discriminator=ours.discriminator, **weights)
    assert replace(theirs.discriminator, pose_head=True) == ours.discriminator
    assert (
        same == replace(ours, stages=stages) and theirs.transmittance_weight == transmittance_weight
    )


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("architecture", "changes", "words"),
    [
        ("pi-gan", {"auxiliary": True}, "pi-gan has no auxiliary picture; give auxiliary=false"),
        ("cips-2d", {"auxiliary": True}, "cips-2d has no auxiliary picture; give auxiliary=false"),
        (
            "cips-2d",
            {"transmittance_weight": 0.5},
            "cips-2d has no density; give transmittance_weight=0",
        ),
        ("cips-2d", {"cameras": "learned"}, "same from every camera; give cameras=prior"),
        (
            "cips-2d",
            {"pose_weight": 15.0} | TELLING,
            "same from every camera; give cameras=prior and pose_weight=0",
        ),
        ("pi-gan", {"frozen": ("inr", "nerf")}, "frozen names inr, which pi-gan does not have"),
        ("cips-2d", {"frozen": ("nerf",)}, "its parts are appearance_mapping, embedding, inr"),
        (
            "cips-3d",
            {"frozen": ("embedding",)},
            "frozen names embedding, which cips-3d does not have",
        ),
        ("pi-gan", {"frozen": ("shape_mapping", "nerf", "background")}, "freezes all"),
        ("cips-2d", {"frozen": ("appearance_mapping", "embedding", "inr")}, "freezes all"),
        (
            "cips-3d",
            {"frozen": ("shape_mapping", "appearance_mapping", "nerf", "inr", "background")},
            "freezes all",
        ),
    ],
)
def test_runs_that_make_no_sense_are_refused(
    architecture: Architecture, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        run_config(architecture, **changes)
    assert "\n" not in str(error.value)


def test_a_stage_needs_something_that_its_pictures_can_train(tmp_path: Path, data: str) -> None:
    """The auxiliary head is not enough, and a background that there is not neither; one that there is, or the cameras, is."""
    frozen = ("shape_mapping", "appearance_mapping", "nerf", "inr")
    endless = replace(tiny.GENERATOR, background="endless")
    with pytest.raises(
        UserError, match="leave one of shape_mapping, appearance_mapping, nerf, inr to train"
    ):
        run_config("cips-3d", frozen=frozen, generator=endless)
    for name, changes in (("a", {}), ("b", {"generator": endless, "cameras": "learned"})):
        trainer = Trainer(
            run_config("cips-3d", data, frozen=frozen, auxiliary=False, **changes), tmp_path / name
        )
        trained = trainer.networks.poses or trainer.networks.generator.background
        assert trained is not None
        start = torch.cat([p.flatten() for p in trained.parameters()])
        trainer.run()
        assert not torch.equal(torch.cat([p.flatten() for p in trained.parameters()]), start)


def test_settings_turn_a_preset_into_another_architecture() -> None:
    changes = ["generator.architecture=pi-gan", "stages.*.auxiliary=false"]
    assert with_settings(preset("heads-32"), changes, "--set").generator.architecture == "pi-gan"
    with pytest.raises(UserError, match="give auxiliary=false"):
        with_settings(preset("heads-32"), changes[:1], "--set")
