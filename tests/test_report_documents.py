"""Tables in documents, and the command: what it prints, writes and refuses."""
import re

import pytest

from helpers import ROOT, call, listing
from report_logs import table_of, write_run
from tools import report
from tools.report import documents, logs, tables


@pytest.mark.parametrize('name', ['README.md', 'docs/results.md', 'docs/speed.md'])
def test_the_tables_of_documents_are_those_of_the_logs(name):
    """If not: python -m tools.report --update NAME"""
    path = ROOT / name
    text = documents.read(path)
    assert documents.updated(text, lambda arguments: report.render(arguments, path.parent)) == text


def test_update_writes_the_tables_between_the_markers(demo, tmp_path):
    empty = '# Title\n<!-- report: logs/1 logs/2 -->\n{}<!-- end of report -->\nMiddle\n\n' \
            '<!-- report: logs/3/alone -->\n{}<!-- end of report -->\nEnd, 7.93 ± 1'
    document = tmp_path / 'document.md'
    document.write_text(empty.format('', 'old | table\n'))
    done = call(report, '--update', 'document.md', cwd=tmp_path)
    assert (done.status, done.out, done.err) == (0, 'document.md is updated\n', '')
    expected = empty.format(table_of(demo / '1', demo / '2') + '\n', table_of(demo / '3' / 'alone') + '\n')
    assert document.read_text() == expected
    before = listing(tmp_path)
    done = call(report, '--update', document, cwd='/')
    assert (done.out, listing(tmp_path)) == (f'{document} is unchanged\n', before)


BEGIN, END = '<!-- report: logs -->\n', '<!-- end of report -->\n'


def without_quotes(message):
    """Newer versions of argparse put a number that is no choice into quotation marks."""
    return re.sub(r"(invalid choice: )'(\d+)'", r'\1\2', message)


@pytest.mark.parametrize(('text', 'message'), [
    ('Text\n', 'the document has no table'),
    (BEGIN, 'needs its line'), (END, 'needs its line'), (BEGIN + BEGIN + END, 'needs its line'),
    (BEGIN + END + END + BEGIN, 'needs its line'), (END + BEGIN, 'needs its line'),
    (BEGIN.replace('logs', 'nowhere') + END, 'there is neither a folder nor a log'),
    (BEGIN.replace('logs', '--update a.md') + END, 'for a document'),
    (BEGIN.replace('logs', "'logs") + END, 'quotation mark'),
    (BEGIN.replace('logs', 'logs --table 9') + END, '--table: invalid choice: 9'),
    (BEGIN.replace('logs', '--table 1') + END, 'LOGS')])
def test_a_document_that_cannot_be_updated_stays_as_it_is(demo, tmp_path, text, message):
    (tmp_path / 'document.md').write_text(BEGIN + END + text if 'Text' not in text else text)
    before = listing(tmp_path)
    done = call(report, '--update', 'document.md', cwd=tmp_path)
    assert (done.status, done.out, done.err.count('\n')) == (2, '', 1)
    assert message in without_quotes(done.err)
    assert listing(tmp_path) == before


# --- the command ----------------------------------------------------------------------------------------


def test_command_prints_the_table_and_writes_files(demo, run_script):
    done = run_script('tools.report', demo, '--plot', demo / 'curves.png', '--title', 'Three seeds',
                      '--csv', demo / 'table.csv')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout == table_of(demo) + '\n'
    assert (demo / 'table.csv').read_text() == tables.csv_of(tables.sections(logs.read([demo])))
    assert (demo / 'curves.png').read_bytes()[:4] == b'\x89PNG'


def other_data_set(folder):
    write_run(folder / 'other', [50], dataset='CIFAR10')


def no_runs(folder):
    (folder / 'empty').mkdir(parents=True)


def no_epochs(folder):
    write_run(folder / 'a', [50])
    (folder / 'a' / 'log.txt').write_text('{"epoch": 1, "test_a')


def foreign(folder):
    write_run(folder / 'a', [50])
    (folder / 'a' / 'log.txt').write_text('{"epoch": 1, "depth": 10, "width": 1}\n')


def array(folder):
    write_run(folder / 'a', [50])
    (folder / 'a' / 'log.txt').write_text('[1, 2]\n{"epochs": [{"epoch": 1}]}\n"epoch"\n')


def picture(folder):
    folder.mkdir()
    (folder / 'log.txt').write_bytes(bytes(range(256)))


@pytest.mark.parametrize(('spoil', 'arguments', 'message'), [
    (None, [], 'one of the arguments LOGS'),
    (None, ['nowhere', '--plot', 'out.png'], 'there is neither a folder nor a log nowhere'),
    (no_runs, ['spoilt', '--plot', 'out.png'], 'neither spoilt nor a folder in it holds a log.txt'),
    (no_runs, ['runs', 'spoilt', '--csv', 'out.csv'], 'neither spoilt nor a folder in it holds a log.txt'),
    (no_epochs, ['runs', 'spoilt', '--plot', 'out.png'], 'spoilt/a/log.txt holds no epoch of a run'),
    (array, ['runs', 'spoilt', '--plot', 'out.png'], 'spoilt/a/log.txt holds no epoch of a run'),
    (picture, ['spoilt/log.txt'], 'spoilt/log.txt holds no epoch of a run'),
    (foreign, ['spoilt', '--plot', 'out.png'],
     'spoilt/a/log.txt is not the log of a run: '
     'epoch 1 has no dataset, epochs, n_parameters, test_acc, train_time'),
    (other_data_set, ['runs', 'spoilt', '--plot', 'out.png'],
     'the runs have several data sets, CIFAR10, shapes'),
    (other_data_set, ['runs', 'spoilt', '--table', '1'],
     'Table 1 has CIFAR10, the runs have CIFAR10, shapes'),
    (None, ['runs', '--table', '6'],
     'argument --table: invalid choice: 6 (choose from 1, 2, 3, 4, 5)'),
    (None, ['runs', '--plot', 'out.gif'], "'out.gif' does not end in .png, .svg, .pdf"),
    (None, ['runs', '--plot', 'missing/out.png'], 'cannot write missing/out.png'),
    (None, ['runs', '--plot_losses', 'out.png', '--csv', 'out.csv'],
     'no run has a loss to draw'),
    (None, ['--budget', 'runs', '--x', 'seconds'], '--x has no effect with --budget'),
    (None, ['runs', '--dataroot', 'data'], '--dataroot has no effect with LOGS'),
    (None, ['runs', '--update', 'a.md'], 'not allowed with argument'),
    (None, ['--update', 'a.md', '--table', '1'],
     '--table has no effect with --update'),
    (None, ['--update', 'a.md'], 'cannot read a.md: No such file or directory'),
])
def test_bad_input_ends_in_one_sentence(tmp_path, spoil, arguments, message):
    write_run(tmp_path / 'runs' / 'a', [50, 60])
    if spoil:
        spoil(tmp_path / 'spoilt')
    before = sorted(tmp_path.rglob('*'))
    done = call(report, *arguments, cwd=tmp_path)
    assert (done.status, done.out, done.err.count('\n')) == (2, '', 1)
    assert done.err.startswith('tools.report.py: error: ') and message in without_quotes(done.err)
    assert sorted(tmp_path.rglob('*')) == before


def test_a_document_that_is_no_text(tmp_path):
    (tmp_path / 'a.md').write_bytes(b'\xff\xfe')
    assert 'UTF-8' in call(report, '--update', 'a.md', cwd=tmp_path).err
