"""All targets."""
from tests.fuzz import tensors, texts

TARGETS = [*texts.TARGETS, *tensors.TARGETS]
