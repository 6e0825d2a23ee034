"""Cameras, rays and the camera prior (paper Sections 3.1 and 4.1).

World: right-handed, y up, subject at the origin. A camera on a sphere looks at the origin. At
yaw = pitch = 0 it is frontal, at +z; its position is
r·(sin yaw·cos pitch, sin pitch, cos yaw·cos pitch). Angles are radians. Fields of view are full
angles in degrees across the image's height. Camera axes are OpenGL's: x right, y up, -z forward.
"""

from cips3d.camera.cameras import WHOLE, Camera, Window
from cips3d.camera.labels import is_centred, is_rigid, mirrored_label
from cips3d.camera.poses import PoseDistribution, below_pole
from cips3d.camera.rays import Rays

__all__ = [
    "WHOLE",
    "Camera",
    "PoseDistribution",
    "Rays",
    "Window",
    "below_pole",
    "is_centred",
    "is_rigid",
    "mirrored_label",
]
