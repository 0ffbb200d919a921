"""Faults at random moments: nothing is lost but the current epoch, and every run goes on or says why.

    python -m stress.faults --rounds 200 --seed 1
    python -m stress.faults --rounds 1 --seed 17 --only 'full disk'

Each round starts runs of a second as forks of this process, does them harm, looks at what is left by a reader
of its own, and has the run go on: it must end with the bits of a run that nothing befell. Status 1 if not.
"""
