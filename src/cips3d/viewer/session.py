"""One client of the viewer: its camera, and the image or mesh that it sees."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import viser

from cips3d.camera import Camera
from cips3d.editing.subject import Subject
from cips3d.export.media import to_uint8
from cips3d.export.meshes import extract_mesh, glb
from cips3d.models.protocol import RayGenerator
from cips3d.models.types import RenderOutput, Sampling, Styles
from cips3d.viewer import controls as labels
from cips3d.viewer.canvas import Canvas
from cips3d.viewer.controls import Callback, Controls
from cips3d.viewer.limits import PoseLimits
from cips3d.viewer.photos import PhotoInversion
from cips3d.viewer.rendering import (
    RenderSpeed,
    finer_sides,
    on_canvas,
    pixels_of,
    preview_sampling,
    preview_side,
    strips,
)
from cips3d.viewer.requests import (
    LARGEST_SEED,
    Choice,
    Pose,
    View,
    camera_from_viser,
    framing_camera,
    front_camera,
    keyframe,
    prior_cameras,
    view_from,
)
from cips3d.viewer.saving import Saver
from cips3d.viewer.subject_cache import Subjects
from cips3d.viewer.worker import Steps, Workers, run_all

#: Seconds without movement before an image is refined, and without a change before a mesh is made.
STILL_SECONDS, MESH_STILL_SECONDS = 0.15, 0.3
#: Grey level around an image, that of the page behind a mesh.
BACKGROUND = 255
#: Cells along each side of the meshes that are shown, one after the other.
_MESH_CELLS = (48, 128)
#: Where a mesh and the cameras around it are seen from: yaw and pitch (degrees), distance (in
#: the prior's), field of view (degrees).
_OVERVIEW = (60.0, 20.0, 1.5, 40.0)
#: No truncation, for photos' subjects.
_FULL_PSI = {"psi_shape": 1.0, "psi_appearance": 1.0}
#: Side of the images in the cameras' frusta, pixels.
_FRUSTUM_SIDE = 96


class Session:
    """One client: its controls, its camera, and the images or the mesh that it sees.

    viser's threads run the callbacks, the workers' threads run the steps.

    Args:
        client: handle of the client.
        subjects: the model's subjects, shared by all clients.
        workers: threads that all clients share.
        speed: rendering speed, shared by all clients.
        subject: first subject, instead of that of the first seed.

    Attributes:
        controls: the client's control panel.
        pose: the client's camera.
        coarse_side: shorter side of the last coarse image, pixels.
    """

    def __init__(
        self,
        client: viser.ClientHandle,
        subjects: Subjects,
        workers: Workers,
        speed: RenderSpeed,
        subject: Subject | None = None,
    ) -> None:
        self._client, self._subjects, self._workers, self._speed = client, subjects, workers, speed
        self._config = subjects.generator.config
        self._limits = PoseLimits.of(self._config.poses)
        self._canvas = Canvas(client)
        self._saver = Saver(client, self._canvas, subjects, workers, speed)
        self._photos = PhotoInversion(self._canvas, subjects, self._show_inversion)
        self._meshed: Choice | None = None
        self._mesh_radius = self._config.networks.extent
        self._is_framed, self._switches = False, 0
        self._was_within = False
        self.coarse_side = 0
        self._keyframes: list[dict[str, Any]] = []
        self._inversion: int | None = None
        self._shows_inversion, self._other_psi = False, dict(_FULL_PSI)
        self.pose = self._canvas.pose
        self.controls = Controls(client.gui, subjects.generator, subjects.other is not None)
        self._connect()
        self._rein_in()
        if subject is None:
            self._request()
        else:
            self._show_inversion(subjects.generator, subject.styles, subject.camera)

    def close(self) -> None:
        """Stops all work for the client."""
        self._canvas.close()
        self._workers.forget(self._id)
        if self._inversion is not None:
            self._subjects.remove(self._inversion)

    @property
    def _id(self) -> int:
        return self._client.client_id

    # ---------------------------------------------------------------- callbacks
    def _connect(self) -> None:
        """Registers the callbacks."""
        controls, callback = self.controls, self._callback

        @self._client.camera.on_update
        async def _(_: viser.CameraHandle) -> None:
            self._move(self._canvas.pose)

        controls.on_change(callback(self._request))
        controls.on_seed(callback(self._leave_inversion))
        controls.show_inversion.on_update(callback(self._change_psi))
        controls.mode.on_update(callback(self._change_mode))
        controls.fov.on_update(callback(self._change_fov))
        controls.limit.on_update(callback(self._change_limit))
        controls.show_cameras.on_update(callback(self._change_cameras))
        for group, actions in (
            (
                controls.actions,
                {labels.RANDOM: self._draw_subject, labels.RESET: self._reset_view},
            ),
            (
                controls.save,
                {
                    labels.SAVE_IMAGE: self._save_image,
                    labels.SAVE_MESH: lambda: self._with_view(self._saver.mesh),
                    labels.SAVE_SUBJECT: lambda: self._with_view(self._saver.subject),
                },
            ),
            (
                controls.path,
                {
                    labels.ADD_VIEW: lambda: self._with_view(self._add_keyframe),
                    labels.SAVE_PATH: lambda: self._saver.path(self._keyframes),
                    labels.CLEAR_PATH: lambda: self._set_path([]),
                },
            ),
        ):
            group.on_click(self._button_callback(group, actions))

        @controls.upload.on_upload
        def _(_: viser.GuiEvent) -> None:  # not in the event loop: decoding takes time
            with self._canvas.errors_shown():
                upload = controls.upload.value
                steps = self._photos.steps(upload.name, upload.content)
                self._workers.inversions.submit((self._id, "photo"), self._canvas.guarded(steps))

    def _callback(self, action: Callable[[], None]) -> Callback:
        """A callback that shows errors. It runs in the event loop, in order with movements."""

        async def callback(_: viser.GuiEvent) -> None:
            with self._canvas.errors_shown():
                action()

        return callback

    def _button_callback(
        self, group: viser.GuiButtonGroupHandle, actions: dict[str, Callable[[], None]]
    ) -> Callback:
        # a client may send any label
        return self._callback(lambda: actions.get(group.value, lambda: None)())

    # ---------------------------------------------------------------- images
    def _view(self) -> View | None:
        shown = self._inversion if self.controls.show_inversion.value else None
        values = {**self.controls.values(), "inversion": shown}
        limits = self._limits if self.controls.limit.value else None
        return view_from(values, self.pose, self._subjects.generator, limits)

    def _with_view(self, action: Callable[[View], None]) -> None:
        view = self._view()
        if view is not None:
            action(view)

    def _request(self) -> None:
        """Requests a new image or mesh."""
        if self._canvas.has_mesh:
            steps = self._canvas.guarded(self._mesh_steps())
            self._workers.meshes.submit((self._id, "mesh"), steps, MESH_STILL_SECONDS)
        else:
            steps = self._canvas.guarded(self._image_steps())
            self._workers.images.submit((self._id, "image"), steps)

    def _image_steps(self) -> Steps[None]:
        """A coarse image of the current view, then finer ones once the camera rests."""
        began = time.monotonic()
        view = self._view()
        if view is None:
            return
        generator, styles = self._subjects.find(view.choice)
        side = self.coarse_side = preview_side(view, self._speed, self.coarse_side)
        # in one step: if it could be interrupted, a camera that never rests would see nothing
        out = run_all(self._strips(generator, styles, view, side, preview_sampling(view.sampling)))
        self._canvas.show_image(on_canvas(pixels_of(out, view.mode), view, BACKGROUND), "jpeg")
        yield max(0.0, began + STILL_SECONDS - time.monotonic())
        began = time.monotonic()
        for finer in finer_sides(view.side, side):
            out = yield from self._strips(generator, styles, view, finer, view.sampling)
            self._canvas.show_image(on_canvas(pixels_of(out, view.mode), view, BACKGROUND), "png")
        height, width = view.size(view.side)
        samples = f"{view.sampling.coarse} + {view.sampling.fine} samples"
        self._show_status(f"{width}×{height}, {samples}, {time.monotonic() - began:.2g} s")

    def _strips(
        self, generator: RayGenerator, styles: Styles, view: View, side: int, sampling: Sampling
    ) -> Steps[RenderOutput]:
        size = view.size(side)
        return strips(generator, styles, view.rendered_camera, size, sampling, self._speed)

    def _show_status(self, text: str) -> None:
        if not self._canvas.closed:
            self.controls.status.content = text

    # ---------------------------------------------------------------- mesh and cameras
    def _change_mode(self) -> None:
        """Shows what the mode says; the camera of images and that of the mesh differ."""
        for_mesh = self.controls.mode.value == "mesh"
        if for_mesh != self._canvas.has_mesh:
            self._switch(for_mesh)
        self._request()

    def _change_cameras(self) -> None:
        if self._canvas.has_mesh:
            self._switch(for_mesh=True)
            self._request()

    def _switch(self, for_mesh: bool) -> None:
        """Clears the window, for a mesh or for images."""
        self._workers.images.forget((self._id, "image"))
        self._workers.meshes.forget((self._id, "mesh"))
        self._canvas.clear(for_mesh)
        self._meshed, self._is_framed, self._switches = None, False, self._switches + 1
        self._reset_view()

    def _mesh_steps(self) -> Steps[None]:
        """A coarse mesh of the subject, cameras of the prior with their images, a fine mesh."""
        view = self._view()
        if view is None or view.choice == self._meshed:
            return
        generator, styles = self._subjects.find(view.choice)
        coarse, fine = _MESH_CELLS
        switches = self._switches
        self._show_status("Making the mesh …")
        self._meshed = None  # the window no longer shows the last subject
        mesh = extract_mesh(generator, styles, coarse)
        self._mesh_radius = float(np.linalg.norm(mesh.vertices, axis=1).max())
        self._canvas.show_mesh(glb(mesh))
        if not self._is_framed:  # now the mesh's size is known
            self._is_framed = True
            self._reset_view()
        yield 0.0
        cameras = prior_cameras(self._config.poses)
        for i in range(len(cameras) if self.controls.show_cameras.value else 0):
            with torch.inference_mode():
                image = to_uint8(generator.render(styles, cameras[i], _FRUSTUM_SIDE).image)[0]
            self._canvas.show_camera(str(i), cameras[i], image)
            yield 0.0
        mesh = extract_mesh(generator, styles, fine)
        self._canvas.show_mesh(glb(mesh))
        self._show_status(f"{len(mesh.faces):,} triangles")
        if switches == self._switches:  # otherwise the window has been cleared meanwhile
            self._meshed = view.choice

    # ---------------------------------------------------------------- camera
    def _move(self, pose: Pose) -> None:
        """Follows the client's camera."""
        if pose == self.pose:
            return
        self.pose = pose
        if not self._canvas.has_mesh:
            self._rein_in()
            self._request()

    def _rein_in(self) -> None:
        """Brings back a camera that has run far beyond the limits."""
        camera = camera_from_viser(self.pose, self._config.networks.extent)
        if camera is None or not self.controls.limit.value:
            return
        # at the start, the browser may not have received the initial camera yet
        self._was_within |= self._limits.contains(camera)
        near = self._limits.reined_in(camera)
        if self._was_within and near is not camera:
            self._place(near)

    def _change_limit(self) -> None:
        if not self._canvas.has_mesh:
            self._rein_in()
            self._request()

    def _reset_view(self) -> None:
        poses = self._config.poses
        if not self._canvas.has_mesh:
            self._place(front_camera(poses))
        elif self.controls.show_cameras.value:
            yaw, pitch, radii, fov = _OVERVIEW
            distance = radii * poses.radius
            self._place(Camera.orbit(math.radians(yaw), math.radians(pitch), distance, fov))
        else:
            aspect = self.pose.width / max(1, self.pose.height)
            self._place(framing_camera(self._mesh_radius, aspect))

    def _place(self, camera: Camera) -> None:
        self._canvas.place(camera)
        self.controls.fov.value = float(camera.fov)
        self._change_fov()
        self.pose = self._canvas.pose  # without waiting for the client to confirm it

    def _change_fov(self) -> None:
        slider = self.controls.fov
        if math.isfinite(slider.value):
            self._client.camera.fov = math.radians(min(max(slider.value, slider.min), slider.max))

    # ---------------------------------------------------------------- subject
    def _leave_inversion(self) -> None:
        self.controls.show_inversion.value = False

    def _change_psi(self) -> None:
        """Swaps the truncation: photos' subjects and random ones keep one each."""
        if self.controls.show_inversion.value != self._shows_inversion:
            values = self.controls.values()
            kept = {name: values[name] for name in _FULL_PSI}
            self._shows_inversion = not self._shows_inversion
            self.controls.set(**self._other_psi)
            self._other_psi = kept

    def _draw_subject(self) -> None:
        self._leave_inversion()
        shape_seed, appearance_seed = (random.randint(0, LARGEST_SEED) for _ in range(2))
        self.controls.set(shape_seed=shape_seed, appearance_seed=appearance_seed)

    def _show_inversion(self, generator: RayGenerator, styles: Styles, camera: Camera) -> None:
        """Shows a photo's subject from the photo's camera, in place of the last photo's."""
        last, self._inversion = self._inversion, self._subjects.add(generator, styles)
        if last is not None:
            self._subjects.remove(last)
        if self._canvas.closed:
            self._subjects.remove(self._inversion)
            return
        if self._shows_inversion:
            self.controls.set(**_FULL_PSI)
        else:
            self._other_psi = dict(_FULL_PSI)
        self.controls.show_inversion.visible = True
        self.controls.show_inversion.value = True
        if not self._canvas.has_mesh:
            if not self._limits.contains(camera):
                self.controls.limit.value = False
            self._place(camera)
        self._request()

    # ---------------------------------------------------------------- path and files
    def _add_keyframe(self, view: View) -> None:
        self._set_path([*self._keyframes, keyframe(view.camera, self._keyframes)])

    def _set_path(self, keyframes: list[dict[str, Any]]) -> None:
        self._keyframes = keyframes
        self.controls.show_path_length(len(keyframes))

    def _save_image(self) -> None:
        if self._canvas.has_mesh:
            # neither here, where it would block its own answer, nor in a worker, which has others
            asyncio.get_running_loop().run_in_executor(None, self._saver.drawing, self.pose)
        else:
            self._with_view(self._saver.image)
