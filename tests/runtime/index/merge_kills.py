"""A program: kills a conversion or a merge at its n-th write point, for every n, and starts it again after each kill.

    python merge_kills.py BUNDLE INDEX PRESET TORN REPLACE SOURCE...

As kills.py, whose write points these are. With REPLACE (1), INDEX exists, and its next generation is made: of itself,
where it is a source too. One line of JSON is printed for each kill.
"""

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from kills import Points, forked, tree  # type: ignore[import-not-found]  # beside this program

from narrows.bundle import open_bundle
from narrows.errors import IndexFileError
from narrows.index.merge import merge_indexes
from narrows.index.presets import Wanted
from narrows.index.progress import Progress
from narrows.index.store import current_generation, damages, read_sealed_manifest
from narrows.index.target import Target
from narrows.index.verify import verify_index


def sealed(index: Path) -> dict[str, str]:
    """Its files, without the stamps of who has checked them."""
    return {name: sha256 for name, sha256 in tree(index).items() if not name.startswith(".")}


def main() -> None:
    bundle_path, index, preset = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    torn, replacing = (bool(int(flag)) for flag in sys.argv[4:6])
    sources = [Path(source) for source in sys.argv[6:]]
    bundle = open_bundle(bundle_path)
    before = index.with_name("before")
    if replacing:
        shutil.copytree(index, before)
    target = Target(index, "x", 1, replace=replacing, wanted=Wanted(preset))
    others = {source: sealed(source) for source in sources if source != index}

    def start(kill_at: int) -> Any:
        def work() -> dict[str, Any]:
            points = Points(index, kill_at, torn)
            # The sources' files are on the disk, under whatever second names.
            files = [file for source in sources for file in source.rglob("*") if file.is_file()]
            points._safe |= {file.stat().st_ino: file.stat().st_size for file in files}
            try:
                report = merge_indexes(bundle, sources, target, Progress())
            except IndexFileError as error:
                return {"refused": str(error), "points": points.count}
            return {"generation": report.generation, "preset": report.plan.preset, "points": points.count}

        return forked(work)

    def check() -> dict[str, Any]:
        """The generation that is served, and what is wrong with its files."""
        if current_generation(index) is None:
            return {"serving": "", "failures": []}
        generation, manifest, sha256 = read_sealed_manifest(index)
        return {"serving": generation, "failures": damages(index, generation, manifest, sha256, "full")}

    whole = start(0)
    assert "refused" not in whole, whole
    expected = tree(index)
    assert not forked(lambda: verify_index(index, bundle, 5, 0, 1, lambda what: None).failures)
    for kill_at in itertools.count(1):
        shutil.rmtree(index)
        if replacing:
            shutil.copytree(before, index)
        if start(kill_at) is not None:
            break
        line = {"kill_at": kill_at, **forked(check), "again": start(0), "same": tree(index) == expected}
        intact = all(sealed(source) == files for source, files in others.items())
        print(json.dumps({**line, "sources_intact": intact}), flush=True)


if __name__ == "__main__":
    main()
