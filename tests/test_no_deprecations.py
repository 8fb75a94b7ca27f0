"""The command line uses nothing that the installed libraries are about to take away."""

import subprocess
import sys
import textwrap
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
COMMANDS = [
    ["methods"],
    ["info"],
    ["flops", "--help"],
    ["serve", "--help"],
    ["ask", str(EXAMPLES / "receipt.png"), "What is the total?", "--plan", "divprune:50%"],
]


def test_commands_warn_of_nothing():
    program = f"""
        import warnings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers imports it where it is installed; its own words are not ours
            try:
                import torchao.quantization
            except ImportError:
                pass
        from foveate_cli import main
        import sys
        for command in {COMMANDS!r}:
            sys.argv = ["foveate", *command]
            try:
                main()
            except SystemExit as end:
                assert not end.code, (command, end.code)
    """
    kinds = ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")
    strict = [option for kind in kinds for option in ("-W", f"error::{kind}")]
    run = subprocess.run(
        [sys.executable, *strict, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "deprecated" not in "\n".join(line for line in run.stderr.splitlines() if "_pytree" not in line).lower()
