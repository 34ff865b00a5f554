"""A reader of pickles that calls nothing.

A pickle is a program for a stack machine. This machine knows the instructions that move data, and looks up
the instructions that would import and call something in a table of meanings given to it: plain functions of
ours that build data. Whatever is not in the table becomes an :class:`Instance`, an inert record of what would
have been made, and is reported. There is no import, no attribute access and no call of anything that comes
from the file, whatever the file says.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from featlens.errors import FeatlensError

__all__ = ["Global", "Inspection", "Instance", "Machine", "scalar", "shown"]

OPERATIONS = 1_000_000
"""Instructions that one file may have; a network of 300 M parameters has some hundred thousand."""

INTEGER_BITS = 128
NAME_LENGTH = 200
ARGUMENTS = 16
INDICES = 2**32
"""Limits that keep a short file from taking long: what is repeated must be small."""

NAMES_KEPT = 1_000

Meaning = Callable[..., Any]

_DAMAGE = (
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    OverflowError,
    EOFError,
    RuntimeError,
    struct.error,
)
"""What reading nonsense raises; all of it means that the file is damaged."""


def shown(text: object, most: int = 80) -> str:
    r"""Text from a file made fit for a message: printable and short.

    >>> shown("os\x1b.system")
    'os?.system'
    """
    plain = "".join(sign if sign.isprintable() else "?" for sign in str(text)[: most + 1])
    return plain if len(plain) <= most else plain[: most - 3] + "..."


@dataclass(frozen=True)
class Global:
    """A name that the pickle would have imported."""

    module: str
    name: str

    @property
    def dotted(self) -> str:
        """``module.name``."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Instance:
    """What a call or a class would have made, left as it was described.

    Attributes
    ----------
    kind
        The class or function.
    arguments
        What it would have been called with.
    state
        What its attributes would have been set from.
    """

    kind: Global
    arguments: tuple[Any, ...] = ()
    state: Any = None

    @property
    def class_name(self) -> str:
        """Name of the class without its module."""
        return self.kind.name.rpartition(".")[2]


@dataclass
class Inspection:
    """What one file has used up and referred to, over all pickles that lie in it.

    Attributes
    ----------
    size
        Bytes that may be copied; twice the file is enough for all of its tensors.
    operations
        Instructions read so far.
    unknown
        Names that nothing of ours stands for.
    """

    size: int
    operations: int = 0
    unknown: dict[str, None] = field(default_factory=dict)

    def spend(self) -> None:
        """Count one instruction."""
        self.operations += 1
        if self.operations > OPERATIONS:
            raise FeatlensError(
                f"expected at most {OPERATIONS} instructions, found more; no network of EDM needs so many"
            )

    def hold(self, size: int) -> None:
        """Count bytes of values; a few repeated again and again would fill any memory."""
        self.size -= size
        if self.size < 0:
            raise FeatlensError("expected tensors that lie side by side, found the same data many times over")

    def refer(self, name: str) -> None:
        """Note a name that nothing of ours stands for."""
        if len(self.unknown) < NAMES_KEPT:
            self.unknown[shown(name)] = None


