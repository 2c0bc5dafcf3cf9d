"""`python -m pipeline.run`: corpus in, vectors out.

Keep this module free of classes and functions that a worker needs: what is defined in `__main__`
does not travel.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline; returns the exit code that the contract names."""
    from pipeline.launch import run_command

    return run_command(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
