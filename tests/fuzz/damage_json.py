"""Damage to JSON that a parser may still take: other types, odd numbers, keys twice or gone, deep nesting."""

import json
import random
from typing import Any

from tests.fuzz.damage_bytes import Damage, bytes_damaged

# Written as they stand, so also what json.dumps would not write.
_RAW = (
    *("null", "true", "false", "0", "-1", "1", "2", "1.5", "-0.0", "1e308", "1e-320", "NaN", "Infinity"),
    *("-Infinity", "1e999", "2147483648", "9223372036854775808", "-9223372036854775809"),
    *("18446744073709551616", "1" + "0" * 400, "1" + "0" * 5000, "16777216", "1000000000", '""', '" "', "[]"),
    *("{}", "[[]]", "[null]", '{"": null}', "[0,0,0]", '["a"]', '"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"'),
    *('"\\u001b[2Jgone\\u0007"', '"\\u202ereversed"', '"../../etc/passwd"', '"/dev/zero"', '"/dev/stdin"'),
    *(
        '"~\\n"',
        '"%s %n {0} {a}"',
        '"(a+)+$"',
        '"["',
        '"nan"',
        '"12"',
        '"[bold]x[/]"',
        '"\\u2581"',
        '"<image>"',
    ),
    # Parts of a tokenizer.
    *(
        '{"Regex": "(a|aa)+$"}',
        '{"String": ""}',
        '{"Regex": "("}',
        '{"type": "Sequence"}',
        '{"type": "Fuse"}',
    ),
    '{"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated", "invert": false}',
    '{"type": "Precompiled", "precompiled_charsmap": "AAAA"}',
    '{"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}',
    '{"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7}',
    '{"type": "WordPiece", "vocab": {}, "unk_token": "x", "max_input_chars_per_word": 0}',
    '{"max_length": 1, "stride": 9, "strategy": "LongestFirst", "direction": "Left"}',
    '{"strategy": {"Fixed": 1099511627776}, "direction": "Right", "pad_to_multiple_of": 0, "pad_id": 0}',
    *('"' + "a" * 100_000 + '"', "[" * 500 + "]" * 500, "[" * 100_000 + "]" * 100_000),
    *('{"a":' * 900 + "1" + "}" * 900, "[" + "0," * 50_000 + "0]", '"\\u00e9\\u0301\\ufeff\\ufffe"'),
)
_MARK = "\u0001raw {}\u0001"
Place = tuple[Any, Any]  # a list or object, and the index or key in it


def json_damaged(rng: random.Random, content: bytes) -> bytes:
    """One to three values or keys of a document changed; sometimes its encoding or its end."""
    text = json.dumps(json.loads(content), ensure_ascii=rng.random() < 0.5)
    raw: list[str] = []
    holder = [json.loads(text)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change(rng, holder, raw)
    text = json.dumps(holder[0], ensure_ascii=True)
    for index, value in enumerate(raw):
        text = text.replace(json.dumps(_MARK.format(index)), value)
    return _encoded(rng, text.encode("utf-8", errors="surrogatepass"))


def _encoded(rng: random.Random, content: bytes) -> bytes:
    kind = rng.randrange(40)
    if kind == 0:
        return b"\xef\xbb\xbf" + content
    if kind == 1:
        return content.decode("utf-8", errors="replace").encode("utf-16")
    if kind == 2:
        return content + rng.choice((b"{}", b"\0", b"]", b"\n\n", content))
    if kind == 3:
        return content[: rng.randrange(len(content) + 1)]
    if kind == 4:
        return b""
    return bytes_damaged(rng, content) if kind <= 8 else content


def _places(value: Any) -> list[Place]:
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    else:
        return []
    return [(value, key) for key, _ in inner] + [place for _, item in inner for place in _places(item)]


def _change(rng: random.Random, holder: list[Any], raw: list[str]) -> None:
    """Each level is as likely: a long list or table deep inside would draw all changes to itself."""
    places: list[Place] = [(holder, 0)]
    while rng.random() < 0.85:
        inner = _places_directly(places[-1][0][places[-1][1]])
        if not inner:
            break
        places.append(rng.choice(inner))
    within, key = places[-1]
    value, kind = within[key], rng.randrange(12)
    if kind <= 4:
        raw.append(rng.choice(_RAW))
        within[key] = _MARK.format(len(raw) - 1)
    elif kind <= 7:
        within[key] = _nearby(rng, value)
    elif kind == 8:
        del within[key]
        if not holder:
            holder.append(None)
    elif kind == 9 and isinstance(within, dict):
        within[rng.choice((f"{key}x", "", str(key).upper(), "__class__", "type"))] = value
        if rng.random() < 0.5:
            within.pop(key, None)
    elif kind == 10:
        many = max(2, min(1000, 1_000_000 // len(json.dumps(value))))
        within[key] = rng.choice(([value], {"a": value}, [value, value], str(value), [value] * many))
    else:
        others = _places(holder)
        other, of = rng.choice(others)
        within[key] = json.loads(json.dumps(other[of]))


def _places_directly(value: Any) -> list[Place]:
    if isinstance(value, dict):
        return [(value, key) for key in value]
    return [(value, index) for index in range(len(value))] if isinstance(value, list) else []


def _nearby(rng: random.Random, value: Any) -> Any:
    """Another value of the same type, or of the one that it is often taken for."""
    if isinstance(value, bool) or value is None:
        return rng.choice((not value, int(bool(value)), str(value)))
    if isinstance(value, int):
        step = rng.choice((value + 1, value - 1, -value, value * 2, value * 1000, value // 2))
        return rng.choice((step, step, float(value), str(value), bool(value)))
    if isinstance(value, float):
        return rng.choice((value * 1000, -value, value / 1e30, int(value), str(value)))
    if isinstance(value, str):
        cut = rng.randrange(len(value) + 1)
        return rng.choice(
            (value[:cut], value + "x", value.upper(), value[::-1], value * 50, value + "\u0301")
        )
    if isinstance(value, list):
        return rng.choice((value[:-1], value + value, value[::-1], value[1:], dict(enumerate(value[:9]))))
    items = list(value.items())
    return rng.choice((dict(items[:-1]), dict(items[::-1]), [key for key, _ in items], dict(items[:1])))


def json_header_damaged(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file: its JSON header, the length before it, or any byte."""
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length], content[8 + length :]
    kind = rng.randrange(10)
    if kind <= 5:
        header = json_damaged(rng, header)
        return len(header).to_bytes(8, "little") + header + rest
    if kind == 6:
        wrong = rng.choice((0, 1, 7, length - 1, length + 1, len(content), 1 << 32, 1 << 63, (1 << 64) - 1))
        return wrong.to_bytes(8, "little") + header + rest
    if kind == 7:
        return content[:8] + header + rest[: rng.randrange(len(rest) + 1)] + rng.choice((b"", b"\0" * 9))
    return bytes_damaged(rng, content)


def resealed(damage: Damage, seal: Any) -> Damage:
    """Damage to a document that is given the right digest again, where it still is one."""

    def damaged(rng: random.Random, content: bytes) -> bytes:
        content = damage(rng, content)
        try:
            value = json.loads(content)
            return json.dumps(seal(value)).encode() if isinstance(value, dict) else content
        except (ValueError, RecursionError):
            return content

    return damaged
