"""A peer as small as can be: the peers' own encoder behind mosec's protocol.

`--shift` makes it compute something else, `--wait-ms` keeps it from being quick.

It leaves a process behind that a plain SIGTERM to its group would miss.
"""

import argparse
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2] / "benchmarks/peers/servers"))
from onnx_encoder import OnnxEncoder, add_arguments

LEFT_BEHIND = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def main() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--shift", type=float, default=0.0)
    parser.add_argument("--wait-ms", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int)
    options = parser.parse_args()
    encoder = OnnxEncoder(options.model, options.tokenizer, options.max_tokens, options.threads)
    subprocess.Popen([sys.executable, "-c", LEFT_BEHIND], start_new_session=True)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            row = encoder.encode([text])[0] + options.shift
            time.sleep(options.wait_ms / 1e3)
            self.send_response(200)
            self.send_header("Content-Length", str(row.nbytes))
            self.end_headers()
            self.wfile.write(row.tobytes())

        def log_message(self, *words: Any) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
