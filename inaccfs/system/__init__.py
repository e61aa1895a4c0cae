"""What belongs to the system and not to Python: helper, unit, man pages, completions.

The files are data of this package; `install` copies them to where the system looks.
`cli/manual` makes the man pages and the completions from the argument parser.
"""
