"""Command line: ``python -m trsllava_utils COMMAND …``. The commands are plug-ins
(``trsllava.commands``), functions that take the words behind their name."""

from __future__ import annotations

import gc
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import TextIO

from trsllava_utils import plugins
from trsllava_utils.files import InputError, MissingError, check_choice, escaped


class _Terminal:
    """A stream for names and captions of strangers. A line may be begun anew, as progress bars
    do, but not from within a text."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        again = "\r" * text.startswith("\r")
        return self._stream.write(again + escaped(text.removeprefix(again)))

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    with redirect_stdout(_Terminal(sys.stdout)), redirect_stderr(_Terminal(sys.stderr)):
        return _run(sys.argv[1:] if argv is None else argv)


def _run(words: list[str]) -> int:
    try:
        if not words or words[0] in ("-h", "--help"):
            print("usage: python -m trsllava_utils COMMAND …\n")
            for name, command in plugins.load_all("commands").items():
                print(f"  {name:9} {command.__doc__.splitlines()[0]}")
            return 0 if words else 2
        name = check_choice("command", words[0], plugins.names("commands"))
        command = plugins.find("commands", name)
        if command is None:
            raise MissingError(f"{name} needs the package trsllava_extras")
        command(words[1:])
    except (InputError, MissingError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nstopped. Captions, vectors and rankings that are finished are safe on disk; the "
            "same command goes on from there",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    gc.set_threshold(100_000)  # imports make many objects and no rubbish: a second less
    code = main()
    gc.freeze()  # the process ends: nothing is to be tidied up
    sys.exit(code)
