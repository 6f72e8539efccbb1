"""The towers of a bundle, loaded: tokenizer and encoder of each, and what their batches cost on this machine."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from narrows import costs
from narrows.bundle import Bundle, Role, TowerManifest
from narrows.costs import CostTable
from narrows.device import CPU, Device
from narrows.encoder import Encoder, load_encoder
from narrows.tokenizer import TowerTokenizer, load_tokenizer

LENGTHS = (8, 16, 32, 64, 128, 256, 512)
MAX_BATCH = CPU.max_batch


@dataclass(frozen=True, slots=True)
class Tower:
    """One tower, ready to embed."""

    manifest: TowerManifest
    tokenizer: TowerTokenizer
    encoder: Encoder
    packed: bool = False  # whether padding costs nothing outside of attention

    def measure_costs(self, budget_ms: float) -> CostTable:
        """Warms the tower up and times its batches; lengths up to its maximum.

        A CPU's encoder of one thread is timed by that thread's own clock, which stops while others have the core.
        """
        longest, shapes = self.manifest.max_tokens, self.encoder.shapes
        lengths = shapes.tokens if shapes else (*(length for length in LENGTHS if length < longest), longest)
        pad = self.tokenizer.pad_id

        def run(batch_size: int, tokens: int) -> None:
            self.encoder.encode([np.full(tokens, pad, dtype=np.int64)] * batch_size)

        def most_texts(tokens: int) -> int:
            most = self.encoder.device.max_batch
            return min(most, shapes.most_texts(tokens)) if shapes else most

        device = self.encoder.device
        timer = time.monotonic if device.is_gpu or self.encoder.threads > 1 else time.thread_time
        measured = costs.measure(run, lengths, most_texts, budget_ms, time.monotonic, timer)
        return replace(measured, packed=self.packed, stepped=shapes is not None)


def load_towers(
    bundle: Bundle,
    variant: str | Mapping[Role, str],
    threads: int,
    roles: Sequence[Role],
    loaded: dict[tuple[str, str], Tower] | None = None,
    device: Device = CPU,
) -> dict[Role, Tower]:
    """Loads towers of a bundle, in one variant or one for each role, and checks their golden embeddings.

    Roles that share a directory and a variant share a tower; `loaded` shares them among calls.

    Raises:
        BundleError: an unreadable file, a variant the bundle lacks, or one that is off on this machine.
        DeviceError: the device cannot run it.
    """
    loaded = {} if loaded is None else loaded
    towers: dict[Role, Tower] = {}
    for role in roles:
        manifest = bundle.tower(role)
        name = variant if isinstance(variant, str) else variant[role]
        key = (manifest.directory, name)
        if key not in loaded:
            tokenizer = load_tokenizer(bundle, manifest)
            encoder = load_encoder(bundle, role, name, tokenizer.pad_id, threads, device)
            loaded[key] = Tower(manifest, tokenizer, encoder, manifest.variants[name].packed)
        towers[role] = loaded[key]
    return towers
