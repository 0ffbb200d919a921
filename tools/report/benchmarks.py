"""`python -m tools.report --benchmarks results/benchmark`: the figures of tools.benchmark, by machine."""
import json
from pathlib import Path
from typing import Any

from tools.report import tables
from utils import InputError

SPEED = ['machine', 'benchmark', 'case', 'dtype', 'images/s', 'plain', 'ratio (quartiles)',
         'times the roofline', 'peak memory, MB (plain)', 'commit']
JOBS = ['machine', 'runs at once', 'dtype', 'runs/h (quartiles)', 'runs/h with start', 'start, s',
        'peak memory of a run, MB', 'commit']
ACCURACY = ['machine', 'data set', 'images', 'epochs', 'seeds', 'dtype', 'error, %: mean (deviation)',
            'plain', 'difference (standard error)', 'commit']
FIRST_STEP = ['machine', 'benchmark', 'dtype', 'to the end of the first step, s', 'compiled', 'commit']
COMPARED = ('cifar', 'imagenet', 'loader')


def read(folder: Path) -> list[dict[str, Any]]:
    """What the files of the folder hold, in the order of benchmark and file name."""
    paths = sorted(folder.glob('*.json'))
    if not paths:
        raise InputError(f'{folder} holds no .json of tools.benchmark: write there what it prints')
    found = []
    for path in paths:
        try:
            result = json.loads(path.read_text(encoding='utf-8'))
            found.append((result['benchmark'], result))
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f'{path} is not what tools.benchmark prints: take it out of {folder}') from None
    return [result for _, result in sorted(found, key=lambda item: item[0])]


def markdown(results: list[dict[str, Any]]) -> str:
    """A table of what has a plain baseline, of starts, test errors and runs at once, as far as there are."""
    parts = [(header, [row for r in results if r['benchmark'] in kinds for row in rows(r)])
             for header, kinds, rows in (
                 (SPEED, COMPARED, speed), (FIRST_STEP, ['cifar'], first_step),
                 (ACCURACY, ['accuracy'], accuracy), (JOBS, ['jobs'], jobs))]
    return '\n\n'.join(tables.grid(header, rows) for header, rows in parts if rows)


def speed(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    peaks = result.get('peak_memory', {})
    for case, found in result['cases'].items():
        speeds = found['images_per_second']
        over = found.get('roofline_ratio')
        peak = f'{_mb(peaks["ours"])} ({_mb(peaks["baseline"])})' if case == 'at' and 'ours' in peaks else ''
        rows.append([result['device_name'], result['benchmark'], case, _dtype(result | found),
                     _speed(speeds['ours']), _speed(speeds['baseline']),
                     _with_quartiles(found['ratio'], found['ratio_quartiles']),
                     '' if over is None else f'{over:.2f}', peak, _commit(result)])
    return rows


def first_step(result: dict[str, Any]) -> list[list[str]]:
    seconds = result.get('time_to_first_step')
    if not seconds:
        return []
    return [[result['device_name'], result['benchmark'], result['dtype'], f'{seconds["eager"]:.1f}',
             f'{seconds["compiled"]:.1f}' if 'compiled' in seconds else '', _commit(result)]]


def accuracy(result: dict[str, Any]) -> list[list[str]]:
    ours, plain = (f'{result["mean"][side]:.2f} ({result["deviation"][side]:.2f})'
                   for side in ('ours', 'baseline'))
    return [[result['device_name'], result['dataset'], f'{result["images"][0]:,}', str(result['epochs']),
             str(len(result['seeds'])), _dtype(result), ours, plain,
             f'{result["difference"]:+.2f} ({result["standard_error"]:.2f})', _commit(result)]]


def jobs(result: dict[str, Any]) -> list[list[str]]:
    return [[point['device_name'], f'{point["jobs"]}{" (best)" * (point["jobs"] == result["best"])}',
             result['dtype'], _with_quartiles(point['runs_per_hour'], point['quartiles'], '.0f'),
             f'{point["runs_per_hour_with_start"]:.0f}', f'{point["start_seconds"]:.0f}',
             _mb(point['peak_memory']), _commit(result)] for point in result['points']]


def _dtype(result: dict[str, Any]) -> str:
    return result.get('dtype', '') + (', compiled' if result.get('compile') else '')


def _speed(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _with_quartiles(value: float, quartiles: list[float], form: str = '.2f') -> str:
    low, high = quartiles
    return f'{value:{form}} ({low:{form}}-{high:{form}})'


def _mb(n: float) -> str:
    return f'{n / 1e6:.0f}'


def _commit(result: dict[str, Any]) -> str:
    commit, _, dirty = (result['commit'] or 'unknown').partition('-')
    return commit[:7] + (', changed' if dirty else '')
