"""The command line: one module for each group of commands. `tharsis.py` puts them together."""
