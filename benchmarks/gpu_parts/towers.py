"""Towers on the device that is measured, and how much arithmetic a batch of them is."""

from collections.abc import Sequence

from narrows.bundle import Bundle, Role, TowerManifest
from narrows.device import choose
from narrows.towers import Tower, load_towers

VARIANTS = ("fp16", "fp32")  # what a GPU runs
FEED_FORWARD = 4  # how much wider than the hidden size


def load(bundle: Bundle, variant: str, device_name: str) -> dict[Role, Tower]:
    """Both towers, loaded for offline work.

    Raises:
        BundleError, DeviceError: as `load_towers`.
    """
    roles: tuple[Role, ...] = ("question_encoder", "context_encoder")
    return load_towers(bundle, variant, 1, roles, device=choose(device_name))


def operations(tower: TowerManifest, lengths: Sequence[int]) -> float:
    """Floating-point operations that embeddings of texts of these lengths cannot do without; padding is none.

    Products alone, two operations for a multiplication and an addition. Of a CLS-pooled tower's last layer only one
    row is needed behind keys and values. 0: the layers are not known.
    """
    layers = tower.variants["fp32"].fused_ops.get("BiasGelu", 0)
    hidden = tower.dim
    if not layers or tower.projection_dim:
        return 0.0
    row = 2.0 * hidden * hidden  # one token through a square of weights
    total = 0.0
    for length in lengths:
        attended = 4.0 * length * hidden  # one token's scores and weighted sum
        layer = length * ((4 + 2 * FEED_FORWARD) * row + attended)
        last = layer if tower.pooling == "mean" else length * 2 * row + (2 + 2 * FEED_FORWARD) * row + attended
        total += (layers - 1) * layer + last
    return total
