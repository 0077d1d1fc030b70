"""The command `r1jax`, and `python -m r1jax`."""

import sys


def main() -> int:
    """Sets the process up, then runs the command line (`cli.main`, without side effects)."""
    from r1jax.cli import main as command
    from r1jax.process import keep_freed_memory

    keep_freed_memory()
    return command()


if __name__ == "__main__":
    sys.exit(main())
