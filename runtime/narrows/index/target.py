"""The index that is to be made: where, how, and what is there already."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from narrows.errors import IndexFileError
from narrows.index import presets, store, unfinished
from narrows.index.presets import FLAT, Plan, Wanted
from narrows.index.store import GENERATION, IndexManifest, Recall, SkippedRows
from narrows.index.tuning import Tuning
from narrows.index.unfinished import Inputs, Journal


@dataclass(frozen=True, slots=True)
class Target:
    """What to make.

    `replace` makes a new generation of an index that exists; `restart` throws an unfinished build away; `wanted` says
    how the vectors are to be held, `tuning` what to measure that with.
    """

    out: Path
    name: str
    threads: int
    replace: bool = False
    restart: bool = False
    wanted: Wanted = FLAT
    tuning: Tuning | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """What was found where the index is to be: an unfinished build of it, or one killed after its last step but one."""

    journal: Journal | None
    done: tuple[str, IndexManifest] | None = None


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What was built, and how fast the encoding went. `resumed_at` passages were encoded before this run."""

    index: str
    generation: str
    count: int
    dim: int
    truncated_count: int
    token_count: int
    cut_token_count: int
    skipped: dict[str, SkippedRows]
    plan: Plan
    recall: Recall | None
    size_bytes: int
    resumed_at: int
    encode_s: float
    passages_per_s: float


def check(target: Target) -> None:
    """Checks that an index may be made there.

    Raises:
        IndexFileError: it exists and `replace` is not set, or is something else than an index.
    """
    out = target.out
    current = store.current_generation(out)
    if current is not None:
        if not target.replace and unfinished.read_journal(out / current) is None:
            raise _exists(out)
    elif out.exists() and (not out.is_dir() or any(not _of_killed_build(entry) for entry in out.iterdir())):
        raise IndexFileError(f"{out} exists and is not an index: choose another --out")


@contextmanager
def held(target: Target, inputs: Inputs) -> Iterator[Begun]:
    """Keeps others out while the index is made, and finds what there is of it.

    Raises:
        IndexFileError: as `check`; another process is building there; or there is an unfinished build of other inputs
            and `restart` is not set.
    """
    with store.building(target.out):
        check(target)  # another build may have ended meanwhile
        if done := _killed_at_its_end(target, inputs):
            yield Begun(None, done)
            return
        if target.restart:
            unfinished.clear(target.out)
        yield Begun(unfinished.find(target.out, inputs))


def report(target: Target, generation: str, manifest: IndexManifest, resumed_at: int, encode_s: float) -> BuildReport:
    """What to tell of a sealed generation."""
    return BuildReport(
        index=str(target.out),
        generation=generation,
        count=manifest.count,
        dim=manifest.dim,
        truncated_count=manifest.truncated_count,
        token_count=manifest.token_count,
        cut_token_count=manifest.cut_token_count,
        skipped=manifest.skipped,
        plan=manifest.plan,
        recall=manifest.recall,
        size_bytes=sum(file.size_bytes for file in manifest.files.values()),
        resumed_at=resumed_at,
        encode_s=encode_s,
        passages_per_s=(manifest.count - resumed_at) / max(encode_s, 1e-9),
    )


def _exists(out: Path) -> IndexFileError:
    return IndexFileError(f"{out} holds an index already: give --replace to build its next generation")


def _of_killed_build(entry: Path) -> bool:
    """Whether a build that was killed before CURRENT existed may have left this; hidden files do not count."""
    return entry.name.startswith(".") or GENERATION.fullmatch(entry.name) is not None


def _killed_at_its_end(target: Target, inputs: Inputs) -> tuple[str, IndexManifest] | None:
    """Does the last step of a build that was killed after CURRENT named it; returns it, if it is the one wanted."""
    current = store.current_generation(target.out)
    journal = unfinished.read_journal(target.out / current) if current else None
    if current is None or journal is None:
        return None
    unfinished.finish(target.out, current)
    if journal.inputs == inputs and not target.restart:
        manifest = store.read_manifest(target.out)[1]
        plan = presets.plan(target.wanted, manifest.count, manifest.dim)
        is_planned = replace(manifest.plan, search=plan.search) == plan
        if manifest.name == target.name and is_planned and _is_measured(manifest, target.tuning):
            return current, manifest
    if not target.replace:
        raise _exists(target.out)
    return None


def _is_measured(manifest: IndexManifest, tuning: Tuning | None) -> bool:
    found = manifest.recall
    wanted = tuning and (tuning.target, min(tuning.k, manifest.count))
    return wanted is None or (found is not None and (found.target, found.k) == wanted)
