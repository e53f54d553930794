"""Vector instructions for the numba kernels, written as LLVM vectors.

Left to itself LLVM unrolls loops of fixed length before it vectorises, and then takes maxima one by one; said as vector operations
they come out as a handful of instructions on any processor. Importing this module loads numba.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_untracked
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

_INDEX = ir.IntType(64)


class Vectors(NamedTuple):
    """The operations for one choice of types; each works on ``lanes`` neighbouring elements of a 1-D array."""

    enter: Any
    best: Any
    largest: Any
    least: Any
    relabel: Any


def make_vectors(lanes: int, key_bits: int, packed_bits: int, shift: int) -> Vectors:
    """Vector operations on ``lanes`` keys of ``key_bits``, packed with their position into ``packed_bits``.

    Args:
        lanes: elements a vector; the arrays handed in must hold as many from the offset on.
        key_bits: 16 or 32.
        packed_bits: 32 or 64.
        shift: how far a key moves up to make room for its position.
    """
    key, packed = ir.IntType(key_bits), ir.IntType(packed_bits)
    keys, packs = ir.VectorType(key, lanes), ir.VectorType(packed, lanes)
    result = types.int32 if packed_bits == 32 else types.int64
    absent, mask = -(1 << (key_bits - 1)), (1 << (key_bits - 1)) - 1

    def pack(builder: Any, value: Any, column: Any) -> Any:
        """The largest of ``key << shift | position`` over a vector of keys."""
        high = builder.shl(builder.sext(value, packs), _same(packs, shift))
        positions = builder.add(_counting(packs), _spread(builder, packs, builder.trunc(column, packed)))
        return _reduce(builder, "smax", builder.or_(high, positions))

    @_operation(result)
    def enter(builder: Any, data: Sequence[Any], column: Any, width: Any, row: Any) -> Any:
        """Turn stored bits into keys that sort as the floats do; note the largest magnitudes; return the best entry."""
        source, target, extreme = data
        positions = builder.add(_counting(keys), _spread(builder, keys, builder.trunc(column, key)))
        inside = builder.icmp_signed("<", positions, _spread(builder, keys, builder.trunc(width, key)))
        raw = builder.select(inside, _read(builder, source, keys), _same(keys, 0))
        magnitude = builder.and_(raw, _same(keys, mask))
        negative = builder.icmp_signed("<", raw, _same(keys, 0))
        value = builder.select(negative, builder.sub(_same(keys, 0), magnitude), magnitude)
        old = _read(builder, extreme, keys)
        _write(builder, extreme, builder.select(builder.icmp_signed(">", magnitude, old), magnitude, old))
        diagonal = builder.icmp_signed("==", positions, _spread(builder, keys, builder.trunc(row, key)))
        entered = builder.select(builder.and_(inside, builder.not_(diagonal)), value, _same(keys, absent))
        _write(builder, target, entered)
        return pack(builder, entered, column)

    @_operation(result)
    def best(builder: Any, data: Sequence[Any], column: Any) -> Any:
        """The best entry of a vector of keys."""
        return pack(builder, _read(builder, data[0], keys), column)

    @_operation(result)
    def largest(builder: Any, data: Sequence[Any]) -> Any:
        """The largest of a vector of packed entries."""
        return _reduce(builder, "smax", _read(builder, data[0], packs))

    @_operation(types.int32)
    def least(builder: Any, data: Sequence[Any]) -> Any:
        """The least of a vector of keys less one, so that absent ones (the least integer) wrap to the largest."""
        lowered = builder.sub(_read(builder, data[0], keys), _same(keys, 1))
        return builder.sext(_reduce(builder, "smin", lowered), ir.IntType(32)) if key_bits < 32 else _reduce(builder, "smin", lowered)

    @_operation(types.void)
    def relabel(builder: Any, data: Sequence[Any], new: Any, old: Any) -> None:
        """Replace ``old`` by ``new``, 16-bit labels."""
        labels = ir.VectorType(ir.IntType(16), lanes)
        value = _read(builder, data[0], labels)
        new, old = (_spread(builder, labels, builder.trunc(label, ir.IntType(16))) for label in (new, old))
        _write(builder, data[0], builder.select(builder.icmp_signed("==", value, old), new, value))

    return Vectors(
        _with_arrays(enter, 3, 3),
        _with_arrays(best, 1, 1),
        _with_arrays(largest, 1, 0),
        _with_arrays(least, 1, 0),
        _with_arrays(relabel, 1, 2),
    )


def _operation(result: Any) -> Callable[[Callable[..., Any]], tuple[Any, Callable[..., Any]]]:
    return lambda function: (result, function)


def _with_arrays(operation: tuple[Any, Callable[..., Any]], arrays: int, numbers: int) -> Any:
    """An intrinsic that takes ``arrays`` pairs (array, offset), then ``numbers`` integers."""
    result, function = operation

    def typed(typing: Any, arguments: Sequence[Any]) -> Any:
        signature = result(*arguments)

        def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
            data = []
            for index in range(0, 2 * arrays, 2):
                array = make_array(signature.args[index])(context, builder, values[index])
                data.append(builder.gep(array.data, [_wide(builder, values[index + 1])]))
            made = function(builder, data, *(_wide(builder, value) for value in values[2 * arrays :]))
            if result == types.void:
                return context.get_dummy_value()
            return impl_ret_untracked(context, builder, signature.return_type, made)

        return signature, generate

    # numba reads the number of arguments from the function itself.
    if (arrays, numbers) == (3, 3):
        return intrinsic(lambda typing, a, i, b, j, c, k, x, y, z: typed(typing, (a, i, b, j, c, k, x, y, z)))
    if (arrays, numbers) == (1, 0):
        return intrinsic(lambda typing, a, i: typed(typing, (a, i)))
    if (arrays, numbers) == (1, 1):
        return intrinsic(lambda typing, a, i, x: typed(typing, (a, i, x)))
    return intrinsic(lambda typing, a, i, x, y: typed(typing, (a, i, x, y)))


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
