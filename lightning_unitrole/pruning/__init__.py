"""Removing units: which channels must leave together, which to choose, and how a network is made smaller.

Knows ``nn.Module``, not Lightning. The dependency graph is Torch-Pruning's; everything else is done here.
"""
