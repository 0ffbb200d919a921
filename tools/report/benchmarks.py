"""`python -m tools.report --benchmarks results/benchmark`: the figures of tools.benchmark, by machine."""
import json
from pathlib import Path
from typing import Any

import method
from tools.report import tables
from utils import InputError

SPEED = ['machine', 'benchmark', 'case', 'dtype', 'images/s', 'plain', 'ratio (quartiles)',
         'times the roofline', 'peak memory, MB (plain)', 'commit']
FIRST_STEP = ['machine', 'benchmark', 'dtype', 'to the end of the first step, s', 'compiled', 'commit']
LOSSES = ['machine', 'loss', 'dtype', 'ms a step (quartiles)', 'times KD', 'commit']
ACCURACY = ['machine', 'data set', 'images', 'epochs', 'seeds', 'dtype', 'error, %: mean (deviation)',
            'plain', 'difference (standard error)', 'commit']


def read(folder: Path) -> list[dict[str, Any]]:
    """The content of the files of the folder, sorted by benchmark and file name."""
    paths = sorted(folder.glob('*.json'))
    if not paths:
        raise InputError(f'{folder} holds no .json file of tools.benchmark: write there what it prints')
    found = []
    for path in paths:
        try:
            result = json.loads(path.read_text(encoding='utf-8'))
            markdown([result])  # fails if something is missing
            found.append((result['benchmark'], result))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise InputError(f'{path} is not what tools.benchmark prints: take it out of {folder}') from None
    return [result for _, result in sorted(found, key=lambda item: item[0])]


def markdown(results: list[dict[str, Any]]) -> str:
    """Tables of speeds next to the plain baseline, of first steps, of losses, and of test errors."""
    parts = [(header, [row for result in results for row in rows(result)]) for header, rows in (
        (SPEED, speed), (FIRST_STEP, first_step), (LOSSES, losses), (ACCURACY, accuracy))]
    return '\n\n'.join(tables.grid(header, rows) for header, rows in parts if rows)


def speed(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    peaks = result.get('peak_memory')
    for case, found in result.get('cases', {}).items():
        speeds, (low, high) = found['images_per_second'], found['ratio_quartiles']
        rows.append([
            result['device_name'], result['benchmark'], case, _dtype(result | found), _speed(speeds['ours']),
            _speed(speeds['baseline']), f'{found["ratio"]:.2f} ({low:.2f}-{high:.2f})',
            f'{found["roofline_ratio"]:.2f}' if 'roofline_ratio' in found else '',
            f'{peaks["ours"] / 1e6:.0f} ({peaks["baseline"] / 1e6:.0f})' if case == 'at' and peaks else '',
            _commit(result)])
    return rows


def first_step(result: dict[str, Any]) -> list[list[str]]:
    seconds = result.get('time_to_first_step')
    if not seconds:
        return []
    return [[result['device_name'], result['benchmark'], result['dtype'], f'{seconds["eager"]:.1f}',
             f'{seconds["compiled"]:.1f}' if 'compiled' in seconds else '', _commit(result)]]


def losses(result: dict[str, Any]) -> list[list[str]]:
    titles = {row.name: row.title for row in method.LOSSES} | {'student': 'alone'}
    return [[result['device_name'], titles.get(name, name), _dtype(result),
             '{:.0f} ({:.0f}-{:.0f})'.format(found['milliseconds'], *found['quartiles']),
             f'{found["ratio_to_kd"]:.2f}', _commit(result)]
            for name, found in result.get('losses', {}).items()]


def accuracy(result: dict[str, Any]) -> list[list[str]]:
    if 'errors' not in result:
        return []
    ours, plain = (f'{result["mean"][side]:.2f} ({result["deviation"][side]:.2f})'
                   for side in ('ours', 'baseline'))
    return [[result['device_name'], result['dataset'], f'{result["images"][0]:,}', str(result['epochs']),
             str(len(result['seeds'])), _dtype(result), ours, plain,
             f'{result["difference"]:+.2f} ({result["standard_error"]:.2f})', _commit(result)]]


def _dtype(result: dict[str, Any]) -> str:
    return result.get('dtype', '') + (', compiled' if result.get('compile') else '')


def _speed(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _commit(result: dict[str, Any]) -> str:
    commit, _, dirty = (result['commit'] or 'unknown').partition('-')
    return commit[:7] + (', changed' if dirty else '')
