"""Trees of files as machines that nobody here has show them, from published logs and sources.

Device trees, releases, clocks, rails: docs/sources/tensorrt.md#jetson-files and #clocks-and-rails. Sizes of
memory are those of recorded `tegrastats` lines. What is installed is what docs/jetson.md installs.
"""

from collections.abc import Iterable

Files = dict[str, str]

CORE = """processor\t: {number}
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: {part}
"""
X86 = """processor\t: {number}
model name\t: AMD Ryzen 7 7700X 8-Core Processor
flags\t\t: fpu sse2 avx avx2 fma f16c bmi2 avx512f avx512bw avx512vl avx512_vbmi avx512_vnni avx512_bf16
"""
_OURS = ("tinyllava-edge", "numpy", "pillow", "tokenizers", "pydantic")
_VERSIONS = {
    "tinyllava-edge": "0.1.0",
    "numpy": "2.2.6",
    "pillow": "12.3.0",
    "tokenizers": "0.23.3",
    "pydantic": "2.14.4",
    "onnxruntime": "1.23.2",
    "onnxruntime-gpu": "1.23.0",
    "llama-cpp-python": "0.3.36",
    "nvidia-cuda-runtime": "13.0.96",
    "tensorrt-rtx-cu13": "1.7.1.116",
}


def cpu(count: int, text: str = CORE, part: str = "0xd42") -> Files:
    return {"proc/cpuinfo": "\n".join(text.format(number=number, part=part) for number in range(count))}


def memory(total_kb: int, available_kb: int, swap_kb: int, cma_kb: int | None = None) -> Files:
    cma = "" if cma_kb is None else f"CmaTotal: {cma_kb} kB\n"
    text = f"MemTotal: {total_kb} kB\nMemAvailable: {available_kb} kB\nSwapTotal: {swap_kb} kB\n{cma}"
    return {"proc/meminfo": text}


def board(model: str, compatible: Iterable[str], release: str, kernel: str) -> Files:
    major, _, revision = release.partition(".")
    return {
        "proc/device-tree/model": f"{model}\0",
        "proc/device-tree/compatible": "".join(f"nvidia,{name}\0" for name in compatible),
        "etc/nv_tegra_release": f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: generic\n",
        "proc/sys/kernel/osrelease": f"{kernel}\n",
        "dev/nvhost-gpu": "",
        "usr/bin/tegrastats": "",
        "usr/bin/c++": "",
        "usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1": "",
    }


def modes(current: int, *names: str) -> Files:
    conf = "".join(f"< POWER_MODEL ID={number} NAME={name} >\n" for number, name in enumerate(names))
    return {"etc/nvpmodel.conf": conf, "var/lib/nvpmodel/status": f"pmode:{current:04} fmode:quiet\n"}


def clocks(gpu: str, gpu_hz: tuple[int, int, int], cpu_khz: tuple[int, int, int]) -> Files:
    """Each now, least and most."""
    names = ("cur", "min", "max")
    policy = "sys/devices/system/cpu/cpufreq/policy0/scaling"
    return {
        **{f"sys/class/devfreq/{gpu}/{name}_freq": f"{hz}\n" for name, hz in zip(names, gpu_hz, strict=True)},
        **{f"{policy}_{name}_freq": f"{khz}\n" for name, khz in zip(names, cpu_khz, strict=True)},
    }


def rails(*names: str) -> Files:
    folder = "sys/class/hwmon/hwmon1"
    return {f"{folder}/name": "ina3221\n"} | {
        f"{folder}/{file}": text
        for number, name in enumerate(names, start=1)
        for file, text in (
            (f"in{number}_label", f"{name}\n"),
            (f"in{number}_input", "4968\n"),
            (f"curr{number}_input", "912\n"),
        )
    }


def toolkit(version: str, *, compiler: bool = True, target: str = "aarch64-linux") -> Files:
    """CUDA as NVIDIA's packages put it there; without its compiler, what a fresh JetPack's runtime has."""
    folder = f"usr/local/cuda-{'.'.join(version.split('.')[:2])}"
    files = {
        f"{folder}/targets/{target}/lib/libcudart.so.{version}": "",
        f"{folder}/version.json": f'{{"cuda": {{"version": "{version}"}}}}',
    }
    if compiler:
        files |= {
            f"{folder}/{name}": "" for name in ("bin/nvcc", "include/cuda_runtime.h", "include/cublas_v2.h")
        }
    return files


def packages(place: str, *names: str) -> Files:
    """Python packages as pip leaves them."""
    return {
        f"{place}/{name.replace('-', '_')}-{_VERSIONS[name]}.dist-info/METADATA": (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {_VERSIONS[name]}\n"
        )
        for name in names
    }


