"""Interpreter of a parsed MIL program in numpy.

The program is compiled once: constants are folded, each operation becomes a function over numbered
slots, and values are freed after their last use. Every result is compared with the shape and type
that the program declares, so that an error is reported at the operation where it occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgekit.errors import EngineCrashError, EngineLoadError
from edgekit.runtime.mil_ops import OPS, VARIADIC, Array, Op
from edgekit.runtime.mil_program import HELD_AS, MilProgram, Node, Shape, StoredWeight, Value

_READ: Final = "read_state"
_WRITE: Final = "write_state"
_UPDATE: Final = "slice_update"


@dataclass(frozen=True, slots=True)
class _Result:
    """The slot of a result, and what the program declares about it."""

    slot: int
    shape: Shape
    dtype: np.dtype[Any]
    is_static: bool


@dataclass(frozen=True, slots=True)
class _Step:
    """One operation, ready to run."""

    node: Node
    function: Callable[..., Any]
    slots: tuple[int, ...]
    results: tuple[_Result, ...]
    rounds: bool
    frees: tuple[int, ...]


class MilMachine:
    """A program with its states.

    Args:
        program: What to run.
        rounds: Round every fp16 result to fp16, as Core ML does; else compute in float32.
        max_kept_bytes: Weights are kept as float32 when all together take no more than this.

    Raises:
        EngineLoadError: An operation is unknown or used in an unknown way.
    """

    def __init__(self, program: MilProgram, *, rounds: bool, max_kept_bytes: int) -> None:
        self._program = program
        self._rounds = rounds
        self._slots: dict[str, int] = {}
        self._constants: dict[str, Any] = dict(program.constants)
        self.states: dict[str, Array] = {}
        self.reset()
        weights = [w for w in self._constants.values() if isinstance(w, StoredWeight)]
        self.is_kept = sum(weight.n_bytes for weight in weights) <= max_kept_bytes
        if self.is_kept:
            for weight in weights:
                weight.keep()
        self._steps = self._compile()
        self._start: list[Any] = [None] * len(self._slots)
        for name, slot in self._slots.items():
            if name in self._constants:
                self._start[slot] = self._constant(name)
        self._output = self._slots[program.output]

    @property
    def n_output(self) -> int:
        """Size of the output's last axis, V.

        Raises:
            EngineLoadError: The program does not declare it.
        """
        name = self._program.output
        shapes = [v.shape for node in self._program.nodes for v in node.outputs if v.name == name]
        if len(shapes) != 1 or not shapes[0] or shapes[0][-1] is None:
            raise EngineLoadError(f"output {name}: declared shape", got=shapes)
        return shapes[0][-1]

    def reset(self) -> None:
        """Fill all states with zeros, as a new ``MLState`` is."""
        for state in self._program.states:
            shape = [size for size in state.shape if size is not None]
            if len(shape) != len(state.shape):
                raise EngineLoadError(f"state {state.name}: shape", got=state.shape)
            try:
                self.states[state.name] = np.zeros(shape, np.float32)
            except (MemoryError, ValueError) as error:
                raise EngineLoadError(f"state {state.name}: shape {shape}", got=error) from error

    def run(self, feeds: Mapping[str, Array]) -> Array:
        """Run the program once; give its output.

        Args:
            feeds: Every input by name, in the type that it is held as.

        Raises:
            EngineCrashError: A result differs from its declaration, or numpy refuses.
        """
        values = self._start.copy()
        for value in self._program.inputs:
            array = feeds[value.name]
            result = self._result(value)
            _check(value.name, "input", array, result)
            values[result.slot] = array
        with np.errstate(over="ignore"):
            for step in self._steps:
                self._run_step(step, values)
        output: Array = values[self._output]
        return output

    def _run_step(self, step: _Step, values: list[Any]) -> None:
        try:
            produced = step.function(*[values[slot] for slot in step.slots])
        except (ValueError, IndexError, TypeError, MemoryError) as error:
            raise EngineCrashError(
                f"{step.node.type} {step.node.name} failed", got=error
            ) from error
        if len(step.results) == 1:
            produced = (produced,)
        for result, array in zip(step.results, produced or (), strict=True):
            if step.rounds:
                array = array.astype(np.float16).astype(np.float32)
            _check(step.node.name, step.node.type, array, result)
            values[result.slot] = array
        for slot in step.frees:
            values[slot] = None

    def _compile(self) -> tuple[_Step, ...]:
        for value in self._program.inputs:
            self._slot(value.name)
        nodes = [node for node in self._program.nodes if not self._fold(node)]
        in_place = find_in_place(nodes, self._program.output)
        last_use: dict[str, int] = {}
        known = {value.name for value in self._program.inputs} | set(self._constants)
        for index, node in enumerate(nodes):
            for name in _operands(node):
                if name not in known:
                    raise EngineLoadError(
                        f"{node.type} {node.name}: operand", got=name, wanted="an earlier value"
                    )
                last_use[name] = index
            known.update(value.name for value in node.outputs)
        steps = []
        for index, node in enumerate(nodes):
            function, names, rounds = self._function(node, is_in_place=index in in_place)
            slots = tuple(self._slot(name) for name in names)
            results = tuple(self._result(value) for value in node.outputs)
            unused = {v.name for v in node.outputs if v.name not in last_use}
            done = {n for n in names if last_use[n] == index} | unused
            frees = tuple(
                self._slots[name]
                for name in sorted(done - {self._program.output})
                if name not in self._constants
            )
            steps.append(_Step(node, function, slots, results, rounds, frees))
        return tuple(steps)

    def _function(
        self, node: Node, *, is_in_place: bool
    ) -> tuple[Callable[..., Any], list[str], bool]:
        """Give the function of a node, the values it is called with, and whether it rounds."""
        if node.type in (_READ, _WRITE):
            state = node.inputs["input"][0]
            if state not in self.states:
                raise EngineLoadError(f"{node.type} {node.name}: no state", got=state)
            if node.type == _READ:
                return (lambda: self.states[state]), [], False
            return (lambda data: self._write(state, data)), [*node.inputs["data"]], False
        op = _find(node)
        params = {
            parameter: self._parameter(node, name)
            for parameter, (name, *_) in node.inputs.items()
            if parameter not in op.tensors
        }
        try:
            function = op.make(params)
        except (NotImplementedError, KeyError, AttributeError, TypeError, ValueError) as error:
            raise EngineLoadError(
                f"{node.type} {node.name}: parameters that the mil engine does not know",
                got=error,
            ) from error
        if node.type == _UPDATE and not is_in_place:
            update = function
            function = lambda x, *rest: update(x.copy(), *rest)  # noqa: E731
        is_narrow = all(value.kind == "FLOAT16" for value in node.outputs)
        return function, _tensors(node, op), self._rounds and op.rounds and is_narrow

    def _write(self, state: str, data: Array) -> None:
        if data.shape != self.states[state].shape:
            raise ValueError(f"{data.shape} written to state {state}")
        self.states[state] = data

    def _fold(self, node: Node) -> bool:
        """Compute a node whose operands are all constant; True if it was."""
        if node.type in (_READ, _WRITE, "gather"):
            return False
        names = _tensors(node, _find(node))
        if not all(name in self._constants for name in names):
            return False
        function, names, rounds = self._function(node, is_in_place=False)
        for name in names:
            self._slot(name)
        results = tuple(self._result(value) for value in node.outputs)
        values: list[Any] = [None] * len(self._slots)
        for name in names:
            values[self._slots[name]] = self._constant(name)
        slots = tuple(self._slots[name] for name in names)
        self._run_step(_Step(node, function, slots, results, rounds, ()), values)
        for value, result in zip(node.outputs, results, strict=True):
            self._constants[value.name] = values[result.slot]
        return True

    def _parameter(self, node: Node, name: str) -> Any:
        if name not in self._constants:
            raise EngineLoadError(f"{node.type} {node.name}: not a constant", got=name)
        return self._constants[name]

    def _constant(self, name: str) -> Any:
        value = self._constants[name]
        return value.array() if isinstance(value, StoredWeight) else value

    def _slot(self, name: str) -> int:
        return self._slots.setdefault(name, len(self._slots))

    def _result(self, value: Value) -> _Result:
        is_static = None not in value.shape
        return _Result(self._slot(value.name), value.shape, HELD_AS[value.kind], is_static)


def _find(node: Node) -> Op:
    if node.type not in OPS:
        raise EngineLoadError(
            f"{node.name}: the mil engine does not know this operation",
            got=node.type,
            wanted=", ".join(OPS),
        )
    op = OPS[node.type]
    missing = [parameter for parameter in op.tensors if parameter not in node.inputs]
    if missing:
        raise EngineLoadError(
            f"{node.type} {node.name}: parameters are missing", got=", ".join(missing)
        )
    return op


def _tensors(node: Node, op: Op) -> list[str]:
    if op.tensors == (VARIADIC,):
        return [*node.inputs[VARIADIC]]
    return [node.inputs[parameter][0] for parameter in op.tensors]


def _operands(node: Node) -> list[str]:
    if node.type == _READ:
        return []
    return [*node.inputs["data"]] if node.type == _WRITE else _tensors(node, _find(node))


def _check(name: str, what: str, array: Array, result: _Result) -> None:
    shape = array.shape
    if shape != result.shape and (
        result.is_static
        or len(shape) != len(result.shape)
        or any(want not in (None, size) for size, want in zip(shape, result.shape, strict=True))
    ):
        raise EngineCrashError(
            f"{what} {name}: shape", got=shape, wanted=f"{result.shape}, as the program declares"
        )
    if array.dtype != result.dtype:
        raise EngineCrashError(f"{what} {name}: type", got=array.dtype, wanted=result.dtype)


def find_in_place(nodes: list[Node], output: str) -> frozenset[int]:
    """Find the slice_updates that may write into the state itself instead of a copy.

    This is safe when the updated value goes back into the state before the next read, and nothing
    that shares its memory is used later. A program that updates an outdated read does not qualify:
    its update works on a copy, so the result is the one that the program specifies, even if the
    program has a mistake.
    """
    last_use = {name: i for i, node in enumerate(nodes) for name in _operands(node)}
    last_use[output] = len(nodes)
    shares: dict[str, str] = {}  # value -> the state whose memory it may share
    found = set()
    for index, node in enumerate(nodes):
        if node.type == _READ:
            shares[node.outputs[0].name] = node.inputs["input"][0]
        elif node.type == _UPDATE:
            base, updated = node.inputs["x"][0], node.outputs[0].name
            state = shares.get(base)
            is_dead = all(
                last_use.get(name, -1) <= index for name, owner in shares.items() if owner == state
            )
            source = shares.get(node.inputs["update"][0])
            if state is None:
                continue
            if is_dead and source != state and _goes_back(nodes[index + 1 :], state, updated):
                found.add(index)
            shares[updated] = state
        elif node.type != _WRITE and _find(node).is_view:
            owner = shares.get(_operands(node)[0])
            if owner is not None:
                shares.update((value.name, owner) for value in node.outputs)
    return frozenset(found)


def _goes_back(later: list[Node], state: str, value: str) -> bool:
    """True when the next access to ``state`` writes ``value``."""
    for node in later:
        if node.type in (_READ, _WRITE) and node.inputs["input"][0] == state:
            return node.type == _WRITE and node.inputs["data"][0] == value
    return False
