"""The notebook runs from top to bottom, and is committed with outputs.

    python tests/test_notebook.py    # after a change: executes it and writes its outputs, to be committed
"""
import json
import os
import re
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from torchvision import models

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / 'visualize-attention.ipynb'
# Nothing of this machine's: no photo, no data set, no download.
OFFLINE = {'PHOTO': '', 'ATTENTION_DATA': 'nowhere', 'ONLINE': ''}


def execute():
    """The notebook with new outputs, from a kernel that starts in the repository."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, kernel_name='python3', record_timing=False, coalesce_streams=True,
        resources={'metadata': {'path': str(ROOT)}})
    client.execute(env={**os.environ, **OFFLINE})
    return notebook


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def kinds(cell):
    """What its outputs are."""
    return [output.get('name') or sorted(output.get('data', [])) for output in cell.outputs]


def text(notebook):
    return ''.join(output.text for cell in code(notebook) for output in cell.outputs if 'text' in output)


def test_runs_without_anything_at_hand(tmp_path, monkeypatch):
    for name in ('JUPYTER_RUNTIME_DIR', 'JUPYTER_CONFIG_DIR', 'IPYTHONDIR'):  # they leave files there
        monkeypatch.setenv(name, str(tmp_path / name))
    executed, committed = execute(), nbformat.read(NOTEBOOK, as_version=4)
    assert [kinds(cell) for cell in code(executed)] == [kinds(cell) for cell in code(committed)]
    assert 'Drawings: ' in text(executed) and 'Skipped: ' in text(executed)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the code of its cells in this process; gives what they print, and the figures they display."""

    def run(**variables):
        for name, value in {**OFFLINE, **variables}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.chdir(ROOT)
        figures = []
        names = {'display': figures.append}
        for cell in code(nbformat.read(NOTEBOOK, as_version=4)):
            exec(cell.source.replace('%matplotlib inline', ''), names)
        return capsys.readouterr().out, figures

    return run


def test_runs_on_photos_and_on_networks_for_imagenet(run, tmp_path):
    """With random weights where torchvision's lie after a download."""
    cache, photos = tmp_path / 'hub' / 'checkpoints', tmp_path / 'photos'
    cache.mkdir(parents=True)
    photos.mkdir()
    for name in ('resnet18', 'resnet34'):
        url = models.get_model_weights(name).DEFAULT.url
        torch.save(models.get_model(name).state_dict(), cache / url.rsplit('/', 1)[1])
    for i in range(5):
        Image.linear_gradient('L').rotate(90 * i).save(photos / f'{i}.png')
    out, (figure,) = run(PHOTO=photos, ONLINE=1, TORCH_HOME=tmp_path)
    assert 'Your photos.' in out and 'Skipped' not in out
    assert {'0', 'resnet34', 'ResNet-34 of width 1', 'resnet18'} <= {t.get_text() for t in figure.texts}


def test_runs_on_cifar10(run, shared):
    out, _ = run(ATTENTION_DATA=shared / 'data')
    assert 'test images of CIFAR-10' in out and 'Skipped: it needs' in out


def test_committed_with_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [bool(cell.outputs) for cell in cells] == [False] + [True] * (len(cells) - 1)  # settings first
    assert sum('image/png' in kind for cell in cells for kind in kinds(cell)) >= 3
    outputs = [output.output_type for cell in cells for output in cell.outputs]
    assert set(outputs) <= {'stream', 'execute_result', 'display_data'}
    assert {output.name for cell in cells for output in cell.outputs if 'name' in output} <= {'stdout'}
    assert not any(cell.metadata for cell in notebook.cells)
    assert 'Drawings: ' in text(notebook) and 'Skipped: ' in text(notebook)


def test_committed_outputs_are_small_and_tell_nothing_of_a_machine():
    content = NOTEBOOK.read_text()
    assert len(content) < 2_000_000
    content = re.sub(r'"image/png": "[^"]*"', '"image/png": ""', content)
    assert not re.search(r'/(home|root|tmp|work|Users|usr|opt)/|[A-Z]:\\\\|20\d\d-\d\d-\d\dT', content)
    assert json.loads(content)['metadata'].keys() <= {'kernelspec', 'language_info'}


if __name__ == '__main__':
    nbformat.write(execute(), NOTEBOOK)
    print(f'{NOTEBOOK.name}: {NOTEBOOK.stat().st_size} bytes')
