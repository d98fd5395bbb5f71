"""What a shell script of the old tool asks of Slurm: its simple assignments and its `srun` line, nothing else.

This is no shell. What it does not understand stays as text with a $ in it, and whoever reads the result asks the admin.
By hand, though there are parsers: bashlex 0.18 knows no arithmetic, array, `[[` or `case`, gives up at a nesting of 300
and is under the GPL. tree-sitter-bash 0.25 is for colours: it makes two words of `"a"\\;b`, ends an assignment at
a line that goes on, and with what mends that the module would be longer.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

# A command substitution: what it gives is known on the spot only.
SUBSTITUTION = "$(...)"
# Characters of a script; the old tool's have one or two thousand. Some that are hardly shell take the square of it.
_LONGEST_SCRIPT = 16 * 1024
# Of a command with its variables put in; those beyond stay as text. Forty lines of A=$A$A would fill the memory.
_LONGEST_COMMAND = 4096
# These mean something else on the node than where the script is read.
_OF_THE_NODE = re.compile(r"(SLURM|SBATCH|PMI)\w*|TMPDIR|TMP|TEMP|HOSTNAME|PWD|OLDPWD|SHLVL|PPID|UID|RANDOM|SECONDS|_")
# srun(1) of 22.05 to 26.05: its short options, and which options take no value, or only one behind '='.
_SHORT = (
    {"A": "account", "p": "partition", "q": "qos", "J": "job-name", "t": "time", "c": "cpus-per-task", "n": "ntasks"}
    | {"N": "nodes", "G": "gpus", "w": "nodelist", "x": "exclude", "C": "constraint", "D": "chdir", "d": "dependency"}
    | {"o": "output", "e": "error", "i": "input", "l": "label", "u": "unbuffered", "v": "verbose", "Q": "quiet"}
)
_SHORT_FLAGS = frozenset("EHIKOQXZklsuv")
_FLAGS = {
    *("accel-bind", "contiguous", "disable-status", "exact", "exclusive", "hold", "immediate", "interactive", "label"),
    *("kill-on-bad-exit", "multi-prog", "no-allocate", "no-kill", "no-requeue", "overcommit", "overlap", "pty"),
    *("oversubscribe", "preserve-env", "propagate", "quiet", "quit-on-interrupt", "reboot", "requeue", "spread-job"),
    *("stepmgr", "test-only", "unbuffered", "use-min-nodes", "verbose", "wait-all-nodes"),
}
_BEFORE_A_COMMAND = ("then", "do", "else", "{", "!", "exec", "nohup", "time", "command", "env")
# Pieces of a command line, in double quotes and outside.
_QUOTED = (
    r"""(?P<quote>")|(?P<escape>\\.)|(?P<run>\$\((?:[^()]|\([^()]*\))*\)|`[^`]*`)"""
    r"""|(?P<variable>\$(?:\{(?P<name>\w+)(?::?-(?P<default>[^{}$`]*))?\}|(?P<bare>[A-Za-z_]\w*|\d)))"""
)
_INSIDE = re.compile(rf"{_QUOTED}|(?P<other>.)")
_OUTSIDE = re.compile(
    rf"(?P<single>'[^']*')|{_QUOTED}|(?P<comment>(?<!\S)\#.*)|(?P<separator>[;|()]|(?<![<>])&(?!>))|(?P<other>.)"
)


@dataclass(frozen=True)
class Launch:
    """An `srun` line. `options` is long option -> value ("" for a flag), variables put in where they are known.

    `exports` are shell lines that give the executor what the script's own `export` lines gave it.
    """

    line: int
    options: Mapping[str, str]
    executor: str
    arguments: tuple[str, ...]
    exports: tuple[str, ...]
    others: tuple[int, ...] = ()
    """Lines of further `srun` commands."""