_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_BYTES = {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_BYTES |= {"BYTEARRAY8"}
_TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_PUSHED = _NUMBERS | _BYTES | _TEXTS
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_IGNORED = frozenset(("PROTO", "FRAME"))


class Machine:
    """Reads one pickle after another from a stream.

    Parameters
    ----------
    meanings
        By dotted name: a function of ours that builds data from the arguments, or None for a class whose
        instances stay :class:`Instance`.
    inspection
        Where instructions are counted and unknown names are noted.
    persistent
        What a persistent id stands for; without it, there may be none.
    """

    def __init__(
        self,
        meanings: Mapping[str, Meaning | None],
        inspection: Inspection,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self._meanings = meanings
        self._inspection = inspection
        self._persistent = persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def read(self, stream: IO[bytes] | Any) -> Any:
        """The object of the next pickle in the stream, which is left just behind it.

        Raises
        ------
        FeatlensError
            The pickle is damaged, too long, or uses an instruction that is not understood here.
        """
        self._stack, self._below, self._memo = [], [], {}
        at: int | None = 0
        try:
            for opcode, argument, position in pickletools.genops(stream):
                at = position
                self._inspection.spend()
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except _DAMAGE as error:
            raise FeatlensError(
                f"the pickle is damaged or cut short near byte {at} ({shown(error)}); download it again"
            ) from None
        raise FeatlensError("the pickle has no end; download it again")

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            if isinstance(argument, int) and argument.bit_length() > INTEGER_BITS:
                raise FeatlensError("expected integers of ordinary size, found one of thousands of bits")
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name not in _IGNORED:
            action = _ACTIONS.get(name)
            if action is None:
                raise FeatlensError(
                    f"the pickle uses the instruction {name}, which no file of EDM has; it is not read"
                )
            action(self, argument)

    # --- marks and memo -------------------------------------------------------------------------------------

    def _mark(self, argument: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _taken(self) -> list[Any]:
        """What lies above the last mark; the mark goes."""
        taken, self._stack = self._stack, self._below.pop()
        return taken

    def _pop(self, argument: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._taken()

    def _put(self, argument: Any) -> None:
        index = len(self._memo) if argument is None else int(argument)
        if not 0 <= index <= INDICES:
            raise IndexError("a place beyond all places")
        self._memo[index] = self._stack[-1]

    def _get(self, argument: Any) -> None:
        self._stack.append(self._memo[int(argument)])

    # --- containers -----------------------------------------------------------------------------------------

    def _make(self, kind: type) -> None:
        taken = self._taken()
        if kind is dict:
            self._stack.append({})
            self._fill(taken)
        else:
            self._stack.append(_scalars(taken) if kind is frozenset else kind(taken))

    def _tuple(self, size: int) -> None:
        if len(self._stack) < size:
            raise IndexError("the stack is empty")
        self._stack[len(self._stack) - size :] = [tuple(self._stack[len(self._stack) - size :])]

    def _fill(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Instance):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError(f"items for a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[scalar(key)] = value

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(_scalars(items))
        elif not isinstance(target, Instance):
            raise TypeError(f"entries for a {type(target).__name__}")

    # --- what would import and call -------------------------------------------------------------------------

    def _refer(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        if len(module) + len(name) > NAME_LENGTH:
            raise ValueError(f"a name of more than {NAME_LENGTH} letters")
        found = Global(module, name)
        if found.dotted not in self._meanings:
            self._inspection.refer(found.dotted)
        self._stack.append(found)

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise TypeError(f"a call of a {type(function).__name__}")
        if len(arguments) > ARGUMENTS:
            raise TypeError(f"a call with more than {ARGUMENTS} arguments")
        made: Any = Instance(function, arguments)
        meaning = self._meanings.get(function.dotted)
        if meaning is not None:
            try:
                made = meaning(*arguments)
            except (FeatlensError, *_DAMAGE):
                # Once a name is unknown the file is refused, and what is left is read for its names only.
                if not self._inspection.unknown:
                    raise
        self._stack.append(made)

    def _reduce(self, argument: Any) -> None:
        arguments = self._stack.pop()
        self._call(self._stack.pop(), arguments)

    def _stack_global(self, argument: Any) -> None:
        name = self._stack.pop()
        self._refer(self._stack.pop(), name)

    def _global(self, argument: Any) -> None:
        self._refer(*str(argument).split(" ", 1))

    def _inst(self, argument: Any) -> None:
        arguments = tuple(self._taken())
        self._global(argument)
        self._call(self._stack.pop(), arguments)

    def _obj(self, argument: Any) -> None:
        kind, *arguments = self._taken()
        self._call(kind, tuple(arguments))

    def _newobj_ex(self, argument: Any) -> None:
        self._stack.pop()
        self._reduce(None)

    def _build(self, argument: Any) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Instance):
            target.state = state
        elif not isinstance(target, dict):
            raise TypeError(f"a state for a {type(target).__name__}")

    def _refer_persistent(self, identity: Any) -> None:
        if self._persistent is None:
            raise FeatlensError("the pickle refers to data outside itself, which no file of EDM does")
        self._stack.append(self._persistent(identity))


def scalar(value: Any) -> Any:
    """The value, if it may be a key: a text, None, or a number of ordinary size."""
    # Nested tuples recurse when hashed, and large integers can be chosen so that all have the same hash.
    if isinstance(value, str) or value is None or (isinstance(value, int) and abs(value) <= INDICES):
        return value
    raise TypeError(f"a {type(value).__name__} as a key")


def _scalars(values: list[Any]) -> set[Any]:
    return {scalar(value) for value in values}


_ACTIONS: dict[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine._mark,
    "POP": Machine._pop,
    "POP_MARK": lambda machine, _: machine._taken().clear(),
    "DUP": lambda machine, _: machine._stack.append(machine._stack[-1]),
    "PUT": Machine._put,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "MEMOIZE": Machine._put,
    "GET": Machine._get,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "EMPTY_LIST": lambda machine, _: machine._stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine._stack.append({}),
    "EMPTY_SET": lambda machine, _: machine._stack.append(set()),
    "EMPTY_TUPLE": lambda machine, _: machine._stack.append(()),
    "LIST": lambda machine, _: machine._make(list),
    "DICT": lambda machine, _: machine._make(dict),
    "TUPLE": lambda machine, _: machine._make(tuple),
    "FROZENSET": lambda machine, _: machine._make(frozenset),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "APPEND": lambda machine, _: machine._extend([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine._extend(machine._taken()),
    "ADDITEMS": lambda machine, _: machine._extend(machine._taken()),
    "SETITEM": lambda machine, _: machine._fill([machine._stack.pop(-2), machine._stack.pop()]),
    "SETITEMS": lambda machine, _: machine._fill(machine._taken()),
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._reduce,
    "NEWOBJ_EX": Machine._newobj_ex,
    "INST": Machine._inst,
    "OBJ": Machine._obj,
    "BUILD": Machine._build,
    "PERSID": Machine._refer_persistent,
    "BINPERSID": lambda machine, _: machine._refer_persistent(machine._stack.pop()),
}
