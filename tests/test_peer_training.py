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
from cips3d.training.health import HealthMonitor
from cips3d.training.loop import train
from cips3d.training.objective import Opacity, Pose, Transmittance
from cips3d.training.planning import in_mode, parameters, step_cost, visible_share
from cips3d.training.presets import PI_GAN_RATE, preset, without_code_terms
from cips3d.training.recipe import Stage, TrainConfig
from cips3d.training.run import Run

PEERS = ("pi-gan", "cips-2d")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.images(tmp_path_factory.mktemp("data") / "images")


POSE_HEAD = {"discriminator": DiscriminatorConfig({4: 8, 8: 8}, pose_head=True)}


def run_config(architecture: str, data: str = "heads", **changes: Any) -> TrainConfig:
    """Two steps of four images; changes of the stage, of the objective or of the run."""
    base = tiny.config(data)
    stage = {"kimg": 0.008, "batch": 4, "auxiliary": architecture == "cips-3d"}
    stage |= {name: changes.pop(name) for name in vars(base.stages[0]) if name in changes}
    terms = {name: changes.pop(name) for name in vars(base.objective) if name in changes}
    return replace(
        base,
        **{
            "generator": tiny.generator(architecture=architecture),
            "stages": (Stage(8, **stage),),
            "objective": replace(base.objective, **terms),
            **changes,
        },
    )


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("pi-gan", {"sample_kimg": 0.004}),
        (
            "pi-gan",
            {
                "transmittance": Transmittance(0.5),
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
def test_two_steps_train_all_but_what_is_frozen(
    architecture: str, changes: dict[str, Any], tmp_path: Path, data: str
) -> None:
    config = run_config(architecture, data, **changes)
    run = Run(config, tmp_path / "run")
    start = {name: p.clone() for name, p in run.networks.generator.named_parameters()}
    model = train(run)
    assert (run.counters.step, run.counters.skipped) == (2, 0)
    averaged = dict(run.networks.ema.named_parameters())
    for name, p in run.networks.generator.named_parameters():
        if name.startswith(config.stages[0].frozen):
            assert torch.equal(p, start[name])
        else:
            assert not torch.equal(p, start[name]), name
            assert not torch.equal(averaged[name], start[name]), name
    assert type(cips3d.load(model)) is GENERATORS[architecture]
    assert Run(config, tmp_path / "run").counters.step == 2
    assert ("sample_kimg" in changes) == (tmp_path / "run/samples").exists()


def test_only_a_geometry_can_be_flat_or_mirrored() -> None:
    monitor = HealthMonitor.of_dataset(SyntheticHeads(4, 8))
    of_geometry = {"non_flatness", "mirror_jump", "two_hypothesis_score"}
    for architecture, names in (
        ("pi-gan", {"diversity"} | of_geometry),
        ("cips-2d", {"diversity"}),
    ):
        generator = build_generator(tiny.generator(architecture=architecture))
        assert monitor.figures(generator, generator.sampling).keys() == names


@pytest.mark.parametrize("architecture", PEERS)
def test_costs_of_a_step(architecture: str) -> None:
    config = run_config(architecture, precision="bf16")
    for mode in ("full", "partial", "checkpointed"):
        assert step_cost(config, in_mode(config.stages[0], mode), 4, 2**34).flops > 0
    assert visible_share(config) <= 1


@pytest.mark.parametrize(
    ("architecture", "transmittance"), [("pi-gan", Transmittance(0.5, 0.5)), ("cips-2d", None)]
)
def test_presets_differ_from_heads_32_by_the_generator(
    architecture: str, transmittance: Transmittance | None
) -> None:
    ours, theirs = without_code_terms(preset("heads-32")), preset(f"heads-32-{architecture}")
    assert theirs.generator.networks.architecture == architecture
    assert replace(theirs.generator, networks=ours.generator.networks) == ours.generator
    assert parameters(theirs)["generator"] == pytest.approx(parameters(ours)["generator"], rel=0.03)
    rate = {"generator_lr": PI_GAN_RATE} if architecture == "pi-gan" else {}
    stages = tuple(replace(stage, auxiliary=False, **rate) for stage in ours.stages)
    # cips-2d shows no pose
    assert theirs.objective.pose == (None if architecture == "cips-2d" else ours.objective.pose)
    assert theirs.objective.transmittance == transmittance
    terms = {"transmittance": ours.objective.transmittance, "pose": ours.objective.pose}
    assert replace(theirs.objective, **terms) == ours.objective
    assert theirs.stages == stages
    same = {name: getattr(ours, name) for name in ("generator", "objective", "stages")}
    for name in ("discriminator", "aux_discriminator"):  # pose heads apart
        assert replace(getattr(theirs, name), pose_head=True) == getattr(ours, name)
        same[name] = getattr(ours, name)
    assert replace(theirs, **same) == ours


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("architecture", "changes", "words"),
    [
        ("pi-gan", {"auxiliary": True}, "pi-gan has no auxiliary image; set auxiliary=false"),
        ("cips-2d", {"auxiliary": True}, "cips-2d has no auxiliary image; set auxiliary=false"),
        (
            "cips-2d",
            {"transmittance": Transmittance(0.5)},
            "cips-2d has no density; set objective.transmittance=null",
        ),
        ("cips-2d", {"opacity": Opacity()}, "no density; set objective.opacity=null"),
        ("cips-2d", {"cameras": "learned"}, "same from every camera; set cameras=prior"),
        (
            "cips-2d",
            {"pose": Pose(15.0)} | POSE_HEAD,
            "same from every camera; set cameras=prior and objective.pose=null",
        ),
        ("pi-gan", {"frozen": ("inr", "nerf")}, "frozen names inr, which pi-gan does not have"),
        ("cips-2d", {"frozen": ("nerf",)}, "its networks are appearance_mapping, embedding, inr"),
        (
            "cips-3d",
            {"frozen": ("embedding",)},
            "frozen names embedding, which cips-3d does not have",
        ),
        ("pi-gan", {"frozen": ("shape_mapping", "nerf", "background")}, "freezes everything"),
        ("cips-2d", {"frozen": ("appearance_mapping", "embedding", "inr")}, "freezes everything"),
        (
            "cips-3d",
            {"frozen": ("shape_mapping", "appearance_mapping", "nerf", "inr", "background")},
            "freezes everything",
        ),
    ],
)
def test_runs_that_make_no_sense_are_refused(
    architecture: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        run_config(architecture, **changes)
    assert "\n" not in str(error.value)


def test_a_stage_needs_something_that_its_images_can_train(tmp_path: Path, data: str) -> None:
    """Not the auxiliary head, nor a background that there is not; a real one, or the cameras."""
    frozen = ("shape_mapping", "appearance_mapping", "nerf", "inr")
    endless, field = (tiny.generator(background=kind) for kind in ("endless", "field"))
    with pytest.raises(
        UserError, match="leave one of shape_mapping, appearance_mapping, nerf, inr to train"
    ):
        run_config("cips-3d", frozen=frozen, generator=endless)
    for name, changes in (
        ("a", {}),
        ("b", {"generator": endless, "cameras": "learned"}),
        ("c", {"generator": field}),
    ):
        config = run_config("cips-3d", data, frozen=frozen, auxiliary=False, **changes)
        run = Run(config, tmp_path / name)
        generator = run.networks.generator
        trained = run.networks.poses or generator.background or generator.surroundings
        assert trained is not None
        start = torch.cat([p.flatten() for p in trained.parameters()])
        train(run)
        assert not torch.equal(torch.cat([p.flatten() for p in trained.parameters()]), start)


def test_settings_turn_a_preset_into_another_architecture() -> None:
    changes = [
        'generator.networks={"architecture": "pi-gan"}',
        "objective.appearance_code=null",
        "stages.*.auxiliary=false",
    ]
    other = with_settings(preset("heads-32"), changes, "--set")
    assert other.generator.networks.architecture == "pi-gan"
    with pytest.raises(UserError, match="set auxiliary=false"):
        with_settings(preset("heads-32"), changes[:2], "--set")
    with pytest.raises(UserError, match="pi-gan's appearance code z has 0; give at most that, or"):
        with_settings(preset("heads-32"), changes[::2], "--set")
