"""The model that comes with the package: small, loadable by name, and as good as its table says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import cips3d
from cips3d import pretrained
from cips3d.heads import SyntheticHeads
from cips3d.heads.network import load_head_network
from cips3d.metrics import consistency
from cips3d.metrics.symmetry import two_hypothesis_score
from cips3d.metrics.views import Subjects, View
from cips3d.models.protocol import ImageGenerator, RayGenerator

COUNT = 32
#: Measured on 256 subjects; 32 give slightly different values.
TABLE = json.loads(
    (Path(__file__).parents[1] / "experiments" / "results" / "bundled.json").read_text()
)["values"]["values"]


@pytest.fixture(scope="module")
def heads() -> Subjects:
    generator = cips3d.load("heads")
    return Subjects.generated(
        generator, generator.sample_latents(COUNT, 1), generator.config.resolution
    )


@pytest.fixture(scope="module")
def view(heads: Subjects) -> View:
    return heads.from_prior(1)


def test_its_name_wins_over_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heads").mkdir()
    monkeypatch.chdir(tmp_path)
    generator = cips3d.load("heads")
    assert generator.config.resolution == 64
    for other in ("./heads", Path("heads")):
        for load in (cips3d.load, cips3d.Generator.from_pretrained):
            with pytest.raises(cips3d.UserError):
                load(other)
    for kind in (cips3d.Generator, ImageGenerator, RayGenerator):
        again = kind.from_pretrained("heads")
        assert type(again) is cips3d.Generator and again.config == generator.config
        for name, value in generator.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name
    files = list((Path(pretrained.__file__).parent / "bundled").glob("*.safetensors"))
    assert len(files) == 1  # with its discriminators
    assert sum(path.stat().st_size for path in files) < 4 * 2**20
    found = pretrained.load_discriminators("heads")
    assert found is not None and set(found) == {"main", "aux"}


def test_it_shows_heads_from_where_it_is_asked_to(heads: Subjects, view: View) -> None:
    network = load_head_network()
    assert consistency.pose_error(view, network) < min(5, 1.5 * TABLE["pose_error"])
    within, between = consistency.identity_consistency(heads, network)
    assert within > max(0.7, TABLE["identity_consistency"] - 0.1) and between < within - 0.5
    _, alike = consistency.depth_error(view, network)
    assert alike > max(0.8, TABLE["depth_correlation"] - 0.07)
    assert two_hypothesis_score(heads) < 0.05


def test_its_heads_have_the_depth_of_heads(view: View) -> None:
    truth = Subjects.true(SyntheticHeads().truth(), range(COUNT), 64).from_prior(1)
    spreads = [torch.std(v.out.depth[v.solid]) for v in (view, truth)]
    assert 0.6 < float(spreads[0] / spreads[1]) < 1.6
    assert consistency.depth_distance(view, truth) < min(0.015, 1.3 * TABLE["depth_distance"])
