"""Target: checkpoints of networks by name, which hold how to build these networks again."""
import functools
import io
from pathlib import Path
from random import Random
from typing import Any

import torch

import resnet
from stress.fuzz import mutate
from stress.fuzz.sandbox import Target
from weights import named, networks

NAME, GROUPS, CLASSES, SIZE = 'torchvision:shufflenet_v2_x0_5', ['stage2', 'stage3'], 2, 64
MODELS = (NAME, 'torchvision:vit_h_14', 'torchvision:regnet_y_128gf', 'torchvision:vgg19',
          'torchvision:raft_large', 'torchvision:inception_v3', 'torchvision:', 'torchvision:x',
          'timm:vit_small_patch16_224', 'timm:eva_giant_patch14_224', 'timm:hf-hub:x/y', 'timm:',
          'timm:resnet18.no_such_tag', 'timm:../x', 'x.py:net', '../pipe.py:net', '/etc/x.py:net', '.py:',
          ':', '')


@functools.cache
def params() -> dict[str, torch.Tensor]:
    return named.build(NAME, CLASSES, SIZE, GROUPS)[1]


def saved(recipe: Any, tensors: dict[str, torch.Tensor] | None = None) -> bytes:
    content = io.BytesIO()
    torch.save({'params': params() if tensors is None else tensors, 'options': {'network': recipe}}, content)
    return content.getvalue()


def run_recipe(case: bytes, folder: Path) -> None:
    path = folder / 'model.pt7'
    path.write_bytes(case)
    f, found = resnet.load(path)
    networks.describe(found, f)
    f(torch.zeros(1, 3, SIZE, SIZE), found, False)


def craft_recipes() -> dict[str, bytes]:
    sound = {'model': NAME, 'groups': GROUPS, 'num_classes': CLASSES, 'size': SIZE}
    few = {'fc.weight': torch.zeros(CLASSES, 3), 'fc.bias': torch.zeros(CLASSES)}
    found = {'sound': saved(sound)}
    found |= {f'few_{i}': saved(sound | {'model': model}, few) for i, model in enumerate(MODELS)}
    found |= {f'other_{i}': saved(sound | {'model': model}) for i, model in enumerate(MODELS)}
    found |= {f'classes_{n}': saved(sound | {'num_classes': n}) for n in (-1, 0, 1, 99_999, 10**9)}
    found |= {f'size_{n}': saved(sound | {'size': n}) for n in (-1, 0, 1, 1024, 1025, 10**9)}
    found |= {f'groups_{i}': saved(sound | {'groups': groups}) for i, groups in enumerate(
        ([], ['stage2'] * 10_000, ['fc'], [''], ['nothing'], ['x' * 10_000], ['stage2.0.branch1']))}
    return found


def draw_recipe(rng: Random) -> bytes:
    sound = {'model': rng.choice(MODELS), 'groups': rng.sample((*GROUPS, 'fc', 'x', ''), 2),
             'num_classes': CLASSES, 'size': SIZE}
    if rng.random() < 0.3:
        return mutate.broken(rng, saved(sound))
    tensors = dict(params())
    for name in rng.sample(list(tensors), rng.choice((0, 0, 1, 3))):
        tensors[name] = torch.zeros([rng.randrange(4) for _ in range(rng.randrange(5))])
    return saved(mutate.changed(rng, sound) if rng.random() < 0.7 else sound, tensors)


TARGETS = [Target('recipe', craft_recipes, draw_recipe, run_recipe)]
