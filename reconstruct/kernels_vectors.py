"""Vectors of floats and ints in registers, for numba: the few operations that a gather-free interpolation needs.

`LANES` numbers make a vector: 16 where numba compiles for AVX-512, 8 for AVX2, 0 where there is neither; then nothing
else here may be used. Inside compiled functions only; vectors cannot be passed to a parallel loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
from llvmlite import ir
from numba import config, types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model


def _has(feature: str) -> bool:
    """Whether numba compiles for processors with that feature: what it was told, else what the host has."""
    if config.CPU_FEATURES is not None:
        return f"+{feature}" in config.CPU_FEATURES.split(",")
    return bool(llvm.get_host_cpu_features().get(feature, False))


LANES = 16 if _has("avx512f") else 8 if _has("avx2") and _has("fma") else 0
"""Voxels along z that are worked on at once; 0: no such instructions on this host."""

_float, _int = ir.FloatType(), ir.IntType(32)
_floats, _ints = ir.VectorType(_float, max(LANES, 1)), ir.VectorType(_int, max(LANES, 1))


class _Vector(types.Type):  # type: ignore[misc]
    """`LANES` numbers in a register."""

    def __init__(self, element: str) -> None:
        super().__init__(name=f"{element}x{LANES}")


class _Floats(_Vector):
    pass


class _Ints(_Vector):
    pass


FLOATS, INTS = _Floats("float32"), _Ints("int32")


@register_model(_Floats)
class _FloatsModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _floats)


@register_model(_Ints)
class _IntsModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _ints)


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)


def _operation(result: Any, operands: int, generate: Callable[..., Any]) -> Any:
    """Make an intrinsic of one to three operands whose code is ``generate(builder, *operands)``."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return generate(builder, *arguments)

    if operands == 1:
        return intrinsic(lambda _typing, a: (result(a), code))
    if operands == 2:
        return intrinsic(lambda _typing, a, b: (result(a, b), code))
    return intrinsic(lambda _typing, a, b, c: (result(a, b, c), code))


def _permuted(builder: Any, low: Any, index: Any, high: Any) -> Any:
    """Elements of the two vectors `low` and `high`, end to end, at `index`."""
    if LANES == 16:
        return _call(builder, "llvm.x86.avx512.vpermi2var.ps.512", _floats, [low, index, high])
    name = "llvm.x86.avx2.permps"
    from_low = _call(builder, name, _floats, [low, index])
    from_high = _call(builder, name, _floats, [high, index])
    is_high = builder.icmp_signed(">", index, ir.Constant(_ints, [LANES - 1] * LANES))
    return builder.select(is_high, from_high, from_low)


def _picked(builder: Any, vector: Any, index: Any) -> Any:
    """Elements of one vector at `index`, of which the lowest bits count."""
    name = "llvm.x86.avx512.permvar.sf.512" if LANES == 16 else "llvm.x86.avx2.permps"
    return _call(builder, name, _floats, [vector, index])


def _floored(builder: Any, x: Any) -> Any:
    """The greatest ints that are not above `x`."""
    if LANES == 16:  # one instruction that says how to round
        down, all_lanes = ir.Constant(_int, 9), ir.Constant(ir.IntType(16), -1)
        undefined = ir.Constant(_ints, ir.Undefined)
        return _call(builder, "llvm.x86.avx512.mask.cvtps2dq.512", _ints, [x, undefined, all_lanes, down])
    return builder.fptosi(_call(builder, f"llvm.floor.v{LANES}f32", _floats, [x]), _ints)


def _picked_by_sign(builder: Any, signs: Any, negative: Any, positive: Any) -> Any:
    """Elements of `negative` where `signs` has a minus, else of `positive`."""
    if LANES == 8:
        return _call(builder, "llvm.x86.avx.blendv.ps.256", _floats, [positive, negative, signs])
    return builder.select(builder.fcmp_ordered("<", signs, ir.Constant(_floats, [0.0] * LANES)), negative, positive)


