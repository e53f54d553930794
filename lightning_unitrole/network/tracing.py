"""Following convolutions to their activations through one forward pass, whatever Python it is written in.

Every torch function that the forward pass calls is seen in order, and so is the end of every module's forward. From
each convolution on, its output is followed as long as channel ``u`` stays channel ``u``: through normalisations,
dropout, scaling by parameters or by gates, and residual additions, up to the first activation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_unitrole.network.isolation import undisturbed
from lightning_unitrole.network.structures import batch_size, tensors_in

# Names of torch functions, without the underscores that mark in-place and reflected variants.
CONVOLUTIONS = frozenset({"conv2d", "conv_transpose2d"})
FLAT = frozenset({"conv1d", "conv_transpose1d", "conv3d", "conv_transpose3d", "linear"})
"""What makes units whose outputs are no maps of two dimensions, or are so only if a reader arranges them."""
NORMALISATIONS = frozenset(
    {"batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm", "native_batch_norm", "native_group_norm"}
)
# fmt: off
ACTIVATIONS = frozenset({
    "relu", "relu6", "gelu", "silu", "hardswish", "elu", "leaky_relu", "prelu", "selu", "celu", "mish", "sigmoid",
    "tanh", "softplus", "hardsigmoid", "hardtanh", "clamp", "clamp_min", "clip", "threshold", "rrelu", "softsign",
    "logsigmoid", "tanhshrink", "hardshrink", "softshrink", "erf",
})
# fmt: on
HEADS = ("batch", "head", "token", "channel")
"""Dimensions of what attention gives, before its heads are joined."""
HEADS_OF = "#heads"
"""What the name of a module is followed by in the name of its heads."""
ATTENTION = "scaled_dot_product_attention"
DROPOUTS = frozenset(
    {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"}
)
# fmt: off
UNCHANGED = frozenset({
    "contiguous", "clone", "to", "float", "double", "half", "bfloat16", "type", "type_as", "detach",
    "requires_grad", "cuda", "cpu", "neg", "pow", "square", "nan_to_num",
})
# fmt: on
ADDITIONS = frozenset({"add", "radd", "iadd", "sub", "rsub", "isub"})
LINEAR = frozenset({"linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "rmatmul", "einsum"})
PRODUCTS = frozenset({"mul", "rmul", "imul", "multiply", "div", "truediv", "itruediv", "true_divide"})


def function_name(function: Any) -> str:
    """Name under which a function that a ``TorchFunctionMode`` sees is counted."""
    return str(getattr(function, "__name__", function))


def module_of(layer: str) -> str:
    """Name of the module behind a layer: ``name#1`` is the second call of ``name`` in a forward pass."""
    return layer.partition("#")[0]


def channels_of(layer: str) -> str:
    """What has the channels that are the units of a layer: a module, or the heads of one, ``name#heads``."""
    return layer if layer.endswith(HEADS_OF) else module_of(layer)


@dataclass(frozen=True)
class TapSite:
    """Where in a forward pass a tensor can be caught.

    Attributes:
        module: qualified name of the module whose call is watched.
        call: which of the calls of that module within one forward pass.
        calls: number of calls of that module within one forward pass.
        function: ``None`` where the tensor is what the module returns; else the torch function, called while the module
            runs, that returns it.
        occurrence: which of the calls of that function while the module runs.
        root: a module that every forward pass enters first and only once, if there is one.
    """

    module: str
    call: int
    calls: int
    function: str | None
    occurrence: int
    root: str | None

    def __str__(self) -> str:
        """Plain words for a reader."""
        ordinal = f" (call {self.call + 1} of {self.calls} in a forward pass)" if self.calls > 1 else ""
        module = f"module {self.module!r}" if self.module else "the model"
        if self.function is None:
            return f"output of {module}{ordinal}"
        return f"output of call {self.occurrence + 1} of {self.function} inside {module}{ordinal}"


@dataclass(eq=False)
class Convolution:
    """One call of a convolution in a forward pass, and what became of its output.

    ``products`` are its multiply-accumulate operations for the whole batch; 0 where its weight is not a tensor.
    """

    name: str
    module: str
    depth: int
    map: Step
    linear: Step
    activated: Step | None = None
    activation: str | None = None
    norm: str | None = None
    summed: bool = False
    dim: int = 1
    products: int = 0

    @property
    def tap(self) -> Step:
        """The step that returns the map of the units."""
        return self.activated or self.linear


@dataclass(eq=False)
class Step:
    """One call of a torch function that returned a tensor."""

    function: str
    occurrence: int
    owner: str | None
    owner_call: int
    shape: tuple[int, ...]
    output: int
    returned_by: tuple[str, int] | None = None


@dataclass
class _Frame:
    """A module call that is under way."""

    module: nn.Module
    name: str
    call: int
    functions: Counter[str] = field(default_factory=Counter)


