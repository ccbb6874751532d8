"""Vectors of the CPU's width for numba, and reads and writes at addresses.

numba's own loops leave half of the machine unused: it does not keep a block of results in registers. A vector here is a
value of LLVM's vector type; arithmetic on it is one instruction, and a handful of them stay in registers.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

_FEATURES = binding.get_host_cpu_features()
BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx2") else 16
"""Bytes of a vector."""


class Vector(types.Type):
    """numba's type of a vector of float32 or float64."""

    def __init__(self, element: types.Type) -> None:
        self.element = element
        super().__init__(f"Vector({element})")


def _scalar(element: types.Type) -> ir.Type:
    return ir.FloatType() if element == types.float32 else ir.DoubleType()


def _vector(element: types.Type) -> ir.VectorType:
    return ir.VectorType(_scalar(element), BYTES * 8 // element.bitwidth)


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, _vector(kind.element))


def _at(builder: Any, address: Any, index: Any, pointed: ir.Type, scalar: ir.Type) -> Any:
    start = builder.gep(builder.inttoptr(address, scalar.as_pointer()), [index])
    return builder.bitcast(start, pointed.as_pointer())


@intrinsic
def lanes(typing: Any, zero: Any) -> Any:
    """Returns the numbers in a vector of zero's type, a constant."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.int64, BYTES * 8 // zero.bitwidth)

    return types.int64(zero), generate


@intrinsic
def load(typing: Any, address: Any, index: Any, zero: Any) -> Any:
    """Returns the vector that begins `index` numbers of zero's type after an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = builder.load(_at(builder, arguments[0], arguments[1], _vector(zero), _scalar(zero)))
        found.align = zero.bitwidth // 8
        return found

    return Vector(zero)(types.int64, types.int64, zero), generate


@intrinsic
def store(typing: Any, address: Any, index: Any, vector: Any) -> Any:
    """Writes a vector `index` numbers after an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = vector.element
        place = _at(builder, arguments[0], arguments[1], _vector(element), _scalar(element))
        builder.store(arguments[2], place).align = element.bitwidth // 8
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, vector), generate


@intrinsic
def get(typing: Any, address: Any, index: Any, zero: Any) -> Any:
    """Returns the number of zero's type (or the int64) `index` numbers after an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.IntType(64) if zero == types.int64 else _scalar(zero)
        return builder.load(_at(builder, arguments[0], arguments[1], kind, kind))

    return zero(types.int64, types.int64, zero), generate


@intrinsic
def put(typing: Any, address: Any, index: Any, value: Any) -> Any:
    """Writes a number `index` numbers after an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.IntType(64) if value == types.int64 else _scalar(value)
        builder.store(arguments[2], _at(builder, arguments[0], arguments[1], kind, kind))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, value), generate


@intrinsic
def cast(typing: Any, value: Any, zero: Any) -> Any:
    """Returns a number as one of zero's type."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[0], value, zero)

    return zero(value, zero), generate


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """Returns a vector of one repeated number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = _vector(value)
        nothing = ir.Constant(kind, ir.Undefined)
        first = builder.insert_element(nothing, arguments[0], ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
        return builder.shuffle_vector(first, nothing, zeros)

    return Vector(value)(value), generate


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Returns a * b + c, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = _vector(a.element)
        name = f"llvm.fma.v{kind.count}f{a.element.bitwidth}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        return builder.call(function, arguments)

    return a(a, a, a), generate


@intrinsic
def where_larger(typing: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """Returns `yes` in the lanes where a > b, otherwise (also where one is no number) `no`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", arguments[0], arguments[1]), arguments[2], arguments[3])

    return a(a, a, a, a), generate


@intrinsic
def where_nan(typing: Any, a: Any, yes: Any, no: Any) -> Any:
    """Returns `yes` in the lanes where a is no number, otherwise `no`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_unordered("uno", arguments[0], arguments[0]), arguments[1], arguments[2])

    return a(a, a, a), generate


def _operator(symbol: Callable[..., Any], instruction: str) -> None:
    @intrinsic
    def apply(typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments)

        return a(a, a), generate

    @overload(symbol)
    def choose(a, b):
        if isinstance(a, Vector) and isinstance(b, Vector):
            return lambda a, b: apply(a, b)
        return None


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
