"""What all commands share: their own flags and absl's, help, wrong usage, and how errors are told."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from absl import app, flags, logging

from serving.shared.interruption import Terminated
from serving.shared.suggest import did_you_mean
from serving.shared.terminal import console_of

USAGE = 2  # exit code
_WIDTH = 100  # of the help
_QUOTE = "'"
_HELP = ("--help", "-help", "-h", "--helpshort", "-?")


@dataclasses.dataclass(frozen=True)
class Group:
    """Flags that the help shows together.

    Attributes:
      title: above them.
      helps: by their names what is said of them; "" for what the flag says itself.
      example: a command that uses them.
    """

    title: str
    helps: Mapping[str, str]
    example: str


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What a command takes.

    Attributes:
      name: as users type it.
      doc: what it does: the module's docstring.
      module: that defines the flags.
      flags: the command's own. They are apart from `flags.FLAGS`, in which a module that it imports for the user may
        define flags of the same names.
      verbosity: of absl's logging unless --verbosity is given.
      footer: last line of the help.
      groups: of all flags, absl's own that are worth it among them; without any the help is absl's.
    """

    name: str
    doc: str | None
    module: str
    flags: flags.FlagValues
    verbosity: int = logging.WARNING
    footer: str = ""
    groups: Sequence[Group] = ()

    def parse(self, argv: Sequence[str]) -> list[str]:
        """Parses the command's flags, then absl's; returns what is no flag, the program's name first.

        Ends the process after --help, and if a flag is unknown or has a wrong value.
        """
        if any(argument in _HELP for argument in argv[1:]):
            self._help()
            sys.exit(0)
        self.flags.set_gnu_getopt(True)
        flags.FLAGS.set_gnu_getopt(True)
        try:
            rest: list[str] = flags.FLAGS(self.flags(list(argv), known_only=True))
        except flags.UnrecognizedFlagError as error:
            hint = did_you_mean(f"--{error.flagname}", [f"--{name}" for name in (*self.flags, *flags.FLAGS)])
            self.exit(f"unknown flag --{error.flagname}{hint}")
        except flags.Error as error:
            self.exit(str(error))
        if flags.FLAGS["verbosity"].using_default_value:
            logging.set_verbosity(self.verbosity)
        return rest

    def _help(self) -> None:
        """Prints it, on a terminal with titles and flags in colour."""
        shown = "\n\n".join(map(self._of_group, self.groups)) or self.flags.module_help(self.module).strip("\n")
        text = "\n\n".join(filter(None, [self.doc and self.doc.rstrip(), shown, self.footer]))
        if not sys.stdout.isatty():
            print(text)
            return
        from rich.text import Text

        coloured = Text(text)
        coloured.highlight_regex(r"(?m)^ +--[][\w]+", "cyan")
        coloured.highlight_regex(r"(?m)^  \$ .*(\n    .*)*", "green")
        coloured.highlight_words([f"{group.title}:" for group in self.groups], "bold")
        console_of(sys.stdout).print(coloured, soft_wrap=True)

    def _of_group(self, group: Group) -> str:
        width = min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)
        lines = [f"{group.title}:"]
        for name, said in group.helps.items():
            flag = (self.flags if name in self.flags else flags.FLAGS)[name]
            default = "" if flag.default in (None, []) else f" (default: {str(flag.default_as_str).strip(_QUOTE)})"
            told = f"--{'[no]' * flag.boolean}{name}: {said or ' '.join(flag.help.split())}{default}"
            lines += textwrap.wrap(told, width, initial_indent="  ", subsequent_indent=" " * 6, break_on_hyphens=False)
        return "\n".join([*lines, f"  $ {group.example}"])

    def usage(self, message: object) -> int:
        """Says what is wrong with how the command was called; returns the exit code for it."""
        print(f"error: {message}\n({self.name} --help shows all flags)", file=sys.stderr)
        return USAGE

    def exit(self, message: object) -> NoReturn:
        """The same, and ends the process."""
        sys.exit(self.usage(message))

    def carry_out(self, work: Callable[[], None], known: type[Exception], *, hint: str = "") -> int:
        """Does the work and returns the exit code; what goes wrong is one line on standard error.

        0: done. 1: an error. 2: wrong usage. 128 + number of the signal that ended it.

        Args:
          work: what the command does.
          known: errors whose messages say all that there is to say; of others the type is said too, and with
            --verbosity=1 the traceback.
          hint: to what is said of a signal.
        """
        try:
            work()
        except app.UsageError as error:
            return self.usage(error)
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Terminated) else signal.SIGINT
            print(f"error: ended by {signal.Signals(number).name}{hint}", file=sys.stderr)
            return 128 + number
        except Exception as error:  # whatever it is, people get one line
            if flags.FLAGS.verbosity > 0:
                traceback.print_exc()
            elif isinstance(error, known):
                print(f"error: {error}", file=sys.stderr)
            else:
                first_line = str(error).strip().partition("\n")[0]
                text = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
                print(f"error: {text} (run with --verbosity=1 for the traceback)", file=sys.stderr)
            return 1
        return 0


def say(word: str, more: str) -> None:
    """A line of what a command did, its word in a column."""
    print(f"{word:<12}{more}", flush=True)
