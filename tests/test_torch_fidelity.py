"""Our FID and KID against torch-fidelity, with random weights: `make test-fidelity`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image

from cips3d import cli
from cips3d.data import ImageDataset
from cips3d.heads import SyntheticHeads
from cips3d.metrics.features import FeatureNetwork, feature_network
from cips3d.metrics.fidelity import distance

torch_fidelity = pytest.importorskip(
    "torch_fidelity", reason="the extra cips3d[fidelity] is not installed"
)
COUNT = 48


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose activations neither vanish nor explode."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    torch.manual_seed(0)
    kind = inception.FeatureExtractorInceptionV3
    with (
        mock.patch.object(inception, "load_state_dict_from_url"),
        mock.patch.object(kind, "load_state_dict"),
    ):
        module = kind("inception-v3-compat", ["2048"])
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.weight[0].numel()))
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(module.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of heads, natural and cartoon."""
    found = []
    for style in ("natural", "cartoon"):
        folder = tmp_path_factory.mktemp(style)
        for i, image in enumerate(
            SyntheticHeads(COUNT, 64, style=style).__getitems__(range(COUNT))
        ):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03d}.png")
        found.append(folder)
    return found[0], found[1]


def features(network: FeatureNetwork, folder: Path) -> torch.Tensor:
    dataset = ImageDataset(folder, 64)
    return network.extract(torch.stack([dataset[i] for i in range(len(dataset))]))


def test_fid_and_kid_are_torch_fidelitys(weights: Path, folders: tuple[Path, Path]) -> None:
    theirs = torch_fidelity.calculate_metrics(
        input1=str(folders[0]), input2=str(folders[1]), cuda=False, fid=True, kid=True,
        kid_subset_size=COUNT, kid_subsets=2,
        feature_extractor_weights_path=str(weights), verbose=False, cache=False,
    )  # fmt: skip
    network = feature_network("inception", weights)
    real, fake = (features(network, folder) for folder in folders)
    assert distance(real, fake) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert distance(real, fake, kernel=True) == pytest.approx(
        theirs["kernel_inception_distance_mean"], rel=1e-3
    )


def test_the_farther_colours_are_shifted_the_greater_are_fid_and_kid(
    weights: Path, folders: tuple[Path, Path]
) -> None:
    network, dataset = feature_network("inception", weights), ImageDataset(folders[0], 64)
    images = torch.stack([dataset[i] for i in range(COUNT)])

    def redder(by: int) -> torch.Tensor:
        return (
            images.int().add(torch.tensor([by, 0, 0])[:, None, None]).clamp(0, 255).to(torch.uint8)
        )

    real, *shifted = (network.extract(redder(by)) for by in (0, 0, 40, 120))
    for kernel in (False, True):
        same, near, far = (distance(real, features, kernel=kernel) for features in shifted)
        assert same < near < far and far > 2 * near, (same, near, far)


def test_eval_takes_the_weights_from_a_file(
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CIPS3D_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "found.json"
    options = [
        "--metrics",
        "fid8",
        "kid8",
        "--count",
        "2",
        "--device",
        "cpu",
        "--inception-weights",
        str(weights),
    ]
    cli.main(["eval", "heads", *options, "--json-file", str(out)])
    values = json.loads(out.read_text())["values"]
    assert values["fid8"] > 0 and math.isfinite(values["kid8"])
    assert "fid8" in capsys.readouterr().out
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["eval", "heads", *options[:-1], str(tmp_path / "other.pth")])
    assert "not the weights of torch-fidelity's Inception-v3" in capsys.readouterr().err