def apt_tensorrt(python: str, version: str) -> Files:
    folder = f"usr/lib/python{python}/dist-packages/tensorrt-{version}.dist-info"
    return {f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {version}\n"}


def installed(python: str, *, gpu: bool = True) -> Files:
    """The environment of docs/jetson.md, with what computes on the GPU, or with wheels for the CPU."""
    place = f"home/user/tinyllava/lib/python{python}/site-packages"
    names = (*_OURS, "llama-cpp-python", "onnxruntime-gpu" if gpu else "onnxruntime")
    files = packages(place, *names) | {
        f"{place}/llama_cpp/lib/libllama.so": "",
        f"{place}/onnxruntime/capi/libonnxruntime.so.1.23.2": "",
    }
    if gpu:
        files |= {
            f"{place}/llama_cpp/lib/libggml-cuda.so": "",
            f"{place}/onnxruntime/capi/libonnxruntime_providers_cuda.so": "",
        }
    return files


ORIN_NANO_NAMES = ("p3768-0000+p3767-0005-super", "p3767-0005", "tegra234")
ORIN_NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
SUPER_MODES = ("15W", "25W", "MAXN_SUPER", "7W")
CUDNN9 = {"usr/lib/aarch64-linux-gnu/libcudnn.so.9.3.0": ""}

ORIN_NANO_6_2 = {
    **cpu(6),
    **memory(7_802_880, 6_100_000, 3_901_440, cma_kb=972_800),
    **board(ORIN_NANO, ORIN_NANO_NAMES, "36.4.3", "5.15.148-tegra"),
    **modes(2, *SUPER_MODES),
    **clocks("17000000.gpu", (1020000000, 1020000000, 1020000000), (1728000, 1728000, 1728000)),
    **rails("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"),
    **toolkit("12.6.68"),
    **CUDNN9,
    **apt_tensorrt("3.10", "10.3.0"),
    **installed("3.10"),
}
FRESH = {
    **cpu(6),
    **memory(7_802_880, 6_100_000, 0, cma_kb=262_144),
    **board(ORIN_NANO, ORIN_NANO_NAMES, "36.4.3", "5.15.148-tegra"),
    **modes(0, *SUPER_MODES),
    **clocks("17000000.gpu", (306000000, 306000000, 612000000), (729600, 729600, 1510400)),
    **rails("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"),
    "usr/lib/python3.10/os.py": "",
}
CPU_WHEELS = {
    **{name: text for name, text in ORIN_NANO_6_2.items() if "/tinyllava/" not in name},
    **installed("3.10", gpu=False),
    **packages("home/user/tinyllava/lib/python3.10/site-packages", "nvidia-cuda-runtime"),
    "home/user/tinyllava/lib/python3.10/site-packages/nvidia/cu13/lib/libcudart.so.13": "",
}
AGX_ORIN = {
    **cpu(12),
    **memory(64_328_704, 59_900_000, 32_163_840, cma_kb=1_048_576),
    **board(
        "NVIDIA Jetson AGX Orin Developer Kit",
        ("p3737-0000+p3701-0005", "p3701-0005", "tegra234"),
        "36.4.7",
        "5.15.148-tegra",
    ),
    **modes(0, "MAXN", "MODE_15W", "MODE_30W", "MODE_50W"),
    **clocks("17000000.gpu", (306000000, 306000000, 1300500000), (729600, 729600, 2201600)),
    **rails("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "NC"),
    **toolkit("12.6.68"),
    **apt_tensorrt("3.10", "10.3.0"),
    **installed("3.10"),
}
THOR = {
    **cpu(14, part="0xd83"),
    **memory(128_767_000, 122_000_000, 0),
    **board(
        "NVIDIA Jetson AGX Thor Developer Kit",
        ("p4071-0000+p3834-0008", "p3834-0008", "tegra264"),
        "38.4.0",
        "6.8.12-tegra",
    ),
    **modes(1, "MAXN", "120W"),
    **clocks("gpu-gpc-0", (314000000, 314000000, 1575000000), (972000, 972000, 2601000)),
    **toolkit("13.0.48"),
    **apt_tensorrt("3.12", "10.13.3.9"),
    **installed("3.12"),
    "usr/lib/aarch64-linux-gnu/libcudnn.so.9.12.0": "",
    "dev/nvgpu/igpu0": "",
}
ORIN_NANO_7_2 = {
    **{
        name: text
        for name, text in ORIN_NANO_6_2.items()
        if not name.startswith(("home", "usr/local", "usr/lib"))
    },
    **board(ORIN_NANO, ORIN_NANO_NAMES, "39.2.0", "6.8.12-tegra"),
    **toolkit("13.2.75"),
    **apt_tensorrt("3.12", "10.16.2.10"),
    **installed("3.12"),
    "usr/lib/aarch64-linux-gnu/libcudnn.so.9.20.0": "",
}
JETPACK_5 = {
    **cpu(12),
    **memory(31_285_248, 28_500_000, 15_642_624),
    **board(
        "Jetson AGX Orin Developer Kit",
        ("p3737-0000+p3701-0000", "p3701-0000", "tegra234"),
        "35.4.1",
        "5.10.120-tegra",
    ),
    **modes(0, "MAXN", "MODE_15W"),
    **toolkit("11.4.298"),
    **apt_tensorrt("3.8", "8.5.2.2"),
}
UNKNOWN = {
    **cpu(16, part="0xd99"),
    **memory(65_000_000, 60_000_000, 0),
    **board(
        "NVIDIA Jetson Future Kit",
        ("p9000-0000+p9001-0001", "p9001-0001", "tegra301"),
        "41.1.2",
        "7.1.0-tegra",
    ),
    "usr/lib/python3.14/os.py": "",
}
CONTAINER = {
    **cpu(6),
    **memory(7_802_880, 6_100_000, 3_901_440),
    "proc/sys/kernel/osrelease": "5.15.148-tegra\n",
    ".dockerenv": "",
    **{name.replace("home/user", "opt"): text for name, text in installed("3.10", gpu=False).items()},
}
CONTAINER_WITH_GPU = {
    **CONTAINER,
    "dev/nvhost-gpu": "",
    "usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1": "",
    **toolkit("12.6.68"),
    **apt_tensorrt("3.10", "10.3.0"),
}
DESKTOP = {
    **cpu(16, X86),
    **memory(32_700_000, 27_000_000, 2_097_148),
    "proc/sys/kernel/osrelease": "6.8.0-88-generic\n",
    "proc/driver/nvidia/version": (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build\n"
    ),
    "dev/nvidiactl": "",
    "usr/bin/c++": "",
    "usr/lib/x86_64-linux-gnu/libcuda.so.1": "",
    **toolkit("13.0.48", target="x86_64-linux"),
    **installed("3.12"),
    **packages("home/user/tinyllava/lib/python3.12/site-packages", "tensorrt-rtx-cu13"),
    "home/user/tinyllava/lib/python3.12/site-packages/nvidia/cudnn/lib/libcudnn.so.9": "",
}
OLD_DRIVER = {
    **DESKTOP,
    "proc/driver/nvidia/version": (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024\n"
    ),
}
WSL = {
    **{
        name: text for name, text in DESKTOP.items() if not name.startswith(("dev", "proc/driver", "usr/lib"))
    },
    "proc/sys/kernel/osrelease": "6.6.87.2-microsoft-standard-WSL2\n",
    "dev/dxg": "",
    "usr/lib/wsl/lib/libcuda.so.1": "",
}
WSL_WITHOUT_DRIVER = {name: text for name, text in WSL.items() if "wsl/lib" not in name}
NO_GPU = {
    **cpu(16, X86),
    **memory(32_700_000, 27_000_000, 2_097_148),
    "proc/sys/kernel/osrelease": "6.8.0-88-generic\n",
    "usr/bin/c++": "",
    **installed("3.12", gpu=False),
}

TREES: dict[str, Files] = {
    "Orin Nano 8 GB Super, JetPack 6.2, as docs/jetson.md leaves it": ORIN_NANO_6_2,
    "Orin Nano 8 GB Super, JetPack 6.2, just flashed": FRESH,
    "Orin Nano 8 GB Super, JetPack 6.2, with wheels for the CPU and a CUDA 13 from PyPI": CPU_WHEELS,
    "Orin Nano 8 GB Super, JetPack 7.2": ORIN_NANO_7_2,
    "AGX Orin 64 GB, JetPack 6.2.1, without cuDNN": AGX_ORIN,
    "AGX Thor, JetPack 7.1, in its 120 W mode": THOR,
    "AGX Orin, JetPack 5.1.2": JETPACK_5,
    "A board and an L4T that nobody knows yet": UNKNOWN,
    "A container on an Orin Nano, without --runtime nvidia": CONTAINER,
    "A container on an Orin Nano that was given the GPU, and none of the board's files": CONTAINER_WITH_GPU,
    "A desktop with a GeForce card": DESKTOP,
    "The same with a driver that is too old": OLD_DRIVER,
    "WSL2 with a GeForce card": WSL,
    "WSL2 without NVIDIA's driver in Windows": WSL_WITHOUT_DRIVER,
    "A desktop without a card of NVIDIA's": NO_GPU,
}
