"""`narrows serve`: answers over gRPC."""

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from narrows import settings

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

# Flags for what people change most; every setting has an environment variable and a TOML key.
FLAGS: dict[str, str] = {
    "bundle": "bundle of towers",
    "index": "index to search; without one only Encode and Tokenize answer",
    "listen": "HOST:PORT; port 0 picks a free one (default: 127.0.0.1:50051)",
    "device": "auto or cpu (default: auto)",
    "encode-threads": "threads of the encoder (default: all cores)",
    "search-threads": "threads of the index (default: all cores)",
    "verify": "stamp, or full to hash every file at each start (default: stamp: only files that changed since)",
    "log-level": "debug, info, warning or error (default: info)",
}


def add(commands: "Commands") -> None:
    """Adds the command and its arguments."""
    names = ", ".join(settings.NAMES)
    command = commands.add_parser(
        "serve",
        help="answer questions over gRPC",
        description="Loads a bundle and an index, warms up, and serves narrows.v1.RetrievalService with health and "
        "reflection until SIGTERM; then it finishes what is queued and exits 0. It prints `narrows: serving on "
        "HOST:PORT` on stdout once it is ready.",
        epilog="A setting is taken from its flag, else from NARROWS_<NAME>, else from the TOML file. "
        f"Settings: {names}.",
    )
    for flag, text in FLAGS.items():
        command.add_argument(f"--{flag}", help=text)
    command.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings, such as narrows.toml")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serves until stopped."""
    from narrows.server.run import serve

    flags = {flag.replace("-", "_"): getattr(options, flag.replace("-", "_")) for flag in FLAGS}
    chosen = settings.load(flags, os.environ, options.config)
    logging.basicConfig(
        level=chosen.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    serve(chosen, lambda address: print(f"narrows: serving on {address}", flush=True))
    return 0
