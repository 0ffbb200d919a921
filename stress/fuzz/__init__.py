"""Hostile and broken files and options: `python -m stress.fuzz --cases 20000 --seed 1`, or `make fuzz`.

Every case must end in a good result or in the one sentence of an InputError: no other exception, no line on
stderr, no code run, no file touched beyond its folder, no more memory than BUDGET says, in seconds.
"""
