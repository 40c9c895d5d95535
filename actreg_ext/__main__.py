"""`python -m actreg_ext COMMAND`: the commands that come with the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import doctor


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: The command line after the program's name; None takes it from `sys.argv`.
    """
    parser = argparse.ArgumentParser(prog="python -m actreg_ext", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("doctor", help="check the installation, and say how to repair it")
    commands.add_parser("demo", help="train with and without regularization", add_help=False)
    chosen, options = parser.parse_known_args(argv)
    if chosen.command == "demo":
        # Imported here, because demo needs torch and the doctor must run without torch. The demo
        # parses its own options, including --help.
        from . import demo

        return demo.main(options)
    if options:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    return doctor.main()


if __name__ == "__main__":
    sys.exit(main())