def parse(text: str, arguments: Sequence[str], directory: str, environment: Mapping[str, str]) -> Launch | None:
    """The script's first `srun` that starts something; None if there is none.

    `directory` is where the script was started, `arguments` what it was started with. Raises ValueError if the text is
    too long to be a script of the old tool.
    """
    if len(text) > _LONGEST_SCRIPT:
        raise ValueError(f"{len(text)} characters are no script of the old tool")
    variables = {name: value for name, value in environment.items() if not _OF_THE_NODE.fullmatch(name)}
    variables |= {"PWD": directory, **{str(number): word for number, word in enumerate(arguments, start=1)}}
    exports: dict[str, str] = {}
    launches = []
    for number, line in _logical_lines(text):
        for command in _commands(line):
            try:
                words = _words(_expanded(command, variables))
            except ValueError:  # a quote that goes on in the next line
                continue
            launch = _launch(number, _assigned(words, command, variables, exports), exports)
            launches += [launch] if launch else []
    if not launches:
        return None
    return replace(launches[0], others=tuple(each.line for each in launches[1:]))


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number of the first line, text) with lines joined that end in a backslash."""
    started, joined = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        started = started or number
        if line.endswith("\\"):
            joined += line[:-1]
            continue
        yield started, joined + line
        started, joined = 0, ""
    yield started, joined


def _pieces(line: str) -> Iterator[tuple[str, re.Match[str], bool]]:
    """(kind, piece, does it stand in double quotes)"""
    position, quoted = 0, False
    while position < len(line):
        found = (_INSIDE if quoted else _OUTSIDE).match(line, position)
        if found is None:  # a stray line break
            return
        yield found.lastgroup or "", found, quoted
        quoted ^= found.lastgroup == "quote"
        position = found.end()


def _commands(line: str) -> Iterator[str]:
    """The commands of a line, as they are written, without its comment."""
    command = ""
    for kind, piece, _ in _pieces(line):
        if kind == "separator":
            yield command
            command = ""
        elif kind != "comment":
            command += piece[0]
    yield command


def _expanded(command: str, variables: Mapping[str, str]) -> str:
    """The command with known variables put in, quoted as the shell would take them."""
    made = ""
    for kind, piece, quoted in _pieces(command):
        value: str | None = None
        if kind == "run":
            value = SUBSTITUTION
        elif kind == "variable":
            value = variables.get(piece["name"] or piece["bare"], piece["default"])
        if value is None or len(made) + len(value) > _LONGEST_COMMAND:
            made += piece[0]
        else:
            made += _inserted(value, quoted, made)
    return made


def _inserted(value: str, quoted: bool, before: str) -> str:
    if quoted:
        return re.sub(r'(["\\])', r"\\\1", value)
    # The shell splits a value into words, but not in an assignment.
    if re.search(r"(^|\s)[A-Za-z_]\w*=\S*$", before):
        return shlex.quote(value)
    return " ".join(shlex.quote(word) for word in value.split())


def _words(command: str) -> list[str]:
    """The words of a command up to a redirection. Raises ValueError for an open quote."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="<>&")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for token in lexer:
        if set(token) <= set("<>&"):
            return words[:-1] if words and words[-1] in ("0", "1", "2") else words
        words.append(token)
    return words


def _assigned(words: list[str], command: str, variables: dict[str, str], exports: dict[str, str]) -> list[str]:
    """Take the assignments out of a command; what remains is the command itself."""
    exported = words[:1] == ["export"]
    rest = words[1:] if exported else words
    while rest and (found := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", rest[0], re.DOTALL)):
        variables[found[1]] = found[2]
        rest = rest[1:]
        # What stands before a command is in its environment alone.
        if exported or rest or found[1] in exports:
            exports[found[1]] = _export(found[1], found[2], command)
    if exported:
        exports.update({name: _export(name, variables[name], command) for name in rest if name in variables})
        return []
    return rest


def _export(name: str, value: str, command: str) -> str:
    if SUBSTITUTION in value:
        return " ".join(command.split())
    if "$" in value:
        escaped = re.sub(r'(["\\`])', r"\\\1", value)
        return f'export {name}="{escaped}"'
    return f"export {name}={shlex.quote(value)}"


def _launch(number: int, words: Sequence[str], exports: Mapping[str, str]) -> Launch | None:
    words = list(words)
    while words and words[0] in _BEFORE_A_COMMAND:
        words.pop(0)
    if not words or words[0].rpartition("/")[2] != "srun":
        return None
    options, rest = _options(words[1:])
    if not rest or not rest[0]:
        return None
    return Launch(number, options, rest[0], tuple(rest[1:]), tuple(exports.values()))


def _options(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """srun's options by their long names, and the command behind them."""
    options: dict[str, str] = {}
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            takes_next = not equals and name not in _FLAGS
        else:
            name, value = _SHORT.get(word[1], word[1]), word[2:].removeprefix("=")
            takes_next = not value and word[1] not in _SHORT_FLAGS
        options[name] = rest.pop(0) if takes_next and rest else value
    return options, rest
