"""The CUDA runtime library through ctypes: what an engine needs of it, and no package beside it.

NVIDIA's cuda-python has the same calls. It is not used because its wheels are of one CUDA each and a Jetson's
CUDA comes with its JetPack: that a wheel works beside it was tried on no board. The library itself is always
there where TensorRT is.

Signatures: cuda_runtime_api.h and driver_types.h of CUDA 12.9 and 13.5, which agree in all of these.
"""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from typing import Any

from tinyllava_edge.console import note
from tinyllava_edge.errors import CudaError, CudaMemoryError, NoGpuError, UsageError

from .cudart_places import LIBRARY_VARIABLE, cudart_places

_SUCCESS, _OUT_OF_MEMORY = 0, 2
# No driver or one too old; no GPU; library and kernel part differ; no forward compatibility on this GPU.
_UNUSABLE = (35, 100, 803, 804)
_DRIVER_TOO_OLD = (35, 803, 804)
# cudaDevAttr...: multiprocessors, integrated, maps host memory, compute capability's major and minor.
_ATTRIBUTES = (16, 18, 19, 75, 76)
_PROPERTIES_BYTES = 8192  # cudaDeviceProp: some 1 KB, by release; a name of 256 bytes comes first in all
_NAME_BYTES = 256

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cudaDriverGetVersion": (POINTER(c_int),),
    "cudaRuntimeGetVersion": (POINTER(c_int),),
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaSetDevice": (c_int,),
    "cudaGetDeviceProperties": (c_void_p, c_int),
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaHostGetDevicePointer": (POINTER(c_void_p), c_void_p, c_uint),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamDestroy": (c_void_p,),
    "cudaEventCreate": (POINTER(c_void_p),),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cudaEventDestroy": (c_void_p,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cudaGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGetLastError": (),
}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A CUDA device.

    Attributes:
        name: as the driver spells it.
        sm: compute capability without its point: 87 for 8.7.
        multiprocessors: how many there are; boards of one name differ in it.
        integrated: whether it shares the main memory, as on a Jetson.
        maps_host_memory: whether it can read pinned host memory in place.
        driver_cuda: newest CUDA that the driver knows: "12.6".
        runtime_cuda: version of the library that was loaded, likewise.
    """

    name: str
    sm: int
    multiprocessors: int
    integrated: bool
    maps_host_memory: bool
    driver_cuda: str
    runtime_cuda: str


class Cudart:
    """A loaded libcudart, with one of its devices.

    Args:
        path: of the library, or its name for the loader.
        device: number of the GPU, as CUDA counts them.

    Raises:
        OSError: there is no such library, or it is not of this machine.
        NoGpuError: it lacks a function, so it is not what it is called.
    """

    def __init__(self, path: str, device: int = 0) -> None:
        self.path = path
        self.device = device
        self._library = ctypes.CDLL(path)
        for name, arguments in _SIGNATURES.items():
            try:
                function = getattr(self._library, name)
            except AttributeError:
                raise NoGpuError(
                    f"{path}: has no {name}, so it is no CUDA runtime of ours. Is {LIBRARY_VARIABLE} right?"
                ) from None
            function.argtypes, function.restype = arguments, c_int
        self._library.cudaGetErrorString.argtypes = (c_int,)
        self._library.cudaGetErrorString.restype = c_char_p

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that returns a code.

        Raises:
            NoGpuError: no driver, one that is too old, or no device.
            CudaMemoryError: not enough memory.
            CudaError: anything else; all three with CUDA's own words.
        """
        code = getattr(self._library, name)(*arguments)
        if code == _SUCCESS:
            return
        self._library.cudaGetLastError()  # the next call is not to report this one
        said = f"{name}: {self._library.cudaGetErrorString(code).decode()} (CUDA error {code})"
        if code in _UNUSABLE:
            raise NoGpuError(self._why_unusable(code, said))
        if code == _OUT_OF_MEMORY:
            raise CudaMemoryError(
                f"the GPU has not enough memory left ({said}). Close other programs that use it; on a "
                "Jetson it shares the main memory."
            )
        raise CudaError(
            f"the GPU failed ({said}). Start again; if it stays, see the driver's messages (sudo dmesg), or "
            "take --runtime onnxruntime+llamacpp."
        )

    def read_gpu(self) -> Gpu:
        """Make the device the current one, and read what it is.

        Raises:
            UsageError: there are fewer; names those there are.
            NoGpuError, CudaError: as `call`.
        """
        count = self._integer("cudaGetDeviceCount")
        if count == 0:
            raise NoGpuError(f"{self.path}: there is no CUDA device. See tinyllava-edge doctor.")
        if self.device >= count:
            there = ", ".join(f"{number} ({self._name(number)})" for number in range(count))
            raise UsageError(f"there is no GPU {self.device}. Those there are: {there}. Give one with --gpu.")
        self.make_current()
        multiprocessors, integrated, maps_host_memory, major, minor = (
            self._integer("cudaDeviceGetAttribute", attribute, self.device) for attribute in _ATTRIBUTES
        )
        return Gpu(
            name=self._name(self.device),
            sm=10 * major + minor,
            multiprocessors=multiprocessors,
            integrated=bool(integrated),
            maps_host_memory=bool(maps_host_memory),
            driver_cuda=_version(self._integer("cudaDriverGetVersion")),
            runtime_cuda=_version(self._integer("cudaRuntimeGetVersion")),
        )

    def make_current(self) -> None:
        """Make the device the calling thread's: each thread begins with the first one."""
        self.call("cudaSetDevice", self.device)

    def pointer(self, name: str, *arguments: Any) -> int:
        """Call a function whose first argument receives a pointer or handle."""
        found = c_void_p()
        self.call(name, byref(found), *arguments)
        return found.value or 0

    def _name(self, device: int) -> str:
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self.call("cudaGetDeviceProperties", properties, device)
        return properties.raw[:_NAME_BYTES].split(b"\0")[0].decode(errors="replace")

    def _integer(self, name: str, *arguments: int) -> int:
        found = c_int()
        self.call(name, byref(found), *arguments)
        return found.value

    def _why_unusable(self, code: int, said: str) -> str:
        driver = c_int()
        self._library.cudaDriverGetVersion(byref(driver))
        if driver.value == 0:
            return f"there is no NVIDIA driver ({said}). Install it, or take --runtime onnxruntime+llamacpp."
        if code in _DRIVER_TOO_OLD:
            runtime = c_int()
            self._library.cudaRuntimeGetVersion(byref(runtime))
            return (
                f"the NVIDIA driver is too old: it knows CUDA {_version(driver.value)}, {self.path} is CUDA "
                f"{_version(runtime.value)} ({said}). Install a newer driver, or the packages for that CUDA."
            )
        return (
            f"there is a driver but no GPU ({said}). Is it hidden by CUDA_VISIBLE_DEVICES, or not given to "
            "the container?"
        )


