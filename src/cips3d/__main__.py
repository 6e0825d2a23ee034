"""`python -m cips3d`: the `cips3d` command, for `accelerate launch -m cips3d`."""

from cips3d.cli import main

if __name__ == "__main__":
    main()
