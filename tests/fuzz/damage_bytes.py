"""Damage to bytes, to text, and to the files inside an archive: (random, content) -> content."""

import io
import random
import struct
import zipfile
from collections.abc import Callable

Damage = Callable[[random.Random, bytes], bytes]

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)


def place_in(rng: random.Random, size: int) -> int:
    """A position, more often near the start, where headers are."""
    return min(size - 1, int(size * rng.random() ** rng.choice((1, 4)))) if size else 0


def bytes_damaged(rng: random.Random, content: bytes) -> bytes:
    """A few bytes flipped, overwritten, cut, put in, left out or moved."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, length = place_in(rng, len(data)), rng.choice((1, 4, 16, 512))
        kind = rng.randrange(8)
        if kind <= 1 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            number = struct.pack("<Q", rng.choice(_NUMBERS))[: rng.choice((1, 2, 4, 8))]
            data[at : at + len(number)] = number if rng.random() < 0.8 else number[::-1]
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at:at] = rng.randbytes(length)
        elif kind == 5:
            del data[at : at + length]
        elif kind == 6:
            data[at:at] = data[at : at + length]
        else:
            data[at : at + length] = bytes(len(data[at : at + length]))
    return bytes(data)


_ODD_LINES = (
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b" ",
        b"  ",
        b"a",
        b"a a",
        b"a b c",
        b"\xc4\xa0 \xc4\xa0",
        b"#version",
        b"\x1b[31m",
    ),
    *(b"x" * 100_000, b"\xed\xa0\x80 a", b"\xe2\x96\x81 \xe2\x96\x81", b"null", b"[]", b"{}", b"0", b'"a"'),
)


def lines_damaged(rng: random.Random, content: bytes) -> bytes:
    """Lines left out, doubled, swapped, changed or put in."""
    if rng.random() < 0.3:
        return bytes_damaged(rng, content)
    lines = content.split(b"\n")
    for _ in range(rng.choice((1, 2, 5))):
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        kind = rng.randrange(5)
        if kind == 0:
            lines[at : at + rng.choice((1, 10))] = []
        elif kind == 1:
            lines.insert(other, lines[at])
        elif kind == 2:
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 3:
            lines[at] = rng.choice(_ODD_LINES)
        else:
            lines[at] = bytes_damaged(rng, lines[at])
        lines = lines or [b""]
    return b"\n".join(lines)


def each_line(damage: Damage) -> Damage:
    """Damage to one line of many, or to the lines as such."""

    def damaged(rng: random.Random, content: bytes) -> bytes:
        if rng.random() < 0.3:
            return lines_damaged(rng, content)
        lines = content.split(b"\n")
        at = rng.choice([at for at, line in enumerate(lines) if line])
        lines[at] = damage(rng, lines[at]).replace(b"\n", b" ")
        return b"\n".join(lines)

    return damaged


def archive_damaged(member_damage: Damage) -> Damage:
    """Damage to a zip file, or to one of the files in it, whose checksum is right again."""

    def damaged(rng: random.Random, content: bytes) -> bytes:
        if rng.random() < 0.25:
            return bytes_damaged(rng, content)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        at = rng.randrange(len(members))
        name, inside = members[at]
        kind = rng.randrange(8)
        if kind == 0:
            del members[at]
        elif kind == 1:
            members[at] = (rng.choice((name + "x", "../x", members[-1][0], name.upper())), inside)
        elif kind == 2:
            members.append((name, member_damage(rng, inside)))
        elif kind == 3:
            members[at] = (name, rng.choice(members)[1])
        else:
            members[at] = (name, member_damage(rng, inside))
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for place, (name, inside) in enumerate(members):
                if name not in [other for other, _ in members[:place]]:
                    archive.writestr(zipfile.ZipInfo(name), inside)
        return out.getvalue()

    return damaged


_HEADERS = (
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
    b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    b"{'descr': '<f4', 'fortran_order': True, 'shape': (), }",
    b"{'descr': '<U9', 'fortran_order': False, 'shape': (2, 2), }",
    b"{'descr': '<i8', 'fortran_order': False, 'shape': (0,), }",
    b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,), }",
    b"{'descr': '<c16', 'fortran_order': False, 'shape': (1, 1), }",
    b"{'descr': '<f2', 'fortran_order': False, 'shape': (65536, 65536, 65536), }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 99999999999), }",
    b"{'descr': '<f8', 'fortran_order': False, 'shape': (4, 450), }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (4L, 450L), }",
    b"{'descr': '<f4', 'shape': (), ",
    b"{'descr': '<f4\\q', 'fortran_order': False, 'shape': (0,), }",
    *(b"((((((((((", b"'''", b"1if 2else 3", b"\x00", b"[" * 5000, b"", b"{" * 3000),
    b"__import__('os').abort()",
)


def array_damaged(rng: random.Random, content: bytes) -> bytes:
    """A .npy file with another header, other values (NaN, infinite), or damaged bytes."""
    length = int.from_bytes(content[8:10], "little")
    kind = rng.randrange(4)
    if kind == 0:
        header = rng.choice(_HEADERS)
        return content[:8] + struct.pack("<H", len(header)) + header + content[10 + length :]
    if kind == 1:
        at = 10 + length + 4 * rng.randrange(max(1, (len(content) - 10 - length) // 4))
        odd = struct.pack("<f", rng.choice((float("nan"), float("inf"), -3e38, 1e-40)))
        return content[:at] + odd + content[at + 4 :]
    if kind == 2:
        return content[:10] + bytes_damaged(rng, content[10 : 10 + length]) + content[10 + length :]
    return bytes_damaged(rng, content)
