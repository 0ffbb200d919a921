"""All targets."""
from tests.fuzz import texts

TARGETS = [*texts.TARGETS]
