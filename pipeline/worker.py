"""A worker process of the local runner, without the lines that Beam's start writes to stderr.

What the worker logs still goes to the runner. Keep this module free of classes and functions that
a pipeline needs: what is defined in `__main__` does not travel.
"""

from __future__ import annotations

import logging
import sys


def main() -> None:
    """What `python -m apache_beam.runners.worker.sdk_worker_main` does."""
    # Beam's imports log before its handler is there; without any, logging writes to stderr.
    logging.getLogger().addHandler(logging.NullHandler())
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()
