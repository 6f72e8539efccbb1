"""The driver's functions, called through a library that is built here and answers like one with two cards.

A machine without an NVIDIA driver has no real one; the calls, their arguments and what comes back are the same.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from narrows import cuda
from narrows.cuda import Gpu
from narrows.errors import DeviceError

SOURCE = r"""
#include <stddef.h>
#include <string.h>
static int retained = 0, pushed = 0;
int cuInit(unsigned flags) { return flags ? 1 : 0; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int number) { *device = 70 + number; return number < 2 ? 0 : 101; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, device == 70 ? "Small" : "Large", size);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = device == 70 ? 8589934592 : 85899345920; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(size_t)device; retained++; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { retained--; return 0; }
int cuCtxPushCurrent_v2(void *context) { pushed = (int)(size_t)context; return 0; }
int cuCtxPopCurrent_v2(void **context) { *context = NULL; pushed = 0; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    if (!pushed) return 201;
    *free = pushed == 70 ? 6442450944 : 75161927680; *total = 85899345920; return 0;
}
int cuGetErrorString(int error, const char **text) { *text = error == 101 ? "invalid device ordinal" : NULL; return 0; }
int held(void) { return retained; }
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    directory = tmp_path_factory.mktemp("driver")
    (directory / "driver.c").write_text(SOURCE)
    library = directory / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, directory / "driver.c"], check=True)
    return library


@pytest.fixture
def two_cards(driver: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    monkeypatch.setattr(cuda, "DRIVER", str(driver))
    return ctypes.CDLL(str(driver))


@pytest.mark.usefixtures("two_cards")
def test_cards_and_the_newest_cuda() -> None:
    assert cuda.gpus() == (Gpu(0, "Small", 8 * 2**30), Gpu(1, "Large", 80 * 2**30))
    assert cuda.newest_cuda() == "13.2"


def test_free_memory_is_that_of_the_card_and_its_context_is_let_go(two_cards: ctypes.CDLL) -> None:
    assert cuda.free_bytes(0) == 6 * 2**30
    assert cuda.free_bytes(1) == 70 * 2**30
    assert two_cards.held() == 0


@pytest.mark.usefixtures("two_cards")
def test_a_card_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match=r"the NVIDIA driver fails: invalid device ordinal \(101\)"):
        cuda.free_bytes(2)


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "DRIVER", "libnone.so.1")
    with pytest.raises(DeviceError, match=r"no NVIDIA driver: the shared library libnone\.so\.1 is missing"):
        cuda.gpus()
