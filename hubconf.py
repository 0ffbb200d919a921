"""Entry points of torch.hub: trained networks as modules, `logits, groups = model(x)`.

    model = torch.hub.load('.', 'resnet18_at', weights='resnet-18-at-export.pth', source='local')

`weights` is a file or an address, in any form that `resnet.load` reads. The modules are in evaluation mode.
Images for ImageNet are RGB in [0, 1], normalised by mean (0.485, 0.456, 0.406) and standard deviation
(0.229, 0.224, 0.225), 224 x 224, cut from the middle after the shorter side was brought to 256.
"""
import resnet as _resnet
import utils as _utils
from weights import networks as _networks

dependencies = ['torch']


def resnet18_at(weights: str) -> _utils.Module:
    """The published student, trained with attention transfer (29.3 / 10.0 % error): resnet-18-at-export."""
    return _load(weights, 'pre-activation ResNet-18')


def resnet34_folded(weights: str) -> _utils.Module:
    """The published teacher (26.7 / 8.7 % error): resnet-34-export, or another ResNet-34, which is folded."""
    return _load(weights, 'folded ResNet-34')


def wide_resnet(weights: str) -> _utils.Module:
    """A wide ResNet for CIFAR, of a run or a file, folded or not."""
    return _load(weights, 'WRN-')


def nin(weights: str) -> _utils.Module:
    """A Network-in-Network for CIFAR, of a run or a file, folded or not."""
    return _load(weights, 'NIN')


def _load(weights: str, kind: str) -> _utils.Module:
    f, params = _resnet.load(weights)
    if kind.startswith('folded'):
        f, params = _networks.network(_resnet.fold(params))
    found = _networks.describe(params)
    if kind not in found:
        raise _utils.InputError(f'{weights} holds a {found}, not a {kind.rstrip("-")}')
    return _utils.Module(f, params).eval()
