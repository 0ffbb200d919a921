"""Odd values and broken bytes, drawn from a seeded random.Random."""
from collections.abc import Sequence
from random import Random
from typing import Any

INTS = (-1, 0, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**60, 2**62, 2**63 - 1, 2**63,
        2**64 - 1, -2**31, -2**63, 10**400)
FLOATS = (0.0, -0.0, -1.5, 0.1, 1e-320, 1e300, float('inf'), float('-inf'), float('nan'))
TEXTS = ('', ' ', '..', '../..', '/', '/etc/passwd', '../pipe', 'a' * 300, 'x' * 5000, 'new\nline', '\0',
         '\x1b[31m',
         '\u2028', '\u202e', 'ü', '\ud800', '٣', '1' * 5000, '1e400', 'nan', '%s', '{0}',
         '$(touch ../canary)',
         '`touch ../canary`', '__class__', '-', '--', '~', '~nobody_of_this_name', 'CON', '"', "'", '\\',
         '[', '[1,', '{}')


def scalar(rng: Random) -> Any:
    """A value without parts."""
    kind = rng.randrange(6)
    return (
        rng.choice(INTS) if kind < 2 else rng.choice(FLOATS) if kind == 2 else rng.choice(TEXTS) if kind < 5
            else rng.choice((None, True, False)))


def value(rng: Random, depth: int = 3) -> Any:
    """A value as JSON has them."""
    kind = rng.randrange(8) if depth else 0
    if kind < 5:
        return scalar(rng)
    n = rng.randrange(4)
    if kind < 7:
        return [value(rng, depth - 1) for _ in range(n)]
    return {rng.choice(TEXTS): value(rng, depth - 1) for _ in range(n)}


def changed(rng: Random, fields: dict[str, Any], other: Any = value) -> dict[str, Any]:
    """Fields, some of them with another value or left out."""
    fields = dict(fields)
    for name in rng.sample(list(fields), min(len(fields), rng.choice((1, 1, 1, 2, 5)))):
        if rng.random() < 0.1:
            del fields[name]
        else:
            fields[name] = other(rng)
    return fields


def broken(rng: Random, content: bytes, start: int = 0) -> bytes:
    """Bytes from `start` flipped, overwritten by borders of number ranges, cut out, doubled, cut off."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8, 30))):
        if len(content) <= start:
            break
        i, kind = rng.randrange(start, len(content)), rng.randrange(10)
        n = rng.choice((1, 2, 4, 8, 16, 100))
        if kind < 3:
            content[i] ^= 1 << rng.randrange(8)
        elif kind < 5:
            content[i] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind < 7:
            k = rng.choice((2, 4, 8))
            number = rng.choice(INTS[:-1]) % 256**k
            content[i:i + k] = number.to_bytes(k, rng.choice(('little', 'big')))
        elif kind == 7:
            del content[i:i + n]
        elif kind == 8:
            content[i:i] = content[i:i + n]
        elif rng.random() < 0.3:
            del content[i:]
        else:
            j = rng.randrange(start, len(content))
            content[i:i + n] = content[j:j + n]
    return bytes(content)


def drawn_from(bases: Sequence[bytes], rng: Random) -> bytes:
    """One of some sound files, broken."""
    return broken(rng, rng.choice(bases))


def encoded(text: str) -> bytes:
    """Text of any characters, lone surrogates too, as bytes."""
    return text.encode('utf-8', 'surrogatepass')
