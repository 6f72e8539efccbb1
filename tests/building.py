"""An index built by a test."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from narrows.bundle import Bundle
from narrows.index.build import BuildRequest, build_index
from narrows.index.progress import Progress
from narrows.index.target import BuildReport, Target


def build(bundle: Bundle, passages: Path, out: Path, progress: Progress | None = None, **more: Any) -> BuildReport:
    """Builds `out`: fp32, by two threads, named x, unless `more` sets fields of BuildRequest or Target."""
    of_target = {field.name for field in fields(Target)}
    request = {"variant": "fp32"} | {name: value for name, value in more.items() if name not in of_target}
    target = {"name": "x", "threads": 2} | {name: value for name, value in more.items() if name in of_target}
    return build_index(bundle, BuildRequest(passages, **request), Target(out, **target), progress or Progress())
