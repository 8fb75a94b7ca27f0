"""Commands of `foveate`, one module each, imported when the command is run (see `foveate.cli`).

A module holds a function with typer annotations and, in `EXAMPLES`, the lines shown under its `--help`. It
imports models inside the function, so that help stays quick; it raises `FoveateError` for bad input and never
prints an error itself; it prints text on `console`, or one document with `print_json`.
"""
