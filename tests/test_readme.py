"""What README.md, CONTRIBUTING.md and docs say is so: commands parse, files exist, code runs."""
import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.distributed import run as torchrun

import resnet

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(ROOT.glob('docs/*.md'))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf'^ *```{language}\n(.*?)^ *```', path.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Lines of shell blocks: scripts of this repository, or make."""
    texts = [block for path in DOCUMENTS for block in blocks(path, 'sh')]
    found = [line.split('#')[0].strip() for text in texts for line in text.splitlines() if line.strip()]
    assert len(found) > 5
    return found


@pytest.mark.parametrize('command', commands())
def test_commands_parse(command):
    first, *arguments = shlex.split(command)
    if '=' in first:  # a variable of its environment
        first, *arguments = arguments
    if first == 'torchrun':
        found = torchrun.parse_args(arguments)
        first, arguments = 'python', [found.training_script, *found.training_script_args]
    if first == 'make':
        assert re.search(rf'^{arguments[0]}:', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    elif arguments[0] in ('cifar.py', 'imagenet.py'):
        importlib.import_module(arguments[0][:-3]).parse(arguments[1:])
    else:
        assert (first, arguments[0]) == ('python', '-m'), f'nothing checks: {command}'
        importlib.import_module(arguments[1]).parse(arguments[2:])


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path):
    links = [target for target in re.findall(r'\]\(([^)#]+)\)', path.read_text()) if '://' not in target]
    if path.name == 'CONTRIBUTING.md':  # its table of files
        links += re.findall(r'^\| `([^`]+)`', path.read_text(), re.MULTILINE)
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_losses_of_the_readme_run():
    _, code = blocks(ROOT / 'README.md', 'python')
    names = {}
    exec(code, names)
    assert names['student'].grad.abs().sum() > 0


def test_photo_of_the_readme_is_classified(tmp_path, monkeypatch, capsys):
    """By weights of the export's form that see one class everywhere."""
    code, _ = blocks(ROOT / 'README.md', 'python')
    shapes = resnet.pre_activation_params((2, 2, 2, 2), (64, 64, 128, 256, 512), 1000)
    params = {name: torch.zeros_like(t) for name, t in shapes.items()}
    params['fc.bias'][285] = 9
    monkeypatch.chdir(tmp_path)
    torch.save(params, 'resnet-18-at-export.pth')
    Image.new('RGB', (300, 260)).save('photo.jpg')
    names = {}
    exec(code, names)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].split('%') == [' 89.0 ', '  Egyptian cat']
    assert [tuple(g.shape[1:]) for g in names['groups']] == [
        (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


def test_the_loss_of_contributing_does_what_it_says():
    import torch

    import utils
    loss = next(block for block in blocks(ROOT / 'CONTRIBUTING.md', 'python') if 'def mean_loss' in block)
    names = dict(vars(utils), Tensor=torch.Tensor)
    exec('\n'.join(line[3:] for line in loss.splitlines()), names)
    x, y = torch.full((2, 3, 4, 4), 5.0), torch.full((2, 6, 2, 2), 2.0)
    assert names['mean_loss'](x, y) == 9
