"""One client of the viewer: its camera, and the image or mesh that it sees."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import viser

from cips3d.camera import Camera
from cips3d.editing.inversion import invert
from cips3d.editing.reach import reach
from cips3d.editing.subject import Subject
from cips3d.export.media import to_uint8
from cips3d.export.meshes import extract_mesh, glb
from cips3d.models.protocol import RayGenerator
from cips3d.models.types import Styles
from cips3d.viewer import cameras, rendering, transfer
from cips3d.viewer.canvas import Canvas
from cips3d.viewer.controls import Controls
from cips3d.viewer.requests import SEEDS, Choice, PhotoSubject, View, view_from
from cips3d.viewer.subject_cache import Shared
from cips3d.viewer.worker import Steps

#: Seconds without movement before an image is refined, and without a change before a mesh is made.
STILL_SECONDS, MESH_STILL_SECONDS = 0.15, 0.3
#: Cells along each side of the meshes that are shown, one after the other.
_MESH_CELLS = (48, 128)
#: No truncation, for photos' subjects.
_FULL_PSI = {"psi_shape": 1.0, "psi_appearance": 1.0}
#: Side of the images in the cameras' frusta, pixels.
_FRUSTUM_SIDE = 96


class _Abandoned(Exception):
    """The client has gone or has opened another photo."""


class Session:
    """One client: its controls, its camera, and the images or the mesh that it sees.

    viser's threads run the callbacks, the workers' threads run the steps.

    Attributes:
        controls: the client's control panel.
        pose: the client's camera.
        coarse_side: shorter side of the last coarse image, pixels.
    """

    def __init__(self, client: viser.ClientHandle, shared: Shared) -> None:
        self._client, self._shared, self._subjects = client, shared, shared.subjects
        self._generator, self._config = self._subjects.generator, self._subjects.generator.config
        self._limits = cameras.PoseLimits.of(self._config.poses)
        self._canvas = Canvas(client)
        self._last_choice: Choice | None = None  # of the images
        self._meshed: Choice | None = None
        self._mesh_radius: float | None = None  # once a mesh is shown
        self._was_within = False
        self.coarse_side = 0
        self._keyframes: list[dict[str, Any]] = []
        self._photo: torch.Tensor | None = None  # whose subject is being found
        self._drawing: asyncio.Future[None] | None = None
        self._found: PhotoSubject | None = None
        self._shows_inversion, self._other_psi = False, dict(_FULL_PSI)
        self.pose = self._canvas.pose
        first, has_other = shared.first, self._subjects.other is not None
        seed = 0 if isinstance(first, Subject) else first
        self.controls = Controls(client.gui, self._generator, has_other, seed)
        self._connect()
        self._rein_in()
        if isinstance(first, Subject):
            self._show_inversion(self._generator, first.styles, first.camera)
        else:
            self._request()

    def close(self) -> None:
        """Stops all work for the client."""
        self._canvas.closed = True
        if self._found is not None:
            self._subjects.forget()

    # ---------------------------------------------------------------- callbacks
    def _connect(self) -> None:
        """Registers the callbacks. They run in the event loop, in order with movements."""
        controls = self.controls

        def callback(action: Callable[[], None]) -> Any:
            async def call(_: viser.GuiEvent) -> None:
                with self._canvas.errors_shown():
                    action()

            return call

        @self._client.camera.on_update
        async def _(_: viser.CameraHandle) -> None:
            self._move(self._canvas.pose)

        for handle in (*controls.inputs.values(), controls.show_inversion):
            handle.on_update(callback(self._request))
        for handle, action in (
            (controls.inputs["shape_seed"], self._leave_inversion),
            (controls.inputs["appearance_seed"], self._leave_inversion),
            (controls.show_inversion, self._change_psi),
            (controls.mode, self._change_mode),
            (controls.fov, self._change_fov),
            (controls.limit, self._change_limit),
            (controls.show_cameras, self._change_cameras),
        ):
            handle.on_update(callback(action))
        subject = partial(transfer.subject_files, own=self._generator)
        actions: dict[str, Callable[[], None]] = {
            "Random": self._draw_subject,
            "Reset view": self._reset_view,
            "Image": self._save_image,
            "Mesh": lambda: self._save("meshes", "mesh file", transfer.mesh_file),
            "Subject": lambda: self._save("meshes", "subject file", subject),
            "Add view": self._add_keyframe,
            "Save": lambda: self._download(transfer.path_file(self._keyframes)),
            "Clear": lambda: self._set_path([]),
        }

        def press(group: viser.GuiButtonGroupHandle) -> None:
            # a client may send any label
            actions.get(str(group.value), lambda: None)()

        for group in (controls.actions, controls.save, controls.path):
            group.on_click(callback(partial(press, group)))

        @controls.upload.on_upload
        def _(_: viser.GuiEvent) -> None:  # not in the event loop: decoding takes time
            with self._canvas.errors_shown():
                upload = controls.upload.value
                side = self._config.resolution
                self._photo = transfer.read_upload(upload.name, upload.content, side)
                self._submit("photos", "photo", self._invert(self._photo))

    def _submit(self, worker: str, kind: str, steps: Steps[None], delay: float = 0.0) -> None:
        owner = self._client.client_id, kind
        self._shared.workers[worker].submit(owner, self._canvas.guarded(steps), delay)

    # ---------------------------------------------------------------- images
    def _view(self) -> View | None:
        shown = self._found if self.controls.show_inversion.value else None
        values = {**self.controls.values(), "photo": shown}
        limits = self._limits if self.controls.limit.value else None
        return view_from(values, self.pose, self._generator, limits)

    def _request(self) -> None:
        """Requests a new image or mesh."""
        if self._canvas.has_mesh:
            self._submit("meshes", "mesh", self._mesh_steps(), MESH_STILL_SECONDS)
        else:
            self._submit("images", "image", self._image_steps())

    def _image_steps(self) -> Steps[None]:
        """A coarse image of the current view, then finer ones once the camera rests."""
        began = time.monotonic()
        view = self._view()
        if view is None:
            return
        # while a slider moves, each subject is seen once, and making it ready would not pay
        is_known, self._last_choice = view.choice == self._last_choice, view.choice
        find = self._subjects.ready if is_known else self._subjects.find
        generator, subject = find(view.choice)
        camera, speed = view.rendered_camera, self._shared.speed
        side = self.coarse_side = rendering.preview_side(view, speed, self.coarse_side)
        sampling = rendering.preview_sampling(view.sampling)
        out = rendering.preview(generator, subject, camera, view.size(side), sampling, speed)
        self._canvas.show_image(out, view, "jpeg")
        yield max(0.0, began + STILL_SECONDS - time.monotonic())
        began = time.monotonic()
        generator, subject = self._subjects.ready(view.choice)
        yield 0.0
        for finer in rendering.finer_sides(view.side, side):
            size = view.size(finer)
            out = yield from rendering.strips(
                generator, subject, camera, size, view.sampling, speed
            )
            self._canvas.show_image(out, view, "png")
        height, width = view.size(view.side)
        samples, seconds = view.sampling, time.monotonic() - began
        self.controls.status.content = (
            f"{width}×{height}, {samples.coarse} + {samples.fine} samples, {seconds:.2g} s"
        )

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
        self._shared.workers["images"].forget((self._client.client_id, "image"))
        self._shared.workers["meshes"].forget((self._client.client_id, "mesh"))
        self._canvas.clear(for_mesh)
        self._meshed = self._mesh_radius = None
        self._reset_view()

    def _mesh_steps(self) -> Steps[None]:
        """A coarse mesh of the subject, cameras of the prior with their images, a fine mesh."""
        view = self._view()
        if view is None or view.choice == self._meshed:
            return
        generator, subject = self._subjects.ready(view.choice)
        coarse, fine = _MESH_CELLS
        self.controls.status.content = "Making the mesh …"
        self._meshed = None  # the window no longer shows the last subject
        mesh = extract_mesh(generator, subject, coarse)
        is_first = self._mesh_radius is None
        self._mesh_radius = float(np.linalg.norm(mesh.vertices, axis=1).max())
        self._canvas.show_mesh(glb(mesh))
        if is_first:
            self._reset_view()
        yield 0.0
        prior = cameras.prior_cameras(self._config.poses)
        for i in range(len(prior) if self.controls.show_cameras.value else 0):
            with torch.inference_mode():
                image = to_uint8(generator.render(subject, prior[i], _FRUSTUM_SIDE).image)[0]
            self._canvas.show_camera(str(i), prior[i], image)
            yield 0.0
        mesh = extract_mesh(generator, subject, fine)
        self._canvas.show_mesh(glb(mesh))
        self.controls.status.content = f"{len(mesh.faces):,} triangles"
        yield 0.0  # the last step if the window has been cleared meanwhile
        self._meshed = view.choice

    # ---------------------------------------------------------------- camera
    def _move(self, pose: cameras.Pose) -> None:
        """Follows the client's camera."""
        if pose != self.pose:
            self.pose = pose
            self._change_limit()

    def _change_limit(self) -> None:
        if not self._canvas.has_mesh:
            self._rein_in()
            self._request()

    def _rein_in(self) -> None:
        """Brings back a camera that has run far beyond the limits."""
        camera = cameras.camera_from_viser(self.pose, self._config.networks.extent)
        if camera is None or not self.controls.limit.value:
            return
        # at the start, the browser may not have received the initial camera yet
        self._was_within |= self._limits.contains(camera)
        near = self._limits.reined_in(camera)
        if self._was_within and near is not camera:
            self._place(near)

    def _reset_view(self) -> None:
        poses = self._config.poses
        if not self._canvas.has_mesh:
            self._place(cameras.front_camera(poses))
        elif self.controls.show_cameras.value:
            self._place(cameras.overview_camera(poses))
        else:
            aspect = self.pose.width / max(1, self.pose.height)
            radius = self._mesh_radius or self._config.networks.extent
            self._place(cameras.framing_camera(radius, aspect))

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
        self.controls.show_photo(self.controls.show_inversion.value)
        if self.controls.show_inversion.value != self._shows_inversion:
            values = self.controls.values()
            kept = {name: values[name] for name in _FULL_PSI}
            self._shows_inversion = not self._shows_inversion
            self.controls.set(**self._other_psi)
            self._other_psi = kept

    def _draw_subject(self) -> None:
        self._leave_inversion()
        shape_seed, appearance_seed = random.randint(*SEEDS), random.randint(*SEEDS)
        self.controls.set(shape_seed=shape_seed, appearance_seed=appearance_seed)

    def _invert(self, photo: torch.Tensor) -> Steps[None]:
        """Finds a photo's subject and camera, unless another photo comes."""
        notification = self._client.add_notification(
            "Finding the subject …", "", loading=True, with_close_button=False
        )

        def report(share: float, _: str) -> None:
            if self._canvas.closed or self._photo is not photo:
                raise _Abandoned
            notification.body = f"{share:.0%}"

        try:
            yield 0.0
            discriminator = self._subjects.discriminator
            found = invert(self._generator, photo, discriminator=discriminator, progress=report)
            self._show_inversion(found.generator, found.styles, found.camera, photo)
            yield 0.0
            notification.title = "Comparing with the model's own subjects …"
            near = reach(self._generator, photo, found, discriminator, progress=report)
            self.controls.set_reach(near.lines(), near.warning())
        except _Abandoned:
            return
        finally:
            notification.remove()

    def _show_inversion(
        self,
        generator: RayGenerator,
        styles: Styles,
        camera: Camera,
        photo: torch.Tensor | None = None,
    ) -> None:
        """Shows a photo's subject from its camera, in place of the last photo's, and the photo."""
        self._found = PhotoSubject(generator, styles)
        if photo is not None:
            self.controls.set_photo(to_uint8(photo)[0])
            self.controls.show_photo(True)
        self._subjects.forget()
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
    def _add_keyframe(self) -> None:
        if (view := self._view()) is not None:
            self._set_path([*self._keyframes, cameras.keyframe(view.camera, self._keyframes)])

    def _set_path(self, keyframes: list[dict[str, Any]]) -> None:
        self._keyframes = keyframes
        self.controls.path.label = f"Path ({len(keyframes)})" if keyframes else "Path"

    def _save(self, worker: str, kind: str, make: Callable[..., Steps[transfer.Files]]) -> None:
        if (view := self._view()) is None:
            return
        # found now: another photo's subject may replace it before the worker gets to it
        files = make(view, *self._subjects.find(view.choice))

        def steps() -> Steps[None]:
            self._download((yield from files))

        self._submit(worker, kind, steps())

    def _save_image(self) -> None:
        if not self._canvas.has_mesh:
            make = partial(transfer.image_file, speed=self._shared.speed)
            self._save("images", "image file", make)
        elif self._drawing is None or self._drawing.done():
            # neither here, where it would block its own answer, nor in a worker, which has others
            loop = asyncio.get_running_loop()
            self._drawing = loop.run_in_executor(None, self._save_drawing, self.pose)

    def _save_drawing(self, pose: cameras.Pose) -> None:
        with self._canvas.errors_shown():
            self._download(transfer.drawing_file(self._client, pose))

    def _download(self, files: transfer.Files) -> None:
        for name, content in files.items():
            self._client.send_file_download(name, content, save_immediately=True)
