"""What is made on a GPU and has to be freed: streams, events, recorded graphs, and buffers with two sides."""

import ctypes
from ctypes import byref, c_float, c_void_p

import numpy as np
import numpy.typing as npt

from tinyllava_edge.errors import BackendError

from .cudart import Cudart

_HOST_DEFAULT, _HOST_MAPPED = 0, 2
_TO_DEVICE, _TO_HOST = 1, 2
_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1


class Stream:
    """An order of work on the device; `handle` is what other libraries take."""

    def __init__(self, cuda: Cudart) -> None:
        self._cuda = cuda
        self.handle = cuda.pointer("cudaStreamCreateWithFlags", _NON_BLOCKING)

    def synchronize(self) -> None:
        """Wait until everything enqueued is done; reports what failed in it."""
        self._cuda.call("cudaStreamSynchronize", self.handle)

    def begin_capture(self) -> None:
        """From here to `end_capture` work is recorded, and not done."""
        self._cuda.call("cudaStreamBeginCapture", self.handle, _CAPTURE_THREAD_LOCAL)

    def end_capture(self) -> int:
        """The recorded graph, which the caller destroys."""
        found = c_void_p()
        self._cuda.call("cudaStreamEndCapture", self.handle, byref(found))
        return found.value or 0

    def abandon_capture(self) -> None:
        """End a capture that failed, and throw away what it recorded."""
        if recorded := self.end_capture():
            self._cuda.call("cudaGraphDestroy", recorded)

    def close(self) -> None:
        """Destroy it."""
        handle, self.handle = self.handle, 0
        if handle:
            self._cuda.call("cudaStreamDestroy", handle)


class Event:
    """A mark in a stream, which says when it was reached."""

    def __init__(self, cuda: Cudart) -> None:
        self._cuda = cuda
        self._handle = cuda.pointer("cudaEventCreate")

    def record(self, stream: Stream) -> None:
        """Put the mark behind what is enqueued."""
        self._cuda.call("cudaEventRecord", self._handle, stream.handle)

    def ms_since(self, start: "Event") -> float:
        """Milliseconds on the device since another mark; both must have been reached."""
        found = c_float()
        self._cuda.call("cudaEventElapsedTime", byref(found), start._handle, self._handle)
        return found.value

    def close(self) -> None:
        """Destroy it."""
        handle, self._handle = self._handle, 0
        if handle:
            self._cuda.call("cudaEventDestroy", handle)


class Graph:
    """Work recorded on a stream, to be launched again by one call."""

    def __init__(self, cuda: Cudart, stream: Stream) -> None:
        """End the stream's capture and make what was recorded launchable."""
        self._cuda = cuda
        self._stream = stream
        recorded = stream.end_capture()
        try:
            self._handle = cuda.pointer("cudaGraphInstantiateWithFlags", recorded, 0)
        finally:
            cuda.call("cudaGraphDestroy", recorded)

    def launch(self) -> None:
        """Enqueue all of it."""
        self._cuda.call("cudaGraphLaunch", self._handle, self._stream.handle)

    def close(self) -> None:
        """Destroy it."""
        handle, self._handle = self._handle, 0
        if handle:
            self._cuda.call("cudaGraphExecDestroy", handle)


class Buffer:
    """Host memory that the device reads in place (mapped), or that has a twin on the device (pinned).

    Attributes:
        array: the host memory [nbytes] uint8; not to be used after `close`.
        address: where the device finds it.
        device_bytes: what it takes of the device's own memory.
    """

    def __init__(self, cuda: Cudart, nbytes: int, *, mapped: bool) -> None:
        self._cuda = cuda
        self._host = cuda.pointer("cudaHostAlloc", nbytes, _HOST_MAPPED if mapped else _HOST_DEFAULT)
        self._device = 0
        try:
            if mapped:
                self.address = cuda.pointer("cudaHostGetDevicePointer", self._host, 0)
            else:
                self.address = self._device = cuda.pointer("cudaMalloc", nbytes)
        except BackendError:
            self.close()
            raise
        self.device_bytes = 0 if mapped else nbytes
        memory = (ctypes.c_uint8 * nbytes).from_address(self._host)
        self.array: npt.NDArray[np.uint8] = np.ctypeslib.as_array(memory)

    def enqueue_upload(self, nbytes: int, stream: Stream) -> None:
        """Host to device; nothing to do where the memory is mapped."""
        if self._device:
            self._cuda.call("cudaMemcpyAsync", self._device, self._host, nbytes, _TO_DEVICE, stream.handle)

    def enqueue_download(self, nbytes: int, stream: Stream) -> None:
        """Device to host, likewise."""
        if self._device:
            self._cuda.call("cudaMemcpyAsync", self._host, self._device, nbytes, _TO_HOST, stream.handle)

    def close(self) -> None:
        """Free both."""
        host, device, self._host, self._device = self._host, self._device, 0, 0
        if device:
            self._cuda.call("cudaFree", device)
        if host:
            self._cuda.call("cudaFreeHost", host)
