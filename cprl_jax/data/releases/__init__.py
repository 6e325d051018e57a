"""Official releases of published datasets, one file each.

A file says what its release is: the constants and functions that `_common.Release` lists. `build.load` does the rest:
finding, checking, building once and reading. Nothing here needs TensorFlow.
"""
