"""The NVIDIA driver, asked directly (CUDA Driver API, libcuda.so.1): which GPUs there are, and their free memory."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from narrows.errors import DeviceError

DRIVER = "libcuda.so.1"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card that CUDA shows this process (CUDA_VISIBLE_DEVICES counts)."""

    number: int
    name: str
    total_bytes: int


def gpus() -> tuple[Gpu, ...]:
    """All of them.

    Raises:
        DeviceError: no driver is installed, or it fails.
    """
    driver = _driver()
    count = ctypes.c_int()
    _check(driver, driver.cuDeviceGetCount(ctypes.byref(count)))
    return tuple(_gpu(driver, number) for number in range(count.value))


def newest_cuda() -> str:
    """The newest CUDA version that the driver runs, such as 13.0.

    Raises:
        DeviceError: as `gpus`.
    """
    driver = _driver()
    version = ctypes.c_int()
    _check(driver, driver.cuDriverGetVersion(ctypes.byref(version)))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def free_bytes(number: int) -> int:
    """Memory of a card that nobody has taken, beside what CUDA takes for this process.

    Raises:
        DeviceError: as `gpus`; or there is no such card.
    """
    driver = _driver()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with _context(driver, number):
        _check(driver, driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
    return free.value


def _driver() -> ctypes.CDLL:
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        raise DeviceError(f"no NVIDIA driver: the shared library {DRIVER} is missing") from None
    _check(driver, driver.cuInit(0))
    return driver


def _gpu(driver: ctypes.CDLL, number: int) -> Gpu:
    device = _device(driver, number)
    name, total = ctypes.create_string_buffer(256), ctypes.c_size_t()
    _check(driver, driver.cuDeviceGetName(name, len(name), device))
    _check(driver, driver.cuDeviceTotalMem_v2(ctypes.byref(total), device))
    return Gpu(number, name.value.decode(errors="replace"), total.value)


def _device(driver: ctypes.CDLL, number: int) -> ctypes.c_int:
    device = ctypes.c_int()
    _check(driver, driver.cuDeviceGet(ctypes.byref(device), number))
    return device


@contextmanager
def _context(driver: ctypes.CDLL, number: int) -> Iterator[None]:
    """The card's primary context, which ONNX Runtime and FAISS use as well; it stays while they do."""
    device, context = _device(driver, number), ctypes.c_void_p()
    _check(driver, driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    try:
        _check(driver, driver.cuCtxPushCurrent_v2(context))
        try:
            yield
        finally:
            _check(driver, driver.cuCtxPopCurrent_v2(ctypes.byref(context)))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)


def _check(driver: ctypes.CDLL, status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        raise DeviceError(f"the NVIDIA driver fails: {(text.value or b'unknown error').decode()} ({status})")
