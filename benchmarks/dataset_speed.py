"""Images per second of SyntheticHeads, everything included.

python benchmarks/dataset_speed.py      (a quarter of a minute)
"""

from __future__ import annotations

import time

from cips3d.heads import SyntheticHeads

SECONDS = 1.5


def main() -> None:
    for style in ("natural", "cartoon"):
        for resolution, batch in ((64, 64), (64, 16), (32, 64), (32, 16)):
            heads = SyntheticHeads(resolution=resolution, style=style)
            heads[0]  # compiles
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < SECONDS:
                heads.__getitems__(range(done, done + batch))
                done += batch
            rate = done / (time.perf_counter() - start)
            case = f"{style:8} {resolution}x{resolution}, 2x2 samples, batch {batch}"
            print(f"{case}: {rate:6.0f} images/s")


if __name__ == "__main__":
    main()
