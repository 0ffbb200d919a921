"""All targets."""
from stress.fuzz import hdf5, pickles, pictures, recipes, runs, tensors, texts

MODULES = texts, hdf5, pickles, tensors, runs, recipes, pictures
TARGETS = [target for module in MODULES for target in module.TARGETS]
