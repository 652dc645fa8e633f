#!/usr/bin/env bash
# A Debian arm64 root with Python, wheels and a cross-compiled llama.cpp. Nothing in it runs while it is made.
#   build_root.sh ROOT LLAMA_CPP   for example: build_root.sh /tmp/arm64 llama-cpp-python==0.3.36
# Debian has what it needs: apt-get install debootstrap qemu-user-static g++-aarch64-linux-gnu cmake ninja-build
# About 20 minutes on two cores, of which llama.cpp takes most; 1.5 GB. Fetches from Debian and PyPI.
# No chroot and no binfmt_misc: a package is only unpacked, and qemu finds libraries under ROOT (`-L`).
set -euo pipefail
root=$(realpath -m "$1") llama_cpp=$2
site=$root/opt/site
work=$root.work
mkdir -p "$work"
for program in debootstrap qemu-aarch64-static aarch64-linux-gnu-g++ cmake ninja; do
    command -v "$program" > /dev/null || { echo "$program is missing: see the top of $0" >&2; exit 2; }
done

echo "Debian bookworm, arm64 (Python 3.11, glibc 2.36)"
debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,libgomp1,libstdc++6 bookworm "$root" \
    http://deb.debian.org/debian > "$work/debootstrap.log"
for package in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done

# onnxruntime 1.23.2 is the newest for Python 3.10 (JetPack 6); 1.30 and 1.32 die here as they read the host's sysfs.
echo "wheels for aarch64, from PyPI: what the core and `verify` need, and llama-cpp-python's own"
python3 - <<'PY' > "$work/requirements.txt"
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(*project["dependencies"], "onnxruntime==1.23.2", "onnx", "jinja2", "diskcache", sep="\n")
PY
python3 -m pip install -q --target "$site" --only-binary=:all: --python-version 3.11 \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    -r "$work/requirements.txt"

echo "$llama_cpp, compiled by g++ for armv8.2-a with dotprod and fp16 (the Cortex-A78AE of an Orin)"
python3 -m pip download -q --no-deps --no-binary :all: -d "$work" "$llama_cpp"
tar -C "$work" -xf "$work"/llama_cpp_python-*.tar.gz
cd "$work"/llama_cpp_python-*/
# The flags that leave things out come from tinyllava_edge/install.py (CMAKE_ARGS).
cmake -S . -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
    -DSKBUILD_PLATLIB_DIR="$site" ${CMAKE_ARGS:-} \
    -DGGML_NATIVE=OFF -DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16 > "$work/cmake.log"
cmake --build "$work/build" >> "$work/cmake.log"
cmake --install "$work/build" >> "$work/cmake.log"
cp -r llama_cpp/*.py "$site/llama_cpp/"
touch "$root/ready"
