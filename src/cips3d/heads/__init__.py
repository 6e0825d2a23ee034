"""The embedded dataset of stylised 3D heads, and the network that reads them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cips3d.heads.dataset import HeadBatch, SyntheticHeads
    from cips3d.heads.network import HeadNetwork, load_head_network

#: Where the public names live. Each is imported at its first use: the network needs no numba.
_HOMES = {
    "HeadBatch": "dataset", "HeadNetwork": "network", "SyntheticHeads": "dataset",
    "load_head_network": "network",
}  # fmt: skip
__all__ = ["HeadBatch", "HeadNetwork", "SyntheticHeads", "load_head_network"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
