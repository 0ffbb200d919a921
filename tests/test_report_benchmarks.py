"""Tables of benchmarks: figures of files written by hand, what is refused, and the marker of documents."""
import json

import pytest

from helpers import ROOT, call
from tools import report
from tools.report import documents

CASE = {'images_per_second': {'ours': 1234.0, 'baseline': 56.78},
        'quartiles': {'ours': [1, 2], 'baseline': [1, 2]}, 'ratio': 1.314, 'ratio_quartiles': [1.293, 1.356]}
STEP = {'benchmark': 'cifar', 'device_name': 'a CPU', 'commit': '0123456789', 'dtype': 'float',
        'cases': {'at': CASE | {'roofline_ratio': 1.781}, 'loader': CASE},
        'peak_memory': {'ours': 1043173376, 'baseline': 1036083200, 'data_set': 15360000}}
FAST = STEP | {'dtype': 'bfloat16', 'compile': True, 'cases': {
    'at': CASE, 'at_float': CASE | {'dtype': 'float', 'compile': False},
    'at_float_compiled': CASE | {'dtype': 'float', 'compile': True}},
    'time_to_first_step': {'eager': 12.34, 'compiled': 61.2}}
LOADER = {'benchmark': 'loader', 'device_name': 'a CPU', 'commit': '89abcdef01-dirty',
          'cases': {'center': CASE}}
ACCURACY = {'benchmark': 'accuracy', 'device_name': 'a GPU', 'commit': '0123456789', 'dtype': 'bfloat16',
            'compile': True, 'dataset': 'CIFAR10', 'errors': {}, 'images': [50000, 10000], 'epochs': 9,
            'seeds': [1, 2, 3],
            'mean': {'ours': 7.934, 'baseline': 8.0}, 'deviation': {'ours': 0.1, 'baseline': 0.2},
            'difference': -0.066, 'standard_error': 0.129}

@pytest.fixture
def folder(tmp_path):
    def write(**files):
        (tmp_path / 'figures').mkdir()
        for name, result in files.items():
            (tmp_path / 'figures' / f'{name}.json').write_text(json.dumps(result) + '\n')
        return tmp_path
    return write


def cells(text):
    """Tables, each a list of rows, without the lines under the headings."""
    return [[[cell.strip() for cell in line.strip('|').split(' | ')] for line in table.splitlines()
             if not line.startswith('| -')] for table in text.strip().split('\n\n')]


def test_a_table_for_each_kind(folder):
    where = folder(c=STEP, d=LOADER)
    done = call(report, '--benchmarks', 'figures', cwd=where)
    assert (done.status, done.err) == (0, '')
    speed, = cells(done.out)
    assert speed == [
        ['machine', 'benchmark', 'case', 'dtype', 'images/s', 'plain', 'ratio (quartiles)',
         'times the roofline', 'peak memory, MB (plain)', 'commit'],
        ['a CPU', 'cifar', 'at', 'float', '1,234', '56.8', '1.31 (1.29-1.36)', '1.78', '1043 (1036)',
         '0123456'],
        ['a CPU', 'cifar', 'loader', 'float', '1,234', '56.8', '1.31 (1.29-1.36)', '', '', '0123456'],
        ['a CPU', 'loader', 'center', '', '1,234', '56.8', '1.31 (1.29-1.36)', '', '', '89abcde, changed']]


def test_fast_has_rows_of_its_choices_and_the_first_step(folder):
    speed, first = cells(call(report, '--benchmarks', 'figures', cwd=folder(a=FAST)).out)
    assert [row[2:4] for row in speed[1:]] == [
        ['at', 'bfloat16, compiled'], ['at_float', 'float'], ['at_float_compiled', 'float, compiled']]
    assert first[1:] == [['a CPU', 'cifar', 'bfloat16', '12.3', '61.2', '0123456']]
    assert first[0][-2] == 'compiled'


def test_no_compiler_leaves_a_cell_empty(folder):
    both = folder(a=FAST, b=FAST | {'time_to_first_step': {'eager': 9.0}})
    _, first = cells(call(report, '--benchmarks', 'figures', cwd=both).out)
    assert [row[3:5] for row in first[1:]] == [['12.3', '61.2'], ['9.0', '']]


def test_errors_over_seeds(folder):
    (_, row), = cells(call(report, '--benchmarks', 'figures', cwd=folder(a=ACCURACY)).out)
    assert row == ['a GPU', 'CIFAR10', '50,000', '9', '3', 'bfloat16, compiled', '7.93 (0.10)', '8.00 (0.20)',
                   '-0.07 (0.13)', '0123456']


def test_losses_next_to_kd(folder):
    losses = {'student': {'milliseconds': 100.4, 'quartiles': [99.6, 102], 'ratio_to_kd': 0.503},
              'at': {'milliseconds': 210.1, 'quartiles': [205, 214.9], 'ratio_to_kd': 1.0523}}
    result = {'benchmark': 'losses', 'device_name': 'a CPU', 'commit': '0123456789', 'dtype': 'float',
              'losses': losses}
    (_, *rows), = cells(call(report, '--benchmarks', 'figures', cwd=folder(a=result)).out)
    assert rows == [['a CPU', 'alone', 'float', '100 (100-102)', '0.50', '0123456'],
                    ['a CPU', 'AT', 'float', '210 (205-215)', '1.05', '0123456']]


def test_only_what_there_is(folder):
    done = call(report, '--benchmarks', 'figures', cwd=folder(a=LOADER))
    (header, row), = cells(done.out)
    assert header == ['machine', 'benchmark', 'case', 'images/s', 'plain', 'ratio (quartiles)', 'commit']


def test_a_document_holds_them(folder):
    where = folder(a=STEP)
    text = 'Above\n<!-- report: --benchmarks figures -->\nold\n<!-- end of report -->\nBelow\n'
    (where / 'document.md').write_text(text)
    done = call(report, '--update', where / 'document.md', cwd='/')
    table = call(report, '--benchmarks', where / 'figures', cwd='/').out
    assert done.status == 0 and 'times the roofline' in table
    assert (where / 'document.md').read_text() == text.replace('old\n', table)


@pytest.mark.parametrize('content', ['', '[]', '{"epoch": 1}', '{"benchmark": "cifar"',
                                     '{"benchmark": "cifar", "cases": {"at": {}}}',
                                     '{"benchmark": "cifar", "cases": [1]}'])
def test_other_files_are_refused(content, folder):
    where = folder(a=STEP)
    (where / 'figures' / 'b.json').write_text(content)
    done = call(report, '--benchmarks', 'figures', cwd=where)
    assert (done.status, done.out, len(done.errors)) == (2, '', 1) and 'b.json' in done.err


def test_a_folder_without_files_is_refused(tmp_path):
    done = call(report, '--benchmarks', 'nowhere', cwd=tmp_path)
    assert (done.status, len(done.errors)) == (2, 1) and 'nowhere' in done.err


@pytest.mark.parametrize('more', [['logs'], ['--table', '1'], ['--csv', 'a.csv'], ['--update', 'a.md']])
def test_no_other_option_goes_with_them(more, tmp_path):
    done = call(report, '--benchmarks', 'figures', *more, cwd=tmp_path)
    assert done.status == 2 and any(word in done.err for word in ('not allowed with', 'has no effect with'))


def test_the_readme_shows_them():
    assert '<!-- report: --benchmarks ../results/benchmark -->' in documents.read(ROOT / 'docs' / 'speed.md')