@dataclass
class _Carried:
    """What a tensor carries: convolutions before their activation (True: added to something else) and after it."""

    linear: dict[Convolution, bool] = field(default_factory=dict)
    active: set[Convolution] = field(default_factory=set)


@dataclass(frozen=True)
class Trace:
    """What one forward pass showed.

    Attributes:
        convolutions: in the order in which they ran.
        calls: number of calls of each module, by name.
        root: a module that every forward pass enters first and only once, if there is one.
        batch: number of images.
        outputs: shapes of the tensors that the model returned.
        linear_behind: whether channels are mixed by a linear layer behind the last convolution.
        flat: the same as ``convolutions`` for convolutions in one and three dimensions and linear layers, whose units
            lie along the dimension ``dim`` of the output.
        heads: the same for attention, whose units are its heads ``[batch, heads, tokens, width]`` before they are
            joined.
    """

    convolutions: list[Convolution]
    calls: Mapping[str, int]
    root: str | None
    batch: int | None
    outputs: tuple[tuple[int, ...], ...]
    linear_behind: bool
    flat: list[Convolution] = field(default_factory=list)
    heads: list[Convolution] = field(default_factory=list)

    def site(self, step: Step) -> TapSite | None:
        """Where the tensor of ``step`` can be caught; ``None`` when no module runs at that moment."""
        if step.returned_by is not None:
            name, call = step.returned_by
            return TapSite(name, call, self.calls[name], None, 0, self.root)
        if step.owner is None:
            return None
        return TapSite(step.owner, step.owner_call, self.calls[step.owner], step.function, step.occurrence, self.root)


def trace_forward(forward: Callable[[Any], Any], model: nn.Module, inputs: Any) -> Trace:
    """Run ``forward(inputs)`` once, undisturbed, and follow every convolution of ``model`` to its activation."""
    tracer = _Tracer(model, inputs)
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        for module in tracer.names:
            stack.callback(module.register_forward_pre_hook(tracer.enter_module).remove)
            stack.callback(module.register_forward_hook(tracer.leave_module, always_call=True).remove)
        stack.enter_context(tracer)
        outputs = forward(inputs)
    tops = tracer.top_level
    root = tops[0] if tops and tops.count(tops[0]) == 1 and tracer.calls[tops[0]] == 1 else None
    shapes = tuple(tuple(tensor.shape) for tensor in tensors_in(outputs))
    return Trace(
        tracer.convolutions, tracer.calls, root, batch_size(inputs), shapes, tracer.linear_behind, tracer.flat,
        tracer.heads,
    )  # fmt: skip


