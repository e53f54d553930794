# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped"
"""Vector instructions for the numba kernels, written as LLVM vectors.

Left to itself LLVM unrolls loops of fixed length before it vectorises, and then takes maxima one by one; said as
vector operations they come out as a handful of instructions on any processor. ``lanes`` (elements a vector) and
``shift`` must be constants; the arrays must hold as many elements from the offset on. Importing this module loads
numba.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

_INDEX = ir.IntType(64)


@intrinsic(prefer_literal=True)
def enter(typing, source, i, target, j, extreme, column, width, row, shift, lanes):
    """Turn the stored bits at ``source[i:]`` into keys that sort as the floats do, at ``target[j:]``.

    The lanes hold the columns from ``column`` on of row ``row``; columns from ``width`` on and the diagonal become
    absent. The largest magnitudes go to ``extreme``. Returns the best entry, ``key << shift | column``.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        keys = _vector(signature.args[0], lanes)
        key, bits = keys.element, keys.element.width
        column, width, row = (builder.trunc(_wide(builder, value), key) for value in values[5:8])
        positions = builder.add(_counting(keys), _spread(builder, keys, column))
        inside = builder.icmp_signed("<", positions, _spread(builder, keys, width))
        raw = builder.select(
            inside, _read(builder, _pointer(context, builder, signature, values, 0), keys), _same(keys, 0)
        )
        magnitude = builder.and_(raw, _same(keys, (1 << (bits - 1)) - 1))
        negative = builder.icmp_signed("<", raw, _same(keys, 0))
        value = builder.select(negative, builder.sub(_same(keys, 0), magnitude), magnitude)
        largest = builder.bitcast(_data(context, builder, signature, values, 4), keys.as_pointer())
        old = _read(builder, largest, keys)
        _write(builder, largest, builder.select(builder.icmp_signed(">", magnitude, old), magnitude, old))
        diagonal = builder.icmp_signed("==", positions, _spread(builder, keys, row))
        kept = builder.and_(inside, builder.not_(diagonal))
        entered = builder.select(kept, value, _same(keys, -(1 << (bits - 1))))
        _write(builder, _pointer(context, builder, signature, values, 2), entered)
        return _best(builder, entered, _wide(builder, values[5]), shift)

    return types.int64(source, i, target, j, extreme, column, width, row, shift, lanes), generate


@intrinsic(prefer_literal=True)
def best_entry(typing, keys, i, column, shift, lanes):
    """The best entry of ``keys[i:]``, whose first lane is column ``column``: ``key << shift | column``."""

    def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        read = _read(builder, _pointer(context, builder, signature, values, 0), _vector(signature.args[0], lanes))
        return _best(builder, read, _wide(builder, values[2]), shift)

    return types.int64(keys, i, column, shift, lanes), generate


@intrinsic(prefer_literal=True)
def largest(typing, packed, i, lanes):
    """The largest of ``packed[i:]``."""

    def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        read = _read(builder, _pointer(context, builder, signature, values, 0), _vector(signature.args[0], lanes))
        return builder.sext(_reduce(builder, "smax", read), _INDEX) if _narrow(read) else _reduce(builder, "smax", read)

    return types.int64(packed, i, lanes), generate


@intrinsic(prefer_literal=True)
def least_below(typing, keys, i, lanes):
    """The least of ``keys[i:]`` less one: absent keys, the least integer, wrap around to the largest."""

    def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        read = _read(builder, _pointer(context, builder, signature, values, 0), _vector(signature.args[0], lanes))
        return builder.sext(_reduce(builder, "smin", builder.sub(read, _same(read.type, 1))), _INDEX)

    return types.int64(keys, i, lanes), generate


@intrinsic(prefer_literal=True)
def relabel(typing, labels, i, new, old, lanes):
    """Replace ``old`` by ``new`` in ``labels[i:]``."""

    def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        vector = _vector(signature.args[0], lanes)
        pointer = _pointer(context, builder, signature, values, 0)
        value = _read(builder, pointer, vector)
        new, old = (_spread(builder, vector, label) for label in values[2:4])
        _write(builder, pointer, builder.select(builder.icmp_signed("==", value, old), new, value))
        return context.get_dummy_value()

    return types.void(labels, i, labels.dtype, labels.dtype, lanes), generate


def _best(builder: Any, keys: Any, column: Any, shift: Any) -> Any:
    """The largest of ``key << shift | position`` over a vector of keys, in 32 bits where they suffice."""
    bits = 32 if keys.type.element.width == 16 and shift.literal_value == 16 else 64
    packed = ir.VectorType(ir.IntType(bits), keys.type.count)
    high = builder.shl(builder.sext(keys, packed), _same(packed, shift.literal_value))
    column = builder.trunc(column, packed.element) if bits == 32 else column
    positions = builder.add(_counting(packed), _spread(builder, packed, column))
    found = _reduce(builder, "smax", builder.or_(high, positions))
    return builder.sext(found, _INDEX) if bits == 32 else found


def _vector(array: Any, lanes: Any) -> Any:
    return ir.VectorType(ir.IntType(array.dtype.bitwidth), lanes.literal_value)


def _narrow(vector: Any) -> bool:
    return bool(vector.type.element.width < 64)


def _data(context: Any, builder: Any, signature: Any, values: Sequence[Any], argument: int) -> Any:
    return make_array(signature.args[argument])(context, builder, values[argument]).data


def _pointer(context: Any, builder: Any, signature: Any, values: Sequence[Any], argument: int) -> Any:
    """Where the array ``argument`` holds the element that the argument after it names."""
    offset = _wide(builder, values[argument + 1])
    return builder.gep(_data(context, builder, signature, values, argument), [offset])


def _wide(builder: Any, value: Any) -> Any:
    return value if value.type == _INDEX else builder.zext(value, _INDEX)


def _same(vector: Any, value: int) -> Any:
    return ir.Constant(vector, [value] * vector.count)


def _counting(vector: Any) -> Any:
    return ir.Constant(vector, list(range(vector.count)))


def _spread(builder: Any, vector: Any, value: Any) -> Any:
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def _read(builder: Any, pointer: Any, vector: Any) -> Any:
    loaded = builder.load(builder.bitcast(pointer, vector.as_pointer()))
    loaded.align = vector.element.width // 8
    return loaded


def _write(builder: Any, pointer: Any, value: Any) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=value.type.element.width // 8)


def _reduce(builder: Any, what: str, value: Any) -> Any:
    vector = value.type
    name = f"llvm.vector.reduce.{what}.v{vector.count}i{vector.element.width}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector.element, [vector]), name)
    return builder.call(function, [value])
