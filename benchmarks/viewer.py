"""Viewer: frame rate while the camera orbits, and time to the refined image once it rests.

Uses the bundled model, the real server and a real websocket, with JPEG and PNG encoding, on two
threads. The client is a process of its own that counts images without drawing them. Its camera
moves 200 times a second, so that it does not limit the rate; that of viser's page moves 50 times. A
moving camera gets as many rows as fit in `FRAME_SECONDS`; the last case allows enough time for all
rows of the refined image.

    GOMP_SPINCOUNT=10000 python benchmarks/viewer.py    (90 seconds; the command line sets it too)
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

import psutil
import torch
from viewer_client import Client

import cips3d
from cips3d.camera import Camera
from cips3d.training.allocator import keep_freed_memory
from cips3d.viewer import rendering
from cips3d.viewer.server import Viewer

THREADS, SECONDS, STOPS = 2, 8.0, 5
#: Shorter side of the refined image, pixels.
SIDE = 128
CAMERA_SECONDS = 0.005


def orbit(phase: float) -> Camera:
    return Camera.orbit(0.6 * math.sin(phase), 0.2 * math.sin(2 * phase))


def client_process(url: str, size: tuple[int, int], pipe: Connection) -> None:
    """Orbits for `SECONDS`, then stops `STOPS` times; sends the frame rate and the median wait."""
    with Client(url, size=size) as client:
        client.rest()
        client.set("Pixels", SIDE)
        client.rest()
        started, before = time.perf_counter(), client.images
        while time.perf_counter() - started < SECONDS:
            client.look(orbit(time.perf_counter() - started))
            time.sleep(CAMERA_SECONDS)
        rate = (client.images - before) / (time.perf_counter() - started)
        waits = []
        for stop in range(STOPS):
            for step in range(20):
                client.look(orbit(stop + step / 50))
                time.sleep(CAMERA_SECONDS)
            rested = time.perf_counter()
            waits.append(client.rest() - rested)
        pipe.send((rate, statistics.median(waits)))


def measure(size: tuple[int, int], frame_seconds: float) -> tuple[float, float, float]:
    """Images per second, median seconds to the refined image, median height of the coarse ones."""
    rendering.FRAME_SECONDS = frame_seconds
    generator = cips3d.load("heads")
    with Viewer(generator, port=0, name="heads") as viewer:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=client_process, args=(viewer.url, size, there))
        process.start()
        there.close()  # so that recv fails if the process dies
        sides = []
        while not here.poll(0.1):
            sides += [session.coarse_side for session in viewer.sessions]
        rate, refined = here.recv()
        process.join()
    return rate, refined, statistics.median(sides)


def main() -> None:
    torch.set_num_threads(THREADS)
    keep_freed_memory()
    print(f"machine load before: {psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} processors")
    usual = rendering.FRAME_SECONDS
    for size, frame_seconds in (((720, 720), usual), ((1280, 720), usual), ((720, 720), 10.0)):
        rate, refined, coarse = measure(size, frame_seconds)
        width = round(SIDE * size[0] / size[1])
        print(
            f"{width}x{SIDE}: {rate:5.1f} images/s while orbiting, of {coarse:g} rows; "
            f"refined {refined:.2f} s after the last movement"
        )


if __name__ == "__main__":
    main()
