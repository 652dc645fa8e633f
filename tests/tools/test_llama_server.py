"""How llama.cpp's own server is configured; building it is `make peers`."""

from tinyllava_edge.install import LEFT_OUT
from tools.llama_server import cmake_flags


def test_the_server_is_built_and_nothing_else_that_the_library_leaves_out() -> None:
    flags = cmake_flags("x86_64")
    assert {"-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_BUILD_TOOLS=ON", "-DGGML_NATIVE=ON"} <= {*flags}
    left_out = {*LEFT_OUT} & {*flags}
    assert left_out == {*LEFT_OUT} - {"-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_TOOLS=OFF"}
    assert sum("-mno-amx-int8" in flag for flag in flags) == 2


def test_other_processors_have_no_amx_to_leave_out() -> None:
    assert not any("amx" in flag for flag in cmake_flags("aarch64"))
