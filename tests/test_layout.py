"""Imports go one way, importing does nothing, and files stay short."""
import ast
import subprocess
import sys
import textwrap

import pytest

from helpers import ROOT

# A module or package imports from lower layers only, and from its own. A new file is placed here first.
LAYERS = [
    {'utils', 'layers'},
    {'resnet', 'nin', 'modules'},
    {'method', 'inputs', 'weights'},
    {'training'},
    {'cifar', 'imagenet', 'hubconf'},
    {'tools'},
    {'stress'},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ALLOWED = {('resnet', 'weights')}  # resnet.load, which stays importable from there
# Packages that not everyone needs: who may import them, besides tools.
HEAVY = {'matplotlib': set(), 'hickle': set(), 'h5py': {'weights'}}

SCRIPTS = sorted(ROOT.glob('*.py'))
PACKAGES = sorted(path for name in ('inputs', 'weights', 'training', 'tools', 'stress')
                  for path in (ROOT / name).glob('**/*.py'))
TESTS = sorted(ROOT.glob('tests/*.py'))


def short(path):
    return str(path.relative_to(ROOT))


def layer(path):
    """The package that a file belongs to, or its module."""
    return path.relative_to(ROOT).with_suffix('').parts[0]


def imported(source, by_name=False):
    """First parts of the names of all modules that are imported anywhere in it, in functions too.

    by_name: it may also import modules whose names it computes.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, 'imports name the module in full'
            names.add(node.module.split('.')[0])
        elif isinstance(node, ast.Call):
            called = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
            assert by_name or called not in ('import_module', '__import__'), 'imports are written as such'
    return names


def wrong(importer, names):
    """Of the imported names, those that `importer` may not import."""
    upward = {name for name in names & LEVEL.keys() if importer != name
              and LEVEL[name] >= LEVEL[importer] and (importer, name) not in ALLOWED}
    heavy = {name for name in names & HEAVY.keys()
             if importer not in ('tools', 'stress') and importer not in HEAVY[name]}
    return upward | heavy


def test_every_file_has_a_layer():
    assert {layer(path) for path in SCRIPTS + PACKAGES} == LEVEL.keys()


@pytest.mark.parametrize('path', SCRIPTS + PACKAGES, ids=short)
def test_imports_go_one_way(path):
    by_name = layer(path) == 'hubconf'  # which imports the files of this folder into a package of their own
    assert not wrong(layer(path), imported(path.read_text(), by_name))


def test_the_rule_itself():
    assert imported('import utils as u, os.path\ndef f():\n    from tools.report import main') == {
        'utils', 'os', 'tools'}
    for importer, names in (('utils', {'layers'}), ('layers', {'resnet'}), ('cifar', {'imagenet'}),
                            ('method', {'inputs'}), ('inputs', {'training'}), ('training', {'cifar'}),
                            ('cifar', {'tools'}), ('inputs', {'h5py'}), ('training', {'matplotlib'})):
        assert wrong(importer, names | {'torch', 'os'}) == names
    for importer, names in (('tools', {'cifar', 'hickle', 'tools'}), ('cifar', {'training', 'inputs'}),
                            ('weights', {'h5py', 'resnet', 'utils'}), ('inputs', {'inputs'})):
        assert wrong(importer, names) == set()


IMPORTING = '''
    import multiprocessing, os, random, signal, sys, threading
    import numpy, torch, torchvision, torchnet.engine, torchnet.meter

    def state():
        children = []
        for task in os.listdir('/proc/self/task') if os.path.isdir('/proc/self/task') else []:
            try:
                with open(f'/proc/self/task/{task}/children') as f:
                    children += f.read().split()
            except OSError:
                pass
        return {
            'children': children + multiprocessing.active_children(),
            'threads': threading.enumerate(),
            'signals': [signal.getsignal(s) for s in signal.valid_signals()],
            'torch': torch.get_rng_state().tolist(), 'random': random.getstate(),
            'numpy': str(numpy.random.get_state()),
            'settings': (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
                         torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(),
                         torch.are_deterministic_algorithms_enabled(), torch.cuda.is_initialized()),
            'folder': (os.getcwd(), os.listdir()), 'hooks': (sys.excepthook, sys.stdout, sys.stderr)}

    before = state()
    for name in sys.argv[1:]:
        __import__(name)
        after = state()
        changed = [k for k in before if before[k] != after[k]]
        assert not changed, f'import {name} changes {changed}'
'''


def test_importing_does_nothing(tmp_path):
    modules = ['.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
               for path in SCRIPTS + PACKAGES]
    done = subprocess.run(
        [sys.executable, '-B', '-c', f'import sys; sys.path.insert(0, {str(ROOT)!r})\n'
         + textwrap.dedent(IMPORTING), *modules],
        cwd=tmp_path, text=True, capture_output=True, timeout=200, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


@pytest.mark.parametrize('path', SCRIPTS + PACKAGES, ids=short)
def test_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize('path', SCRIPTS + PACKAGES, ids=short)
def test_at_most_350_lines(path):
    assert len(path.read_text().splitlines()) <= 350


@pytest.mark.parametrize('path', SCRIPTS + PACKAGES, ids=short)
def test_functions_of_at_most_60_lines(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
