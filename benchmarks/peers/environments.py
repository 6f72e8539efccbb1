"""Makes each peer's environment, .venv-peers/NAME from requirements/NAME.txt; says which cannot be made."""

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from benchmarks.peers.description import ENVIRONMENTS, HERE, load_peers

STAMP = ".installed"


def main() -> int:
    """Makes what is missing or out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = sorted({peer.environment for peer in load_peers().values()})
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all, {', '.join(names)}")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no such environment: {', '.join(sorted(unknown))}")
    for name in tqdm(options.names or names, desc="environments", unit="", file=sys.stderr):
        if reason := make(name):
            tqdm.write(f"bench-peers: {name} is skipped, its environment cannot be made: {reason}", file=sys.stderr)
    return 0


def make(name: str) -> str:
    """Makes one environment unless it is there; returns why it could not."""
    requirements = HERE / "requirements" / f"{name}.txt"
    directory = ENVIRONMENTS / name
    stamp, wanted = directory / STAMP, hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return ""
    python = directory / "bin" / "python"
    stamp.unlink(missing_ok=True)
    pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement")
    steps = ((sys.executable, "-m", "venv", str(directory)), (*pip, str(requirements)))
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)  # noqa: S603  (our own commands)
        if done.returncode != 0:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            return lines[-1] if lines else f"{Path(step[0]).name} ended with status {done.returncode}"
    stamp.write_text(wanted)
    return ""


if __name__ == "__main__":
    sys.exit(main())
