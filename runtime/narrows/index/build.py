"""`narrows index build`: a file of passages -> a sealed generation of an index.

Two passes. The first checks the whole file and stores the passages, so that a bad row is found before hours of
encoding. The second reads them back, tokenizes, encodes and writes, all at a time (narrows.offline). A build that is
stopped at any moment goes on where it was when it is started again (narrows.index.unfinished), on a CPU to the same
bytes. What becomes of the vectors then is the same for all builds (narrows.index.sealing).
"""

import time
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import tokenizers

import narrows
from narrows import offline
from narrows.bundle import Bundle
from narrows.device import CPU, Device
from narrows.index import chunks, sealing, unfinished
from narrows.index.progress import Progress
from narrows.index.sealing import Origin
from narrows.index.shard import Shard
from narrows.index.storing import fingerprint, store_passages
from narrows.index.target import BuildReport, Target, check, held, report
from narrows.index.unfinished import BUILD, Appender, Inputs, Journal
from narrows.passages import Passages
from narrows.towers import Tower, load_towers


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to fill an index with.

    `variant` of the context encoder encodes on `device`; `skip_bad` leaves bad rows out; `shard` takes a part of the
    passages only.
    """

    passages: Path
    variant: str
    skip_bad: bool = False
    device: Device = CPU
    shard: Shard | None = None


def build_index(bundle: Bundle, request: BuildRequest, target: Target, progress: Progress) -> BuildReport:
    """Builds an index, or goes on with a build of the same inputs that was stopped.

    Raises:
        PassageFileError: the file breaks its format, or holds no passage.
        IndexFileError: the output exists and `replace` is not set, or is something else than an index; another process
            is building there; it holds an unfinished build of other inputs and `restart` is not set; or what is wanted
            cannot be made, or misses its recall.
        BundleError: the context encoder cannot be loaded.
        DeviceError: nor on this device.
    """
    check(target)
    tower = load_towers(bundle, request.variant, 1, ["context_encoder"], device=request.device)["context_encoder"]
    inputs = _inputs(tower, request)
    with held(target, inputs) as begun:
        if begun.done:
            return report(target, *begun.done, begun.done[1].count, 0.0)
        journal = begun.journal
        if journal:
            progress.resuming(journal.encoded.rows, journal.count)
        else:
            journal = _store(request, target.out, inputs, tower.manifest.dim, progress)
        resumed_at = journal.encoded.rows
        sealing.check_plan(target, journal.count, journal.dim, progress)
        journal, encode_s = _encode(target.out / BUILD, journal, tower, target.threads, progress)
        source = request.passages.name + (f" [{request.shard}]" if request.shard else "")
        origin = Origin(
            bundle=bundle.manifest.name,
            source=source,
            source_sha256=inputs.source_sha256,
            model_sha256=inputs.model_sha256,
            shard=request.shard,
        )
        generation, manifest = sealing.seal(bundle, journal, origin, target, progress)
    return report(target, generation, manifest, resumed_at, encode_s)


def _inputs(tower: Tower, request: BuildRequest) -> Inputs:
    return Inputs(
        program=f"narrows {narrows.__version__}, onnxruntime {onnxruntime.__version__}, "
        f"tokenizers {tokenizers.__version__}" + (", on a GPU" if request.device.is_gpu else ""),
        tower_id=tower.manifest.tower_id,
        variant=request.variant,
        model_sha256=tower.manifest.variants[request.variant].sha256,
        source_sha256=fingerprint(request.passages),
        skip_bad=request.skip_bad,
        shard=str(request.shard or ""),
    )


def _store(request: BuildRequest, out: Path, inputs: Inputs, dim: int, progress: Progress) -> Journal:
    """Checks and stores the passages, and begins the journal; leaves nothing when it fails."""
    unfinished.clear(out)
    directory = out / BUILD
    directory.mkdir()
    try:
        count, skipped = store_passages(request.passages, directory, request.skip_bad, request.shard, progress)
        return unfinished.begin(out, inputs, dim, count, skipped)
    except BaseException:
        unfinished.clear(out)
        raise


def _encode(directory: Path, journal: Journal, tower: Tower, threads: int, progress: Progress) -> tuple[Journal, float]:
    """Encodes what the journal does not count yet; returns the last journal, and the seconds that encoding took."""
    passages = Passages(directory)
    first = journal.encoded.rows
    if first == journal.count:
        return journal, 0.0
    progress.estimated(journal.count - first, chunks.estimate_s(passages, first, tower, threads))
    started_s = time.monotonic()
    with Appender(directory, journal, passages) as appender:
        texts_of_chunks = chunks.tokenized(passages, first, tower)
        for texts, embeddings in offline.embed_chunks(tower, texts_of_chunks, threads, progress.encoded):
            appender.append(embeddings, texts)
    return appender.journal, time.monotonic() - started_s
