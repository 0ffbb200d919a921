"""What README.md, CONTRIBUTING.md and docs say is so: commands parse, links lead to something, code runs."""
import importlib
import itertools
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.distributed import run as torchrun

import resnet
from helpers import ROOT, code_blocks

DOCUMENTS = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(ROOT.glob('docs/*.md'))]


def commands() -> list[str]:
    """Lines of shell blocks: scripts of this repository, or make. Those for a new loss are run elsewhere."""
    texts = [block for path in DOCUMENTS if path.name != 'CONTRIBUTING.md'
             for block in code_blocks(path, 'sh')]
    found = [line.split('#')[0].strip() for text in texts for line in text.splitlines() if line.strip()]
    assert len(found) > 30
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


def slugs(path: Path) -> set[str]:
    """The anchors that GitHub gives to a document's headings."""
    titles = re.findall(r'^#+ (.+)$', path.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path):
    targets = re.findall(r'(?:\]\(|src=")([^)"]+)', path.read_text())
    links = [target for target in targets if '://' not in target]
    if path.name == 'CONTRIBUTING.md':  # its table of files
        links += re.findall(r'^\| `([^`]+)`', path.read_text(), re.MULTILINE)
    broken = []
    for link in links:
        name, _, heading = link.partition('#')
        file = path.parent / name if name else path
        if not file.exists() or heading and heading not in slugs(file):
            broken.append(link)
    assert broken == []


def test_reports_have_tests():
    """Each line of the table of public reports names a test that exists."""
    lines = (ROOT / 'docs/reliability.md').read_text().partition('| report |')[2].splitlines()[2:]
    rows = list(itertools.takewhile(str.strip, lines))
    assert len(rows) > 27
    for row in rows:
        file, name = re.fullmatch(r'.*\| `(\w+)::(\w+)` \|', row).groups()
        assert f'def test_{name}(' in (ROOT / f'tests/test_{file}.py').read_text(), row


def test_the_readme_is_one_page():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 200


def test_what_an_evaluation_prints_is_that_of_the_weights():
    """--check compares the table of the weights with their logs."""
    printed = [line for block in code_blocks(ROOT / 'README.md', 'text') for line in block.splitlines()]
    weights = (ROOT / 'results' / 'weights' / 'README.md').read_text()
    assert printed and all(f'`{line}`' in weights for line in printed)
    evaluated = re.findall('--evaluate --student_params (\\S+)', (ROOT / 'README.md').read_text())
    assert [line.partition(':')[0] for line in printed] == [run for run in evaluated if 'results' in run]


CODE = [(path, i) for path in DOCUMENTS if path.name != 'CONTRIBUTING.md'  # test_contributing.py
        for i in range(len(code_blocks(path, 'python')))]


@pytest.mark.parametrize(('path', 'i'), CODE, ids=lambda value: getattr(value, 'name', value))
def test_code_runs(path, i, tmp_path, monkeypatch, capsys):
    """In a folder with what the code names: a photo, and exported weights that see one class everywhere."""
    code = code_blocks(path, 'python')[i]
    if 'hub.load' in code:
        monkeypatch.chdir(ROOT)
    else:
        monkeypatch.chdir(tmp_path)
        shapes = resnet.pre_activation_params((2, 2, 2, 2), (64, 64, 128, 256, 512), 1000)
        params = {name: torch.zeros_like(t) for name, t in shapes.items()}
        params['fc.bias'][285] = 9
        torch.save(params, 'resnet-18-at-export.pth')
        Image.new('RGB', (300, 260)).save('photo.jpg')
    names = {}
    exec(code, names)
    if 'loss.backward()' in code:
        student = names['student']
        leaves = [student] if isinstance(student, torch.Tensor) else [
            t for t in student.values() if t.requires_grad]
        assert leaves and all(t.grad is not None and t.grad.abs().sum() > 0 for t in leaves)
    elif 'photo.jpg' in code:
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 5 and lines[0].split('%') == [' 89.0 ', '  Egyptian cat']
        assert [tuple(g.shape[1:]) for g in names['groups']] == [
            (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
    else:
        assert names['logits'].shape == (1, 10) and len(names['groups']) == 3