def open_cudart(device: int = 0) -> Cudart:
    """The first CUDA runtime that finds a device; where none does, what the first one says of it.

    Raises:
        NoGpuError: no library, no driver, one that is too old for each, or no device.
        UsageError: there is no GPU of that number.
    """
    refused: dict[str, NoGpuError] = {}
    tried = []
    for path in cudart_places():
        tried.append(path)
        try:
            cuda = Cudart(path, device)
            cuda.read_gpu()
        except OSError:
            continue
        except NoGpuError as error:  # a driver too old for CUDA 13 may do for 12
            refused[path] = error
        else:
            if refused:
                note(
                    f"{len(refused) + 1} CUDA libraries are on the path: {', '.join(refused)} does not work "
                    f"with this driver, {path} does. Remove the first, or name one with {LIBRARY_VARIABLE}."
                )
            return cuda
    raise next(iter(refused.values()), None) or NoGpuError(
        f"no CUDA runtime library was found; tried {', '.join(tried)}. On a Jetson: sudo apt install "
        "cuda-cudart-12-6 (JetPack 6) or cuda-cudart-13-0 (7); elsewhere: pip install nvidia-cuda-runtime. "
        f"{LIBRARY_VARIABLE} can name its path."
    )


def _version(number: int) -> str:
    """12060 -> "12.6"."""
    return f"{number // 1000}.{number % 1000 // 10}"
