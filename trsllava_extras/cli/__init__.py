"""The command line: ``python -m trsllava_utils COMMAND …``."""
