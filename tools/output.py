"""Files that the tools write: options that name them, pictures, and writing as a whole or not at all."""
import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training import checkpoint, options
from utils import InputError

PICTURES = {'.png': None, '.svg': {'Date': None}, '.pdf': {'CreationDate': None}}  # metadata without dates


def file(*endings: str) -> Callable[[str], Path]:
    """The type of an option that names a file to write, with one of these endings if there are any."""
    def convert(name: str) -> Path:
        if endings and Path(name).suffix not in endings:
            raise argparse.ArgumentTypeError(f'{name!r} does not end in {", ".join(endings)}')
        return options.file(name)
    return convert


picture = file(*PICTURES)


def write(path: Path, content: bytes) -> None:
    try:
        checkpoint.write_atomically(path, content)
    except OSError as e:
        raise InputError(f'cannot write {path}: {e.strerror}') from None


def drawn(figure: Any, ending: str) -> bytes:
    """The content of a picture file of a matplotlib figure, the same bytes every time."""
    from matplotlib import rc_context
    content = io.BytesIO()
    with rc_context({'svg.hashsalt': 'fixed', 'svg.fonttype': 'none'}):
        figure.savefig(content, format=ending[1:], dpi=150, metadata=PICTURES[ending])
    return content.getvalue()
