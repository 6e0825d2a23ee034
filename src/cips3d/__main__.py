"""`python -m cips3d`, the same as the `cips3d` command (what `accelerate launch -m cips3d` needs)."""

from cips3d.cli import main

if __name__ == "__main__":
    main()
