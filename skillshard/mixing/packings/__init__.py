"""The ways from draws to blocks of tokens, one module for each packing. `packing.py` says what a packing answers."""
