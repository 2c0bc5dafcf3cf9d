"""What the commands beside `run` share: a parser whose errors are ours, and the exit codes."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from pipeline.launch import EXIT_FAILED, EXIT_INTERRUPTED, quiet_libraries, say, summarize_exception
from pipeline.options import suggest
from transforms.errors import ConfigError, UserError


class CommandParser(argparse.ArgumentParser):
    """argparse prints its usage and exits; here an error is a ConfigError with the nearest flag."""

    def error(self, message: str) -> NoReturn:
        stop = "" if message.endswith("?") else "."
        raise ConfigError(f"{message}{stop} See {self.prog} --help")

    def parse_command(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all of `argv`. Raises: ConfigError for what is unknown or cannot be."""
        # Intermixed: a flag may stand between OUTPUT and TEXT.
        given, rest = self.parse_known_intermixed_args(list(argv))
        if rest:
            flag = rest[0].split("=")[0]
            known = [name for name in self._option_string_actions if name.startswith("--")]
            kind = "unknown flag" if flag.startswith("-") else "unexpected argument"
            self.error(f"{kind} {flag}{suggest(flag, known)}")
        return given


def add_expert_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where the recorded expert is now, if it is elsewhere."""
    group = parser.add_argument_group("Expert")
    group.add_argument(
        "--expert",
        metavar="VALUE",
        help="where the output's expert is, if not where the run found it: a handle or a path; "
        "its fingerprint must be the recorded one (default: as recorded)",
    )
    group.add_argument(
        "--preprocessor", metavar="VALUE", help="the same for its preprocessor (default: recorded)"
    )
    group.add_argument(
        "--hub_address",
        metavar="VALUE",
        help="address that stands in for https://tfhub.dev (default: as recorded)",
    )
    group.add_argument(
        "--threads",
        metavar="N",
        type=count_of(0),
        default=0,
        help="threads of the engine; 0 takes every core (default: 0)",
    )


def count_of(least: int) -> Callable[[str], int]:
    """What makes a flag's text a whole number of at least `least`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from error
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is less than {least}")
        return number

    return parse


def run_command(
    argv: Sequence[str] | None,
    *,
    parser: CommandParser,
    command: Callable[[argparse.Namespace], int],
) -> int:
    """Parse and run; every error becomes a line on stderr and an exit code.

    Returns: what `command` returned; 2 for flags, input or an expert that cannot be; 1 for what
      nobody foresaw; 130 if interrupted.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    verbose = "--verbose" in arguments
    quiet_libraries(verbose=verbose)
    try:
        return command(parser.parse_command(arguments))
    except UserError as error:
        if verbose:
            traceback.print_exc()
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted; nothing was written")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001 - the last resort: a message, not a stack trace
        if verbose:
            traceback.print_exc()
        say(f"error: {type(error).__name__}: {summarize_exception(error)}; --verbose shows more")
        return EXIT_FAILED
