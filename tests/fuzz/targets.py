"""All targets."""
from tests.fuzz import pictures, runs, tensors, texts

TARGETS = [*texts.TARGETS, *tensors.TARGETS, *runs.TARGETS, *pictures.TARGETS]
