"""What a result depends on beside the code: machine, versions, model files, cores, seeds. No names, no paths."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from narrows.bundle import open_bundle
from narrows.index.store import read_manifest
from narrows_tools.doctor import machine

DISTRIBUTIONS = ("onnxruntime", "faiss-cpu", "tokenizers", "grpcio", "protobuf", "numpy", "hdrhistogram", "psutil")


def fingerprint(
    bundle: Path | None, index: Path | None, server_cores: Sequence[int], client_cores: Sequence[int], seed: int
) -> dict[str, Any]:
    """The environment of a run, for Result.environment. `bundle` and `index` are opened; None: another system's."""
    found = machine.examine()
    environment: dict[str, Any] = {
        "system": found.system,
        "kernel": platform.release(),
        "cpu_model": found.cpu.model,
        "cpu_flags": list(found.cpu.flags),
        "cores": os.cpu_count(),
        "memory_bytes": found.memory_bytes,
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "versions": {name: version for name in DISTRIBUTIONS if (version := _version(name))},
        "git_commit": git_commit(),
        "server_cores": list(server_cores),
        "client_cores": list(client_cores),
        "seed": seed,
    }
    if bundle is not None:
        manifest = open_bundle(bundle).manifest
        environment["bundle"] = manifest.name
        environment["towers"] = {
            role: {
                "tower_id": tower.tower_id,
                "files_sha256": {name: variant.sha256 for name, variant in tower.variants.items()},
            }
            for role, tower in manifest.towers.items()
        }
    if index is not None:
        _, sealed = read_manifest(index)
        environment["index"] = {"name": sealed.name, "passages": sealed.count, "variant": sealed.variant}
    return environment


def git_commit(module: Path = Path(__file__)) -> str:
    """The commit of the checkout that a module belongs to, with `+` where files differ from it; empty elsewhere.

    A module that only lies in one, such as one installed into a virtual environment there, does not belong to it.
    """
    try:
        _git(module, "ls-files", "--error-unmatch", module.name)
        commit = _git(module, "rev-parse", "HEAD")
        return commit + "+" * bool(_git(module, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(module: Path, *arguments: str) -> str:
    command = ["git", "-C", str(module.parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
    return done.stdout.strip()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
