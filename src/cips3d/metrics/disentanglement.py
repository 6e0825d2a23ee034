"""Does each code do its own work: appearance the colours, shape the form (paper Section 3.2)?

A subject is shown with its own codes, x = x(z_s, z_a), with another appearance code,
x_a = x(z_s, z_a′), and with another shape code, x_s = x(z_s′, z_a), by the same camera. What an
image shows of it is read as attributes, vectors r_k. Those of an attribute change by

    A_k = E|r_k(x) − r_k(x_a)|² / u_k      and      S_k = E|r_k(x) − r_k(x_s)|² / u_k,

where E is the mean over subjects and u_k the variance of r_k over true subjects, so that attributes
with different units add up. The share of the change that is the appearance code's is
Σ_k A_k / Σ_k (A_k + S_k). (A_k and S_k estimate twice the total-effect indices of Sobol' 2001 by
the pairs of Jansen 1999.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cips3d.heads.network import COLORS, HeadNetwork
from cips3d.metrics.views import Images, Subjects, View

#: What is read of an image, by name.
Attributes = Mapping[str, Float[Tensor, "batch numbers"]]
Reader = Callable[[HeadNetwork, Images], Attributes]
#: Kinds that are a matter of shape.
_KINDS = ("hair_style", "hat", "bangs_side")
#: Depth beyond all heads for a camera at radius 1, world units (`cips3d.heads.dataset.FAR_DEPTH`).
_FAR = 1.12


@dataclass(frozen=True)
class Recombined:
    """The same subjects, each with a code of another one."""

    other_appearance: Subjects  # (z_s, z_a′)
    other_shape: Subjects  # (z_s′, z_a)


def colours(network: HeadNetwork, images: Images) -> Attributes:
    """Colours of skin, hair, cloth and background that the network reads, RGB in [0, 1]."""
    found = network(images).colors
    return {name: found[name] for name in COLORS}


def forms(network: HeadNetwork, images: Images) -> Attributes:
    """Hair style, hat and side of the bangs (probabilities), and relief, that the network reads.

    The relief is the height of the head over the plane behind it, world units; 0 beside it.
    """
    reading = network(images)
    relief = (reading.mask * (_FAR - reading.depth)).flatten(1)
    return {name: reading.kinds[name].softmax(dim=1) for name in _KINDS} | {"relief": relief}


@torch.no_grad()
def share_of_appearance(
    read: Reader, network: HeadNetwork, view: View, recombined: Recombined, truth: View
) -> float:
    """Share of the change of `read` attributes that is the appearance code's, in [0, 1].

    Σ_k A_k / Σ_k (A_k + S_k), see the module. 1: only the appearance code matters; 0: only the
    shape code; ½: both matter alike. NaN where nothing changes.

    Args:
        read: `colours`, for the appearance share, best 1; or `forms`, for the shape leak, best 0.
        view: the subjects with their own codes.
        truth: true subjects, which give the attributes their units.
    """
    own, true = read(network, view.out.image), read(network, truth.out.image)

    def change(subjects: Subjects) -> float:
        other = read(network, subjects.from_cameras(view.camera).out.image)
        return sum(
            float((own[k] - other[k]).square().sum(dim=1).mean() / variance.clamp(min=1e-8))
            for k, variance in units.items()
        )

    units = {k: x.var(dim=0, correction=0).sum().to(own[k]) for k, x in true.items()}
    by_appearance, by_shape = change(recombined.other_appearance), change(recombined.other_shape)
    total = by_appearance + by_shape
    return by_appearance / total if total > 0 else math.nan


def image_change(view: View, other: Subjects) -> float:
    """Mean absolute difference from the images of other codes by the same cameras, in [0, 2]."""
    return float((view.out.image - other.from_cameras(view.camera).out.image).abs().mean())