vector_add = _operation(FLOATS, 2, lambda b, x, y: b.fadd(x, y))
vector_subtract = _operation(FLOATS, 2, lambda b, x, y: b.fsub(x, y))
vector_multiply = _operation(FLOATS, 2, lambda b, x, y: b.fmul(x, y))
multiply_add = _operation(FLOATS, 3, lambda b, x, y, z: _call(b, f"llvm.fma.v{LANES}f32", _floats, [x, y, z]))
vector_floor = _operation(FLOATS, 1, lambda b, x: _call(b, f"llvm.floor.v{LANES}f32", _floats, [x]))
smaller = _operation(FLOATS, 2, lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y))
larger = _operation(FLOATS, 2, lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
to_ints = _operation(INTS, 1, lambda b, x: b.fptosi(x, _ints))
floor_to_ints = _operation(INTS, 1, _floored)
to_floats = _operation(FLOATS, 1, lambda b, x: b.sitofp(x, _floats))
int_multiply_add = _operation(INTS, 3, lambda b, x, y, z: b.add(b.mul(x, y), z))
int_add = _operation(INTS, 2, lambda b, x, y: b.add(x, y))
zero_unless_above = _operation(
    FLOATS, 3, lambda b, x, limit, y: b.select(b.fcmp_ordered(">", x, limit), y, ir.Constant(_floats, [0.0] * LANES))
)
vector_next = _operation(INTS, 1, lambda b, x: b.add(x, ir.Constant(_ints, [1] * LANES)))
permute = _operation(FLOATS, 3, _permuted)
pick = _operation(FLOATS, 2, _picked)
pick_by_sign = _operation(FLOATS, 3, _picked_by_sign)
magnitude = _operation(FLOATS, 1, lambda b, x: _call(b, f"llvm.fabs.v{LANES}f32", _floats, [x]))
vector_divide = _operation(FLOATS, 2, lambda b, x, y: b.fdiv(x, y))


def _splat(builder: Any, scalar: Any, kind: Any) -> Any:
    empty = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.Constant(_int, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(_ints, [0] * LANES))


@intrinsic  # type: ignore[untyped-decorator]
def spread(_typing: Any, scalar: Any) -> Any:
    """A float in every lane."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, context.cast(builder, arguments[0], signature.args[0], types.float32), _floats)

    return FLOATS(scalar), code


@intrinsic  # type: ignore[untyped-decorator]
def spread_int(_typing: Any, scalar: Any) -> Any:
    """An int of 32 bits in every lane."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, context.cast(builder, arguments[0], signature.args[0], types.int32), _ints)

    return INTS(scalar), code


@intrinsic  # type: ignore[untyped-decorator]
def masked(_typing: Any, ints: Any, mask: Any) -> Any:
    """Each lane and `mask`."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = context.cast(builder, arguments[1], signature.args[1], types.int32)
        return builder.and_(arguments[0], _splat(builder, bits, _ints))

    return INTS(ints, mask), code


@intrinsic  # type: ignore[untyped-decorator]
def lanes(_typing: Any) -> Any:
    """0, 1, 2 and so on."""

    def code(*_: Any) -> Any:
        return ir.Constant(_floats, [float(lane) for lane in range(LANES)])

    return FLOATS(), code


def _address(context: Any, builder: Any, signature: Any, arguments: Any, kind: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    index = context.cast(builder, arguments[1], signature.args[1], types.intp)
    return builder.bitcast(builder.gep(array.data, [index]), kind.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def vector_load(_typing: Any, array: Any, index: Any) -> Any:
    """The vector that starts at an index of a contiguous float32 array; nothing is checked."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = builder.load(_address(context, builder, signature, arguments, _floats))
        vector.align = 4
        return vector

    return FLOATS(array, index), code


@intrinsic  # type: ignore[untyped-decorator]
def spread_at(_typing: Any, array: Any, index: Any) -> Any:
    """The float at an index of a contiguous float32 array, in every lane; nothing is checked."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scalar = builder.load(_address(context, builder, signature, arguments, _float))
        return _splat(builder, scalar, _floats)

    return FLOATS(array, index), code


@intrinsic  # type: ignore[untyped-decorator]
def int_at(_typing: Any, array: Any, index: Any) -> Any:
    """The int at an index of a contiguous int32 array, as one of 64 bits; nothing is checked."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scalar = builder.load(_address(context, builder, signature, arguments, _int))
        return builder.sext(scalar, ir.IntType(64))

    return types.int64(array, index), code


@intrinsic  # type: ignore[untyped-decorator]
def fetch(_typing: Any, array: Any, index: Any) -> Any:
    """Have the cache line of an index of a contiguous array brought into the level-2 cache; nothing waits for it."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments, ir.IntType(8))
        to_read, near, data = (ir.Constant(_int, number) for number in (0, 2, 1))
        _call(builder, "llvm.prefetch.p0i8", ir.VoidType(), [address, to_read, near, data])
        return context.get_dummy_value()

    return types.void(array, index), code


@intrinsic  # type: ignore[untyped-decorator]
def vector_store(_typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write a vector of floats or ints of 32 bits to a contiguous array from an index on; nothing is checked."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = _floats if signature.args[2] == FLOATS else _ints
        store = builder.store(arguments[2], _address(context, builder, signature, arguments, kind))
        store.align = 4
        return context.get_dummy_value()

    return types.void(array, index, vector), code


def _joined(builder: Any, vectors: list[Any]) -> Any:
    """Vectors end to end; their number is a power of two."""
    while len(vectors) > 1:
        order = ir.Constant(ir.VectorType(_int, 2 * vectors[0].type.count), list(range(2 * vectors[0].type.count)))
        vectors = [
            builder.shuffle_vector(first, second, order)
            for first, second in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    return vectors[0]


@intrinsic  # type: ignore[untyped-decorator]
def load_pairs(_typing: Any, array: Any, offset: Any, index: Any, at: Any) -> Any:
    """The elements of a float32 array at `offset` and the int32 in ``index[at:at + LANES]``, and those behind them.

    Two vectors; nothing is checked. A load of two floats for each lane is quicker than the gather instructions of most
    processors, and indices in memory are quicker than those in a vector.
    """
    pair = ir.VectorType(_float, 2)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        base = context.make_array(kinds[0])(context, builder, arguments[0]).data
        base = builder.gep(base, [context.cast(builder, arguments[1], kinds[1], types.intp)])
        indices = context.make_array(kinds[2])(context, builder, arguments[2]).data
        indices = builder.gep(indices, [context.cast(builder, arguments[3], kinds[3], types.intp)])
        pairs = []
        for lane in range(LANES):
            place = builder.sext(builder.load(builder.gep(indices, [ir.Constant(_int, lane)])), ir.IntType(64))
            loaded = builder.load(builder.bitcast(builder.gep(base, [place]), pair.as_pointer()))
            loaded.align = 4
            pairs.append(loaded)
        both = _joined(builder, pairs)
        undefined = ir.Constant(both.type, ir.Undefined)
        halves = [
            builder.shuffle_vector(both, undefined, ir.Constant(_ints, list(range(start, 2 * LANES, 2))))
            for start in (0, 1)
        ]
        return context.make_tuple(builder, signature.return_type, halves)

    return types.UniTuple(FLOATS, 2)(array, offset, index, at), code


@intrinsic  # type: ignore[untyped-decorator]
def transpose(_typing: Any, array: Any, at: Any, stride: Any, out: Any, place: Any) -> Any:
    """Read `LANES` vectors of a float32 array from `at` on, `stride` apart, and write their transpose to `out`, whole.

    Nothing is checked. By exchange of ever larger parts of pairs (Eklundh, IEEE Trans. Comput. C-21 (1972) 801).
    """

    def exchanged(builder: Any, first: Any, second: Any, size: int) -> Any:
        def order(lane: int, offset: int) -> int:
            return lane + offset if not lane & size else LANES + lane - size + offset

        return [
            builder.shuffle_vector(first, second, ir.Constant(_ints, [order(n, offset) for n in range(LANES)]))
            for offset in (0, size)
        ]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        begin, step, target = (context.cast(builder, arguments[n], kinds[n], types.intp) for n in (1, 2, 4))
        source = builder.gep(context.make_array(kinds[0])(context, builder, arguments[0]).data, [begin])
        vectors = []
        for row in range(LANES):
            address = builder.gep(source, [builder.mul(step, ir.Constant(step.type, row))])
            vectors.append(builder.load(builder.bitcast(address, _floats.as_pointer())))
            vectors[-1].align = 4
        size = 1
        while size < LANES:
            for n in range(LANES):
                if not n & size:
                    vectors[n], vectors[n + size] = exchanged(builder, vectors[n], vectors[n + size], size)
            size *= 2
        written = builder.gep(context.make_array(kinds[3])(context, builder, arguments[3]).data, [target])
        for row, vector in enumerate(vectors):
            address = builder.gep(written, [ir.Constant(step.type, row * LANES)])
            builder.store(vector, builder.bitcast(address, _floats.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(array, at, stride, out, place), code
