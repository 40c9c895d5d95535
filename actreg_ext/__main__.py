"""`python -m actreg_ext`: the commands of the package, each imported when it is asked for."""

from __future__ import annotations

import argparse
import sys

from actreg_ext import doctor


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        arguments: The command line after the program's name; the process's own by default.
    """
    parser = argparse.ArgumentParser(prog="python -m actreg_ext", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "doctor", help="what is installed, what is in use, what to do about the rest"
    )
    commands.add_parser("demo", help="train on handwritten digits, with and without the operator")
    if parser.parse_args(arguments).command == "doctor":
        return doctor.main()
    if missing := doctor.missing_demo_packages():
        print(f"The demo needs more packages: pip install {' '.join(missing)}", file=sys.stderr)
        return 1
    from actreg_ext import demo

    demo.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
