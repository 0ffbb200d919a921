"""`python -m stress.faults`"""
import collections
import sys
import tempfile
from pathlib import Path

import torch

from stress.faults.kinds import FAULTS
from stress.faults.world import make_world
from training import exits, options


def main() -> None:
    parser = options.Parser('Do runs harm, and see that they go on.')
    parser.add_argument('--rounds', type=options.positive_int, default=200)
    parser.add_argument('--seed', type=options.count, default=1, help='of the first round; +1 for each more')
    parser.add_argument('--only', choices=list(FAULTS), help='this fault alone, in place of all in turn')
    opt = parser.parse_args()
    torch.set_num_threads(1)  # runs are forks, in which other threads would be missing
    names = [opt.only] if opt.only else list(FAULTS)
    rounds, survived, lost = (collections.Counter() for _ in range(3))
    with tempfile.TemporaryDirectory() as home:
        world = make_world(Path(home))
        for i in range(opt.rounds):
            name = names[i % len(names)]
            world.rng.seed(opt.seed + i)
            rounds[name] += 1
            try:
                n, what = FAULTS[name](world)
                lost[name] += n
                survived[name] += not n
                print(f'{i + 1}: {name}{", " + what if what else ""}: ' + (f'LOST {n} EPOCHS' if n else 'ok'),
                      flush=True)
            except Exception as e:  # what is left may be such that even reading it fails
                again = f"--rounds 1 --seed {opt.seed + i} --only '{name}'"
                print(f'{i + 1}: {name}: FAILED, again by {again}: {e!r}', flush=True)
    print('\n| fault | rounds | survived | epochs lost |\n|---|---|---|---|')
    for name in names:
        print(f'| {name} | {rounds[name]} | {survived[name]} | {lost[name]} |')
    print(f'| all | {rounds.total()} | {survived.total()} | {lost.total()} |')
    sys.exit(survived.total() < rounds.total())


if __name__ == '__main__':
    exits.script(main)
