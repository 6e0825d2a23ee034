"""Pictures a second of SyntheticHeads, everything included; `python benchmarks/heads.py`."""

import time

from cips3d.heads.dataset import SyntheticHeads

if __name__ == "__main__":
    for style in ("natural", "cartoon"):
        for resolution, batch in ((64, 64), (64, 16), (32, 64), (32, 16)):
            heads = SyntheticHeads(resolution=resolution, style=style)
            heads[0]  # compiles
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < 1.5:
                heads.__getitems__(range(done, done + batch))
                done += batch
            rate = done / (time.perf_counter() - start)
            print(
                f"{style:8} {resolution}x{resolution}, 2x2 samples, batch {batch}: {rate:6.0f} pictures/s"
            )
