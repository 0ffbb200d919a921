"""A trained network in the exported form, without BN, as a file for other programs.

    python -m tools.export logs/resnet_16_1 wrn-16-1.onnx
    python -m tools.export torchvision:resnet34 resnet-34-export.hkl

The ending says the format: .pth, .hkl and .safetensors hold tensors by name, for `resnet.load` and others;
.onnx holds the network, from `image` (N, 3, 32, 32), for ImageNet (N, 3, 224, 224), to `logits` (N, classes),
for any N. What was written is loaded again, and kept only if it gives the logits of the network it came from.

The file names the data set of the run, so that an evaluation on another one is refused: .safetensors and
.onnx in their metadata, .hkl in an attribute of the file, .pth in an attribute `dataset` of its dictionary,
which is an OrderedDict as the state of a module is. A key of its own would break readers that expect tensors
only, and a file next to it would be lost.
"""
import argparse
import hashlib
import json
import sys
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import resnet
from layers import Network, Params
from training import checkpoint, exits, options
from utils import InputError
from weights import networks

TOLERANCE = 1e-4  # of logits, relative to the largest if that is above 1
OPSET = 17  # of ONNX
PACKAGES = {'.pth': 'torch', '.hkl': 'hickle', '.safetensors': 'safetensors', '.onnx': 'onnx onnxruntime'}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Write a trained network, BN folded into its convolutions, for other programs.')
    parser.add_argument('source', type=options.path, metavar='RUN',
                        help='a run, file of weights, or torchvision:resnet34')
    parser.add_argument('out', type=_out, metavar='OUT', help=f'file to write: {", ".join(PACKAGES)}')
    return parser.parse_args(arguments)


def main() -> None:
    opt = parse(sys.argv[1:])
    if opt.out.exists():
        raise InputError(f'{opt.out} is there already: remove it, or name another file')
    if not opt.out.parent.is_dir():
        raise InputError(f'there is no folder {opt.out.parent} to write {opt.out.name} to: make it first')
    f, params = resnet.load(opt.source)
    print(f'{opt.source}: {networks.describe(params)}')
    try:
        content, deviation = export(f, params, opt.out.suffix, checkpoint.dataset_of(opt.source))
    except ImportError as e:
        needed = PACKAGES[opt.out.suffix]
        raise InputError(f'{opt.out.suffix} needs packages ({e}): pip install {needed}') from None
    try:
        checkpoint.write_atomically(opt.out, content)
    except OSError as e:
        raise InputError(f'cannot write {opt.out}: {e.strerror}') from None
    print(f'{opt.out}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}, '
          f'largest deviation of its logits {deviation:.1e}')


def _out(name: str) -> Path:
    if Path(name).suffix not in PACKAGES:
        raise argparse.ArgumentTypeError(f'{name!r} does not end in {", ".join(PACKAGES)}')
    return options.file(name)


def export(f: Network, params: Params, suffix: str, dataset: str | None = None) -> tuple[bytes, float]:
    """Content of a file with the exported form of a network, and how far its logits are from the network's.

    InputError if that is more than TOLERANCE; ImportError without the packages of the format.
    """
    folded = resnet.fold(params)
    images = _images(params)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f'export{suffix}')
        write, load = FORMATS[suffix]
        write(folded, path, images[0], dataset)
        loaded = load(path)
        deviations = [_deviation(loaded(x), f(x, params, False)[0]) for x in images]
        deviation = torch.tensor(deviations).max().item()  # what is no number stays
        if not deviation <= TOLERANCE:
            raise InputError(f'nothing is written: as {suffix} the logits of the network change by '
                             f'{deviation:.1e}, more than {TOLERANCE:g}')
        return path.read_bytes(), deviation


def _images(params: Params) -> list[Tensor]:
    """Noise in two sizes of batches, which shows an ONNX file whether it takes any."""
    size = networks.image_size(params)
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, size, size, generator=draw) for n in (2, 3)]


def _deviation(logits: Tensor, expected: Tensor) -> float:
    if logits.shape != expected.shape:
        return float('inf')
    return ((logits - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


# --- formats ---------------------------------------------------------------------------------------------

Load = Callable[[Path], Callable[[Tensor], Tensor]]  # of a file, a function from images to logits


def _write_pth(params: Params, path: Path, image: Tensor, dataset: str | None) -> None:
    state: Any = OrderedDict(params)
    if dataset:
        state.dataset = dataset
    torch.save(state, path)


def _write_hkl(params: Params, path: Path, image: Tensor, dataset: str | None) -> None:
    import h5py
    import hickle
    hickle.dump({name: t.numpy() for name, t in params.items()}, str(path), mode='w')
    if dataset:
        with h5py.File(path, 'a') as f:
            f.attrs['dataset'] = np.bytes_(dataset.encode())


def _write_safetensors(params: Params, path: Path, image: Tensor, dataset: str | None) -> None:
    from safetensors.torch import save
    content = save(params, metadata={'format': 'pt'})  # which readers ask for
    if dataset:  # added here, since `save` writes two entries in any order
        end = 8 + int.from_bytes(content[:8], 'little')
        header = json.loads(content[8:end])
        header['__metadata__']['dataset'] = dataset
        text = json.dumps(header, separators=(',', ':')).encode()
        text += b' ' * (-len(text) % 8)
        content = len(text).to_bytes(8, 'little') + text + content[end:]
    path.write_bytes(content)


def _write_onnx(params: Params, path: Path, image: Tensor, dataset: str | None) -> None:
    import onnx
    network = Logits(*networks.network(params)).eval()
    with warnings.catch_warnings(action='ignore'):  # of TorchScript's age; its follower needs more packages
        torch.onnx.export(
            network, (image,), str(path), input_names=['image'], output_names=['logits'], opset_version=OPSET,
            dynamic_axes={'image': {0: 'batch'}, 'logits': {0: 'batch'}}, dynamo=False)
    if dataset:
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {'dataset': dataset})
        onnx.save(model, path)


class Logits(networks.Module):
    """A network as a module of one output."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image)[0]


def _load_tensors(path: Path) -> Callable[[Tensor], Tensor]:
    f, params = resnet.load(path)
    return lambda x: f(x, params, False)[0]


def _load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda x: torch.from_numpy(session.run(['logits'], {'image': x.numpy()})[0])


FORMATS: dict[str, tuple[Callable[[Params, Path, Tensor, str | None], None], Load]] = {
    '.pth': (_write_pth, _load_tensors), '.hkl': (_write_hkl, _load_tensors),
    '.safetensors': (_write_safetensors, _load_tensors), '.onnx': (_write_onnx, _load_onnx)}


if __name__ == '__main__':
    exits.script(main)
