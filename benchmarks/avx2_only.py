"""A copy of ONNX Runtime that believes it runs on AVX2: to time, on a newer CPU, what most CPUs do.

    python benchmarks/avx2_only.py DIRECTORY
    PYTHONPATH=DIRECTORY:$PYTHONPATH python -m ...

ONNX Runtime chooses its kernels by cpuid when it is loaded, and no setting forbids it AVX-512 or VNNI. Where Linux on
x86-64, the comparisons of the copied library that look for them are changed so that they find neither. They were found
by disassembling ONNX Runtime 1.31.1 and are searched for by their bytes; another build in which they are not found as
often as expected is refused. `perf record` shows which kernels run.
"""

import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

LIBRARY = "onnxruntime_pybind11_state*.so"
# cpuid leaf 7.1: AVX-VNNI (eax, bit 4). `cpuid; test $0x10,%al` -> `test $0,%al`
AVX_VNNI = re.compile(rb"(?<=\x0f\xa2\xa8)\x10(?=\x74)")
# cpuid leaf 7.0: AVX-512 F (ebx, bit 16), soon after that, and before it asks for the registers' state (0xe0).
AVX_512 = re.compile(rb"(?<=\x0f\xa2\xa8\x10\x74).{20,80}?\xf7[\xc0-\xc7]\x00\x00(\x01)\x00.{1,12}?\xa8\xe0", re.DOTALL)
# `cmp $0xe6,%r9d`: the state of the AVX-512 registers, for the kernels outside of MLAS.
STATE = re.compile(rb"(?<=\x41\x81\xf9)\xe6(?=\x00\x00\x00)")
EXPECTED_SITES = {"AVX-VNNI": 4, "AVX-512": 4, "register state": 2}


def patched(library: bytes) -> bytes:
    """The library with the comparisons changed.

    Raises:
        SystemExit: they are not found as often as expected.
    """
    sites = {
        "AVX-VNNI": [match.start() for match in AVX_VNNI.finditer(library)],
        "AVX-512": [match.start(1) for match in AVX_512.finditer(library)],
        "register state": [match.start() for match in STATE.finditer(library)],
    }
    found = {name: len(places) for name, places in sites.items()}
    if found != EXPECTED_SITES:
        raise SystemExit(f"this ONNX Runtime tests its CPU in other places ({found}, not {EXPECTED_SITES})")
    changed = bytearray(library)
    for place in sites["AVX-VNNI"] + sites["AVX-512"]:
        changed[place] = 0
    for place in sites["register state"]:
        changed[place] = 0xE7  # what is masked by 0xe6 never equals it
    return bytes(changed)


def main() -> None:
    """Copies the installed package into the directory named on the command line, and patches it there."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise SystemExit("onnxruntime is not installed")
    out = Path(sys.argv[1]) / "onnxruntime"
    shutil.copytree(Path(spec.origin).parent, out)
    (library,) = (out / "capi").glob(LIBRARY)
    library.write_bytes(patched(library.read_bytes()))
    print(f"put {out.parent} first on PYTHONPATH")


if __name__ == "__main__":
    main()
