"""`python -m tools.report --benchmarks results/benchmark`: the figures of tools.benchmark, by machine."""
import json
from pathlib import Path
from typing import Any

from tools.report import tables
from utils import InputError

SPEED = ['machine', 'benchmark', 'case', 'dtype', 'images/s', 'plain', 'ratio (quartiles)',
         'times the roofline', 'peak memory, MB (plain)', 'commit']
GROWTH = ['machine', 'AT step against', 'dtype', 'seconds (GFLOPs)', 'seconds grow as', 'FLOPs grow as',
          'commit']
DATA = ['machine', 'images in memory', 'start, ms', 'start of an epoch, ms (quartiles)', 'peak memory, MB',
        'commit']
JOBS = ['machine', 'runs at once', 'dtype', 'runs/h (quartiles)', 'runs/h with start', 'start, s',
        'peak memory of a run, MB', 'commit']
ACCURACY = ['machine', 'data set', 'images', 'epochs', 'seeds', 'dtype', 'error, %: mean (deviation)',
            'plain', 'difference (standard error)', 'commit']
ALL_REDUCES = ['machine', 'ranks', 'all-reduce, bytes', 'ms (quartiles)', 'commit']
STEPS = ['machine', 'ranks', 'step alone, ms (quartiles)', 'with exchange, ms (quartiles)',
         'exchange, ms (quartiles)', 'all-reduce: latency, ms', 'bandwidth, GB/s', 'commit']
ASSUMED = ['assumed', 'value']
MODEL = ['modelled: GPUs', 'batch', 'of a GPU', 'step, ms', 'of it waiting, ms', 'hours', 'GPU-hours',
         'efficiency']
AXES = {'width': 'student width', 'depth': 'student depth', 'batch_size': 'batch size'}
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
    """A table of what has a plain baseline, of test errors, growth, data sets, runs at once, and of ranks and
    the model of many GPUs, as far as there are."""
    parts = [(header, [row for r in results if r['benchmark'] in kinds for row in rows(r)])
             for header, kinds, rows in (
                 (SPEED, COMPARED, speed), (ACCURACY, ['accuracy'], accuracy),
                 (GROWTH, ['scaling'], growth), (DATA, ['scaling'], data_sets),
                 (JOBS, ['jobs'], jobs), (ALL_REDUCES, ['ranks'], all_reduces), (STEPS, ['ranks'], steps),
                 (ASSUMED, ['ranks'], assumed), (MODEL, ['ranks'], model))]
    return '\n\n'.join(tables.grid(header, rows) for header, rows in parts if rows)


def speed(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    peaks = result.get('peak_memory', {})
    for case, found in result['cases'].items():
        speeds = found['images_per_second']
        over = found.get('roofline_ratio')
        peak = f'{_mb(peaks["ours"])} ({_mb(peaks["baseline"])})' if case == 'at' and 'ours' in peaks else ''
        rows.append([result['device_name'], result['benchmark'], case, _dtype(result),
                     _speed(speeds['ours']), _speed(speeds['baseline']),
                     _with_quartiles(found['ratio'], found['ratio_quartiles']),
                     '' if over is None else f'{over:.2f}', peak, _commit(result)])
    return rows


def accuracy(result: dict[str, Any]) -> list[list[str]]:
    ours, plain = (f'{result["mean"][side]:.2f} ({result["deviation"][side]:.2f})'
                   for side in ('ours', 'baseline'))
    return [[result['device_name'], result['dataset'], f'{result["images"][0]:,}', str(result['epochs']),
             str(len(result['seeds'])), _dtype(result), ours, plain,
             f'{result["difference"]:+.2f} ({result["standard_error"]:.2f})', _commit(result)]]


def growth(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for axis, found in result['growth'].items():
        points = found['points']
        values = ', '.join(str(p['value']) for p in points)
        rows.append([result['device_name'], f'{AXES[axis]} {values}', result['dtype'],
                     ', '.join(f'{p["seconds"]:.3g} ({p["flops"] / 1e9:.3g})' for p in points),
                     *(_power(found['exponents'][name]) for name in ('seconds', 'flops')), _commit(result)])
    return rows


def data_sets(result: dict[str, Any]) -> list[list[str]]:
    return [[result['device_name'], f'{point["value"]:,}', f'{1000 * point["start_seconds"]:.1f}',
             _ms(point | {'seconds': point['epoch_start_seconds']}),
             _mb(point['peak_memory']), _commit(result)] for point in result['data_set']['points']]


def jobs(result: dict[str, Any]) -> list[list[str]]:
    return [[point['device_name'], f'{point["jobs"]}{" (best)" * (point["jobs"] == result["best"])}',
             result['dtype'], _with_quartiles(point['runs_per_hour'], point['quartiles'], '.0f'),
             f'{point["runs_per_hour_with_start"]:.0f}', f'{point["start_seconds"]:.0f}',
             _mb(point['peak_memory']), _commit(result)] for point in result['points']]


def all_reduces(result: dict[str, Any]) -> list[list[str]]:
    return [[result['device_name'], str(point['ranks']), f'{found["bytes"]:,}', _ms(found), _commit(result)]
            for point in result['measured'] for found in point['all_reduce']]


def steps(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for point in result['measured']:
        fit = point['fit']
        rows.append([result['device_name'], str(point['ranks']),
                     *(_ms(point['step'][name], '.0f') if name in point['step'] else ''
                       for name in ('without', 'with', 'exchange')),
                     *([f'{1000 * fit["latency_seconds"]:.2f}', f'{fit["bytes_per_second"] / 1e9:.2f}']
                       if fit else ['', '']), _commit(result)])
    return rows


def assumed(result: dict[str, Any]) -> list[list[str]]:
    return [[f'`{name}`', f'{value:,.12g}'] for name, value in result['assumed'].items()]


def model(result: dict[str, Any]) -> list[list[str]]:
    return [[str(row['gpus']), f'{row["batch"]:,}', f'{row["batch"] // row["gpus"]}',
             *(f'{1000 * row[name]:.1f}' for name in ('step_seconds', 'exposed_seconds')),
             f'{row["hours"]:.2f}', f'{row["gpu_hours"]:.0f}', f'{row["efficiency"]:.2f}']
            for rows in result['model'].values() for row in rows]


def _ms(found: dict[str, Any], form: str = '.1f') -> str:
    """Of seconds and their quartiles."""
    return _with_quartiles(1000 * found['seconds'], [1000 * q for q in found['quartiles']], form)


def _dtype(result: dict[str, Any]) -> str:
    return result.get('dtype', '') + (', compiled' if result.get('compile') else '')


def _speed(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _with_quartiles(value: float, quartiles: list[float], form: str = '.2f') -> str:
    low, high = quartiles
    return f'{value:{form}} ({low:{form}}-{high:{form}})'


def _power(exponent: float | None) -> str:
    return '' if exponent is None else f'x^{exponent:.2f}'


def _mb(n: float) -> str:
    return f'{n / 1e6:.0f}'


def _commit(result: dict[str, Any]) -> str:
    commit, _, dirty = (result['commit'] or 'unknown').partition('-')
    return commit[:7] + (', changed' if dirty else '')
