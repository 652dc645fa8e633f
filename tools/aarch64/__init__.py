"""A Debian arm64 root on any x86-64 machine, and nano in it under qemu-user."""
