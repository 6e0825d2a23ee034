"""The 25-number camera labels of tri-plane GANs: 16 of the pose, 9 of the intrinsics."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Label = Float[Tensor, "batch 25"]


def intrinsics(focal: Float[Tensor, " batch"]) -> Float[Tensor, "batch 9"]:
    """Normalised intrinsics of centred pinhole cameras, row by row."""
    matrix = focal.new_tensor([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 1]]).repeat(len(focal), 1, 1)
    matrix[:, 0, 0] = matrix[:, 1, 1] = focal
    return matrix.flatten(1)


def is_centred(label: Label) -> Bool[Tensor, " batch"]:
    """Whether each label's intrinsics are those of a pinhole camera with a centred axis."""
    return torch.isclose(label[:, 16:], intrinsics(label[:, 20]), atol=1e-5).all(dim=1)


def is_rigid(label: Label) -> Bool[Tensor, " batch"]:
    """Whether each label's pose is a rotation and a position."""
    pose = label[:, :16].view(-1, 4, 4).cpu()  # small determinants are no work for an accelerator
    rotation = pose[:, :3, :3]
    # not a matrix product, which autocast would compute in 16 bits
    products = (rotation[:, :, None] * rotation[:, None]).sum(dim=-1)
    identity = torch.eye(3, dtype=pose.dtype)
    orthogonal = torch.isclose(products, identity, atol=1e-3).flatten(1).all(dim=1)
    homogeneous = torch.isclose(pose[:, 3], pose.new_tensor([0.0, 0.0, 0.0, 1.0])).all(dim=1)
    finite = pose.isfinite().flatten(1).all(dim=1)
    return (orthogonal & homogeneous & (torch.det(rotation) > 0) & finite).to(label.device)


def mirrored_label(label: Label) -> Label:
    """Labels of the mirrored images: yaw, roll and the principal point's x change sides."""
    signs = label.new_tensor([-1.0, 1.0, 1.0, 1.0])
    pose = label[:, :16].view(-1, 4, 4) * torch.outer(signs, signs)
    intrinsics = label[:, 16:].clone()
    intrinsics[:, 2] = 1 - intrinsics[:, 2]
    return torch.cat([pose.flatten(1), intrinsics], dim=-1)
