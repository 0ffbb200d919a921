"""Trained weights: from any file to tensors (`tensors`, `pickled`), from tensors to a network (`networks`).

    f, params = networks.load('resnet-34-export.hkl')    # or resnet.load
"""
