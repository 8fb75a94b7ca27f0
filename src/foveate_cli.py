"""Entry point of the console script `foveate`.

It lies outside the package for one reason: importing any part of foveate registers its model classes with
transformers, which takes seconds, and `foveate --help` must not wait for that. `foveate/__init__.py` looks
whether this module is loaded, and then leaves the registration to the command that needs a model.
"""


def main() -> int:
    """Run the command line on `sys.argv` and return its exit code."""
    from foveate.cli import main as run

    return run()
