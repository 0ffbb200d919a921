"""`python -m stress.fuzz`: progress, and a table of what was found; see the package."""
import argparse
import lzma
import os
import sys
import time
from pathlib import Path
from random import Random

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch: children of a process with threads are forked

from stress.fuzz import sandbox
from stress.fuzz.targets import TARGETS
from training import options

CORPUS = Path(__file__).resolve().parent.parent / 'corpus'


def case_of(target: sandbox.Target, crafted: dict[str, bytes], seed: int, case: str | int) -> bytes:
    """The bytes of a crafted case by its name, of another by its number: the same for the same seed."""
    return crafted[case] if isinstance(case, str) else target.draw(Random(f'{seed} {target.name} {case}'))


def kept(path: Path) -> bytes:
    """The bytes of a case in a file, which may be packed."""
    return lzma.decompress(path.read_bytes()) if path.suffix == '.xz' else path.read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--cases', type=int, default=20_000, help='of all targets together, at least')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--target', choices=[target.name for target in TARGETS], action='append')
    parser.add_argument('--replay', type=options.file, metavar='FILE', help='one case, of --target')
    parser.add_argument('--found', type=options.file, default=Path('logs/fuzz'), metavar='FOLDER',
                        help='where cases that end badly are saved')
    opt = parser.parse_args()
    targets = [target for target in TARGETS if not opt.target or target.name in opt.target]
    if opt.replay:
        content = kept(opt.replay)
        problems = [problem for _, problem in sandbox.run(targets[0], lambda _: content, [0])]
        print(f'{targets[0].name}: {problems[0] or "ends well"}')
        return bool(problems[0])
    rows, start = [], time.monotonic()
    for target in targets:
        crafted = target.crafted()
        n = max(-(-opt.cases // len(targets)), len(crafted))
        cases, found = [*crafted, *range(n - len(crafted))], {}
        for done, (case, problem) in enumerate(
                sandbox.run(target, lambda case, t=target, c=crafted: case_of(t, c, opt.seed, case), cases),
                1):
            if problem:
                path = opt.found / target.name / (case[:80] if isinstance(case,
                                                                          str) else f'{opt.seed}-{case}')
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(case_of(target, crafted, opt.seed, case))
                found[path] = problem
                print(f'{path}: {problem}; again by: python -m stress.fuzz --target {target.name} '
                      f'--replay {path}', flush=True)
            if done % 500 == 0 or done == n:
                print(f'{target.name}: {done} of {n} cases, {time.monotonic() - start:.0f} s', flush=True)
        fixed = len(list((CORPUS / target.name).glob('*')))
        rows.append((target.name, n, fixed, len(found)))
    rows.append(('all', *(sum(row[i] for row in rows) for i in (1, 2, 3))))
    print('\n| target | cases | findings fixed | open |\n|---|--:|--:|--:|')
    for row in rows:
        print('| ' + ' | '.join(f'{v:,}' if isinstance(v, int) else v for v in row) + ' |')
    return bool(rows[-1][3])


if __name__ == '__main__':
    sys.exit(main())
