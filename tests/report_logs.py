"""Logs that tests write by hand, and the tables that tools.report makes of them."""
import json

from tools.report import logs, tables

NAN = float('nan')


def write_run(folder, accuracies, seconds=60.0, **options):
    """The log of a run with a test accuracy an epoch. Options as ours; `folder` is made."""
    record = {'dataset': 'shapes', 'depth': 10, 'width': 1.0, 'teacher_id': '', 'alpha': 0.0, 'beta': 0.0,
              'epochs': len(accuracies), 'n_parameters': 1000, 'train_time': seconds, 'seed': 1, **options}
    lines = [json.dumps(record | {'epoch': i, 'test_acc': acc}) for i, acc in enumerate(accuracies, 1)]
    folder.mkdir(parents=True)
    (folder / 'log.txt').write_text('\n'.join(lines) + '\n')
    return folder


def write_published(folder, epoch=2, acc=93.75, epochs=2, **options):
    """A line of the published code's log, which has no seed, writes NaN, and its list of epochs as text."""
    record = {'depth': 16, 'width': 2, 'dataset': 'CIFAR10', 'teacher_id': '', 'alpha': 0, 'beta': 0,
              'temperature': 4, 'batch_size': 128, 'weight_decay': 5e-4, 'lr': 0.1, 'lr_decay_ratio': 0.2,
              'epoch_step': '[60,120,160]', 'randomcrop_pad': 4, 'dtype': 'float', 'epochs': epochs,
              'n_parameters': 693498, 'train_time': 12.5, 'at_losses': [[NAN, NAN]] * 3, 'train_loss': NAN,
              'save': str(folder), 'epoch': epoch, 'test_acc': acc, **options}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'log.txt', 'a') as log:
        log.write(f'json_stats: {json.dumps(record)}\n')


def write_demo(folder):
    """A teacher, and its students alone, by KD and by AT: three seeds, in a folder for each seed."""
    for seed, errors in enumerate([(8, 30, 55, 22), (6, 28, 40, 21), (7, 35, 52, 26)], 1):
        place = folder / str(seed)
        final = [100 - error for error in errors]
        write_run(place / 'teacher', [50, 95, final[0]], depth=16, n_parameters=2000, seed=seed, epochs=3)
        write_run(place / 'alone', [20, final[1]], seed=seed, seconds=20 * seed)
        for name, acc, method in [('kd', final[2], {'alpha': 0.9}), ('at', final[3], {'beta': 1e3})]:
            write_run(place / name, [25, acc], seed=seed, teacher_id=f'logs/gone/{seed}/teacher',
                      save=f'logs/gone/{seed}/{name}', **method)
    return folder


def table_of(*paths, number=None):
    return tables.markdown(tables.sections(logs.read(paths), number))


def rows_of(text):
    """The cells of the first Markdown table after each title in a text, without the two lines of heading."""
    found = {}
    for part in text.split('**')[1:]:
        if '|' not in part:
            title = part
            continue
        lines = part.strip().split('\n\n')[0].splitlines()
        found[title] = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]]
    return found


def errors_of(*paths):
    """Of all runs, in the order of the files: their errors by epoch."""
    return [run.errors for run in logs.read(paths)]
