"""The notebook runs from top to bottom, and is committed with outputs.

    python tests/test_notebook.py    # after a change: executes it and writes its outputs, to be committed
"""
import importlib.util
import json
import os
import re
from pathlib import Path

import nbformat
import pytest
import torch
from matplotlib.text import Text
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / 'visualize-attention.ipynb'


def execute():
    """The notebook with new outputs, from a kernel that starts in the repository."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, startup_timeout=300, kernel_name='python3', record_timing=False,
        coalesce_streams=True, resources={'metadata': {'path': str(ROOT)}})
    environment = {name: value for name, value in os.environ.items() if name != 'PHOTO'}
    client.execute(env=environment)
    return notebook


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def kinds(cell):
    """What its outputs are."""
    return [output.get('name') or sorted(output.get('data', [])) for output in cell.outputs]


@pytest.mark.slow
def test_runs_from_top_to_bottom(tmp_path, monkeypatch):
    for name in ('JUPYTER_RUNTIME_DIR', 'JUPYTER_CONFIG_DIR', 'IPYTHONDIR'):  # they leave files there
        monkeypatch.setenv(name, str(tmp_path / name))
    executed, committed = execute(), nbformat.read(NOTEBOOK, as_version=4)
    assert [kinds(cell) for cell in code(executed)] == [kinds(cell) for cell in code(committed)]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the code of its cells in this process; gives what they print, and the texts of their figures."""
    from tools import visualize

    def run(**changed):
        """changed: variables of the first cell."""
        monkeypatch.chdir(ROOT)
        figures, draw = [], visualize.figure

        def figure(*arguments, **more):
            figures.append(draw(*arguments, **more))
            return figures[-1]

        monkeypatch.setattr(visualize, 'figure', figure)
        settings, *cells = code(nbformat.read(NOTEBOOK, as_version=4))
        names = {}
        exec(settings.source, names)
        assert changed.keys() <= names.keys()
        names |= changed
        for cell in cells:
            exec(re.sub('^%.*', '', cell.source, flags=re.MULTILINE), names)
        texts = [' '.join(text.get_text() for text in figure.findobj(Text)) for figure in figures]
        return capsys.readouterr().out, texts

    return run


def test_your_photo(run, tmp_path, monkeypatch):
    monkeypatch.delenv('PHOTO', raising=False)
    Image.linear_gradient('L').save(tmp_path / 'mine.png')
    out, figures = run(PHOTO=str(tmp_path))
    assert 'scikit-image' not in out
    assert len(figures) == 4 and all('mine' in figure for figure in figures[:3])
    assert len(re.findall(r'group \d: loss +\d+\.\d+   cosine 0\.\d+', out)) == 6


def test_without_a_photo(run, monkeypatch):
    monkeypatch.delenv('PHOTO', raising=False)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'skimage' else find(name))
    out, figures = run()
    assert 'There is no photo' in out and 'Chelsea' not in out and 'shape' in figures[0]


def test_the_photo_of_scikit_image(run, monkeypatch):
    """It is in the package: there is nothing to download."""
    pytest.importorskip('skimage')
    monkeypatch.delenv('PHOTO', raising=False)
    monkeypatch.setattr(torch.hub, 'download_url_to_file', None)
    out, figures = run()
    assert 'CC0' in out and all('Chelsea' in figure for figure in figures[:3])


def test_committed_with_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [bool(cell.outputs) for cell in cells] == [False] + [True] * (len(cells) - 1)  # settings first
    assert sum('image/png' in kind for cell in cells for kind in kinds(cell)) == 4
    assert 'image/png' in kinds(cells[1])[-1]  # it opens with a figure
    outputs = [output.output_type for cell in cells for output in cell.outputs]
    assert set(outputs) <= {'stream', 'execute_result'}
    assert {output.name for cell in cells for output in cell.outputs if 'name' in output} <= {'stdout'}
    assert not any(cell.metadata for cell in notebook.cells)


def test_committed_outputs_are_small_and_tell_nothing_of_a_machine():
    content = NOTEBOOK.read_text()
    assert len(content) < 400_000
    content = re.sub(r'"image/png": "[^"]*"', '"image/png": ""', content)
    assert not re.search(r'/(home|root|tmp|work|Users|usr|opt)/|[A-Z]:\\\\|20\d\d-\d\d-\d\dT', content)
    assert json.loads(content)['metadata'].keys() <= {'kernelspec', 'language_info'}


if __name__ == '__main__':
    nbformat.write(execute(), NOTEBOOK)
    print(f'{NOTEBOOK.name}: {NOTEBOOK.stat().st_size} bytes')
