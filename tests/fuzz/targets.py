"""All targets."""
from tests.fuzz import runs, tensors, texts

TARGETS = [*texts.TARGETS, *tensors.TARGETS, *runs.TARGETS]
