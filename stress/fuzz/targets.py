"""All targets."""
from stress.fuzz import hdf5, pickles, pictures, runs, tensors, texts

TARGETS = [target for module in (texts, hdf5, pickles, tensors, runs, pictures) for target in module.TARGETS]
