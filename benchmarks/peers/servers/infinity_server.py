"""infinity's own command, `infinity_emb v2 ...`, held to the cores that it was given.

ONNX Runtime by default starts a thread for each core of the machine and binds it there, whatever cores the process may
use, and infinity has no setting for it. This gives its sessions as many threads as the process has cores, none that
spins; all else is infinity as installed. OMP_NUM_THREADS does the same for its torch engine.
"""

import os
from typing import Any

import onnxruntime
from infinity_emb.cli import cli

_make = onnxruntime.InferenceSession.__init__


def _make_on_own_cores(
    self: onnxruntime.InferenceSession,
    path_or_bytes: Any,  # noqa: ANN401  (of the parent's type)
    sess_options: onnxruntime.SessionOptions | None = None,
    *arguments: Any,  # noqa: ANN401
    **named: Any,  # noqa: ANN401
) -> None:
    options = sess_options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    _make(self, path_or_bytes, options, *arguments, **named)


if __name__ == "__main__":
    onnxruntime.InferenceSession.__init__ = _make_on_own_cores
    cli()
