"""A trained network as a file for other programs, with BN folded into its convolutions.

    python -m tools.export logs/resnet_16_1 wrn-16-1.onnx
    python -m tools.export torchvision:resnet34 resnet-34-export.hkl

The ending chooses the format. .pth, .hkl and .safetensors hold tensors by name, for `resnet.load` and others.
.onnx holds the network: `image` (N, 3, 32, 32), for ImageNet (N, 3, 224, 224), to `logits` (N, classes) for
any N. The file is loaded again, and kept only if it gives the logits of the network.

A network by name (of torchvision, timm or your own file) keeps its BN, and its tensors the module's names.

The file names the data set of the run, so that an evaluation on another one is refused: .safetensors and
.onnx in their metadata, .hkl in an attribute of the file, .pth in an attribute `dataset` of its dictionary.
"""
import argparse
import hashlib
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
from modules import Functional
from tools import output
from training import checkpoint, exits, options
from utils import InputError
from weights import networks, tensors

TOLERANCE = 1e-4  # of logits, relative to the largest if that is above 1
OPSET = 17  # of ONNX
PACKAGES = {'.pth': 'torch', '.hkl': 'hickle', '.safetensors': 'safetensors', '.onnx': 'onnx onnxruntime'}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.Parser('Write a trained network for other programs, without BN.')
    parser.add_argument('source', type=options.path, metavar='RUN',
                        help='a run, a file of weights, or torchvision:resnet34')
    parser.add_argument('out', type=output.file(*PACKAGES), metavar='OUT',
                        help=f'file to write; its ending chooses the format: {", ".join(PACKAGES)}')
    options.add_run_files(parser)
    return parser.parse_args(arguments)


def main() -> None:
    opt = parse(sys.argv[1:])
    if opt.out.exists():
        raise InputError(f'{opt.out} exists already: remove it, or name another file')
    f, params = resnet.load(opt.source, opt.run_files)
    print(f'{opt.source}: {networks.describe(params, f)}')
    try:
        content, deviation = export(f, params, opt.out.suffix, checkpoint.dataset_of(opt.source))
    except ImportError as e:
        raise InputError(f'{opt.out.suffix} needs packages ({e}): '
                         f'pip install {PACKAGES[opt.out.suffix]}') from None
    output.write(opt.out, content)
    print(f'{opt.out}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}, '
          f'largest deviation of its logits {deviation:.1e}')


def export(f: Network, params: Params, suffix: str, dataset: str | None = None) -> tuple[bytes, float]:
    """Content of a file with the exported form of a network, and the largest deviation of its logits.

    InputError if the deviation is more than TOLERANCE; ImportError without the packages of the format.
    """
    size = networks.image_size(params, f)
    draw = torch.Generator().manual_seed(0)
    images = [torch.randn(n, 3, size, size, generator=draw) for n in (2, 3)]  # is any batch size accepted?
    write, load = FORMATS[suffix]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f'export{suffix}')
        write(*networks.folded(f, params), path, images[0], dataset)
        loaded = load(path, f)
        deviation = np.max([_deviation(loaded(x), f(x, params, False)[0]) for x in images])  # NaN stays NaN
        if not deviation <= TOLERANCE:
            raise InputError(f'nothing is written: as {suffix} the logits of the network change by '
                             f'{deviation:.1e}, more than {TOLERANCE:g}')
        return path.read_bytes(), deviation


def _deviation(logits: Tensor, expected: Tensor) -> float:
    if logits.shape != expected.shape:
        return float('inf')
    return ((logits - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


# --- formats ---------------------------------------------------------------------------------------------


def _write_pth(f: Network, params: Params, path: Path, image: Tensor, dataset: str | None) -> None:
    state: Any = OrderedDict(params)
    if dataset:
        state.dataset = dataset  # not an entry: readers expect tensors only
    torch.save(state, path)


def _write_hkl(f: Network, params: Params, path: Path, image: Tensor, dataset: str | None) -> None:
    import h5py
    import hickle
    hickle.dump({name: t.numpy() for name, t in params.items()}, str(path), mode='w')
    if dataset:
        with h5py.File(path, 'a') as file:
            file.attrs['dataset'] = np.bytes_(dataset.encode())


def _write_safetensors(f: Network, params: Params, path: Path, image: Tensor, dataset: str | None) -> None:
    from safetensors.torch import save_file
    save_file(params, path, {'dataset': dataset} if dataset else None)


def _write_onnx(f: Network, params: Params, path: Path, image: Tensor, dataset: str | None) -> None:
    import onnx
    network = f.module(params) if isinstance(f, Functional) else Logits(f, params).eval()
    with warnings.catch_warnings(action='ignore'):  # the successor of TorchScript needs more packages
        torch.onnx.export(
            network, (image,), str(path), input_names=['image'], output_names=['logits'], opset_version=OPSET,
            dynamic_axes={'image': {0: 'batch'}, 'logits': {0: 'batch'}}, dynamo=False)
    if dataset:
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {'dataset': dataset})
        onnx.save(model, path)


class Logits(networks.Module):
    """A network as a module with one output."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image)[0]


def _load_tensors(path: Path, f: Network) -> Callable[[Tensor], Tensor]:
    if isinstance(f, Functional):
        params = tensors.read(path)
    else:
        f, params = resnet.load(path)
    return lambda x: f(x, params, False)[0]


def _load_onnx(path: Path, f: Network) -> Callable[[Tensor], Tensor]:
    import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda x: torch.from_numpy(session.run(['logits'], {'image': x.numpy()})[0])


FORMATS = {'.pth': (_write_pth, _load_tensors), '.hkl': (_write_hkl, _load_tensors),
           '.safetensors': (_write_safetensors, _load_tensors), '.onnx': (_write_onnx, _load_onnx)}


if __name__ == '__main__':
    exits.script(main)