class _Tracer(TorchFunctionMode):
    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.parameters = {parameter: name for name, parameter in model.named_parameters()}
        self.frames: list[_Frame] = []
        self.calls: Counter[str] = Counter()
        self.top_level: list[str] = []
        self.functions: Counter[str] = Counter()
        self.convolutions: list[Convolution] = []
        self.flat: list[Convolution] = []
        self.heads: list[Convolution] = []
        self.weights: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()  # of attention
        self.linear_behind = False
        self.last: Step | None = None
        self.carried: MutableMapping[Tensor, _Carried] = WeakTensorKeyDictionary()
        # A tensor is a key here if and only if it derives from the inputs; the value counts convolutions on the way.
        self.depth: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()
        for tensor in tensors_in(inputs):
            self.depth[tensor] = 0

    def enter_module(self, module: nn.Module, args: Any) -> None:
        name = self.names[module]
        if not self.frames:
            self.top_level.append(name)
        self.frames.append(_Frame(module, name, self.calls[name]))
        self.calls[name] += 1

    def leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.frames or self.frames[-1].module is not module:
            return
        frame = self.frames.pop()
        # The innermost module that hands the tensor on, untouched since it was made, is where a plain hook sees it.
        if self.last is not None and self.last.returned_by is None and id(output) == self.last.output:
            self.last.returned_by = (frame.name, frame.call)

    def __torch_function__(
        self, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function_name(function)
        for frame in self.frames:
            frame.functions[name] += 1
        outputs = list(tensors_in(result))
        if name == "__setitem__":
            self.last = None
            self.carried.pop(args[0], None)
        if not outputs:
            return result
        frame_now = self.frames[-1] if self.frames else None
        occurrence = frame_now.functions[name] - 1 if frame_now else 0
        step = Step(
            name,
            occurrence,
            frame_now.name if frame_now else None,
            frame_now.call if frame_now else 0,
            tuple(outputs[0].shape),
            id(result),
        )
        self.last = step
        self._follow(name.strip("_"), step, args, kwargs, outputs)
        return result

    def _follow(
        self, kind: str, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[Tensor]
    ) -> None:
        operands = [*tensors_in(args), *tensors_in(kwargs)]
        depths = [self.depth[tensor] for tensor in operands if tensor in self.depth]
        carried = _Carried()
        self.linear_behind |= kind in LINEAR
        self._attend(kind, step, args, outputs)
        if kind in CONVOLUTIONS and step.shape and len(operands) > 1:
            convolution = self._convolution(args, kwargs, step, max(depths, default=0) + 1)
            self.convolutions.append(convolution)
            self.linear_behind = False
            depths = [convolution.depth]
            carried.linear[convolution] = False
        elif kind in FLAT and depths and len(operands) > 1 and len(step.shape) > 1 and not self._in_attention():
            flat = self._convolution(args, kwargs, step, max(depths) + 1)
            flat.dim = -1 if kind == "linear" else 1
            self.flat.append(flat)
            carried.linear[flat] = False
        elif len(outputs) == 1 or kind in NORMALISATIONS:
            carried = self._passed_on(kind, step, operands, outputs[0])
        for tensor in outputs:
            if depths:
                self.depth[tensor] = max(depths)
            self.carried.pop(tensor, None)
        if carried.linear or carried.active:
            self.carried[outputs[0]] = carried

    def _in_attention(self) -> bool:
        """Whether a module of torch's runs whose units are heads alone: its linear layers are no modules that run."""
        return bool(self.frames) and isinstance(self.frames[-1].module, nn.MultiheadAttention)

    def _attend(self, kind: str, step: Step, args: tuple[Any, ...], outputs: list[Tensor]) -> None:
        """Note attention: one call of torch, or values that are mixed by what a softmax made."""
        if len(step.shape) != len(HEADS):
            return
        weighed = bool(args) and isinstance(args[0], Tensor) and args[0] in self.weights
        if kind == "softmax" or (weighed and (kind in DROPOUTS or kind in UNCHANGED)):
            self.weights[outputs[0]] = True
        elif step.owner is not None and (kind == ATTENTION or (weighed and kind == "matmul")):
            earlier = sum(head.module == step.owner for head in self.heads)
            name = f"{step.owner}{HEADS_OF}{f'#{earlier}' if earlier else ''}"
            self.heads.append(Convolution(name, step.owner, 0, step, step))

    def _convolution(self, args: tuple[Any, ...], kwargs: dict[str, Any], step: Step, depth: int) -> Convolution:
        owner = step.owner or ""
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        parameter = self.parameters.get(weight) if isinstance(weight, nn.Parameter) else None
        name = owner or "conv"
        if parameter is not None and parameter.rpartition(".")[2] != "weight":
            name = parameter
        earlier = sum(module_of(other.name) == name for other in (*self.convolutions, *self.flat))
        found = Convolution(f"{name}#{earlier}" if earlier else name, owner, depth, step, step)
        if isinstance(weight, Tensor):
            # Each output of a convolution, and each input of a transposed one, meets the weights of one channel.
            source = args[0] if args else kwargs.get("input")
            meets = source.shape if "transpose" in step.function and isinstance(source, Tensor) else step.shape
            found.products = prod(meets) * prod(weight.shape[1:])
        return found

    def _passed_on(self, kind: str, step: Step, operands: list[Tensor], output: Tensor) -> _Carried:
        """What the output of a call carries; notes the taps of the convolutions on the way."""
        result = _Carried()
        whole = [tensor for tensor in operands if tensor in self.carried and tensor.shape == output.shape]
        if not whole:
            return result
        before = [self.carried[tensor] for tensor in whole]
        # In-place calls return their operand, so the states have to be read before they are replaced.
        mixed = sum(tensor in self.depth and tensor.shape == output.shape for tensor in operands) > 1
        if kind in ACTIVATIONS:
            self._activate(before[0], kind, step)
            result.active = {*before[0].linear, *before[0].active}
        elif kind in NORMALISATIONS or kind in DROPOUTS or kind in UNCHANGED:
            result.linear, result.active = dict(before[0].linear), set(before[0].active)
            if kind in NORMALISATIONS:
                for convolution, added in result.linear.items():
                    if not added and convolution.norm is None:
                        convolution.norm = step.owner
        elif kind in ADDITIONS:
            for state in before:
                for convolution, added in state.linear.items():
                    result.linear[convolution] = added or mixed or result.linear.get(convolution, False)
                if not mixed:
                    result.active |= state.active
        elif kind in PRODUCTS and mixed:
            gated = {
                conv for one in before for other in before if one is not other for conv in {*one.linear} & other.active
            }
            for convolution in gated:
                if convolution.activated is not None:
                    convolution.activated, convolution.activation = step, f"{convolution.activation} gate"
            result.active = gated
        elif kind in PRODUCTS:
            result.linear, result.active = dict(before[0].linear), set(before[0].active)
        if (
            kind not in UNCHANGED
        ):  # a detached or cloned copy is as a rule a side branch, not what the network goes on with
            for convolution, added in result.linear.items():
                if not added and convolution.activated is None:
                    convolution.linear = step
                elif added:
                    convolution.summed = True
        return result

    def _activate(self, state: _Carried, kind: str, step: Step) -> None:
        for convolution, added in state.linear.items():
            if convolution.activated is None:
                convolution.activated, convolution.activation, convolution.summed = step, kind, added
