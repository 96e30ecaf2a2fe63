"""Module: a tree of parameters with names, and nothing else.

An attribute that is a Parameter or a Module belongs to the tree; its path through the tree is its
name ("block4.2.conv1.weight"). There is no registry beside the attributes, so nothing can disagree
with them: the tree is read from the attributes, in the order in which they were first assigned,
whenever it is asked for. Arrays that are state but not trained (running statistics) are named to
`register_buffer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike

from tensorlite.device import array_module, to_device
from tensorlite.tensor import Tensor


class Parameter(Tensor):
    """A tensor that is trained: a leaf that requires its gradient unless told otherwise."""

    def __init__(
        self,
        data: Any,
        requires_grad: bool = True,
        device: str | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(data, requires_grad=requires_grad, device=device, dtype=dtype)


class LoadReport(NamedTuple):
    """What a non-strict `load_state_dict` passed over: names it lacked, names it did not know."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def refuse_names(owner: str, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Raise a one-line ValueError if a state lacks names or holds some that `owner` has not."""
    complaints = [
        f"{len(names)} {what} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if complaints:
        raise ValueError(f"state of {owner}: names {' and '.join(complaints)}")


def refuse_arrays(
    owner: str, state: Mapping[str, np.ndarray], targets: Mapping[str, Tensor | np.ndarray]
) -> None:
    """Raise a one-line ValueError if an array cannot be copied into the target of its name."""
    for name, target in targets.items():
        if name not in state:
            continue
        got = state[name]
        if not isinstance(getattr(got, "dtype", None), np.dtype):
            made = f"{type(got).__module__}.{type(got).__qualname__}".removeprefix("builtins.")
            raise ValueError(f"state of {owner}: {name} is a {made}, expected an array")
        if tuple(got.shape) != tuple(target.shape):
            raise ValueError(
                f"state of {owner}: {name} has shape {tuple(got.shape)}, "
                f"expected {tuple(target.shape)}"
            )
        if not np.can_cast(got.dtype, target.dtype, "same_kind"):
            raise ValueError(
                f"state of {owner}: {name} has dtype {got.dtype}, expected {target.dtype}"
            )


class Module:
    """Base of every layer and network: subclasses assign their parts and define `forward`.

    A parameter or module reached by two paths is one object: it is listed, saved and updated once,
    under the first of its names.
    """

    training: bool = True
    kept: dict[str, Any] | None = None  # what `fold` lets a layer keep between inferences
    _buffers: tuple[str, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; a subclass without it is a NotImplementedError."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def __setattr__(self, name: str, value: Any) -> None:
        held = vars(self).get(name)
        if isinstance(held, Parameter) and isinstance(value, Tensor | np.ndarray):
            if not isinstance(value, Parameter):
                raise TypeError(
                    f"{type(self).__name__}.{name} is a Parameter, got {type(value).__name__}: "
                    f"wrap it in Parameter(…), or assign {name}.data"
                )
        elif isinstance(value, list | tuple) and any(
            isinstance(item, Module | Parameter) for item in value
        ):
            raise TypeError(
                f"{type(self).__name__}.{name}: modules or parameters inside a "
                f"{type(value).__name__} would have no names, use ModuleList"
            )
        super().__setattr__(name, value)

    def register_buffer(self, name: str, array: np.ndarray) -> None:
        """Make `array` the attribute `name`, saved with the parameters but never trained.

        The array itself is kept, for kernels to update in place. A name that is taken or that
        holds a dot is a ValueError, anything but an array a TypeError.
        """
        if not name.isidentifier():
            raise ValueError(f"{type(self).__name__}: {name!r} cannot be an attribute's name")
        if hasattr(self, name) and name not in self._buffers:
            raise ValueError(f"{type(self).__name__}: attribute {name!r} is already taken")
        if not isinstance(array, array_module(array).ndarray):
            raise TypeError(
                f"{type(self).__name__}.{name}: expected an array, got {type(array).__name__}"
            )
        setattr(self, name, array)
        if name not in self._buffers:
            self._buffers = (*self._buffers, name)

    # The tree

    def children(self) -> Iterator[tuple[str, Module]]:
        """The modules assigned to this one, with their attribute names."""
        return ((name, item) for name, item in vars(self).items() if isinstance(item, Module))

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Every module of the tree with its path, parents first; this one is named ""."""
        seen: set[int] = set()

        def visit(path: str, module: Module) -> Iterator[tuple[str, Module]]:
            if id(module) not in seen:
                seen.add(id(module))
                yield path, module
                for name, child in module.children():
                    yield from visit(f"{path}.{name}" if path else name, child)

        return visit("", self)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter with its path, such as "block4.2.conv1.weight", each once."""
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    def named_buffers(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every buffer with its path."""
        for path, module in self.named_modules():
            for name in module._buffers:
                yield (f"{path}.{name}" if path else name), getattr(module, name)

    def modules(self) -> Iterator[Module]:
        """Every module of the tree, parents first."""
        return (module for _, module in self.named_modules())

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter, each once."""
        return (parameter for _, parameter in self.named_parameters())

    # Modes

    def train(self, mode: bool = True) -> Self:
        """Set `training` on every module of the tree; returns the module."""
        for module in self.modules():
            module.training = bool(mode)
            module.kept = None
        return self

    def eval(self) -> Self:
        """`train(False)`: running statistics, no dropout."""
        return self.train(False)

    def fold(self) -> Self:
        """`eval()` with the weights taken as fixed, for inference within `no_grad`.

        What depends on weights alone (batch norms folded into convolutions, transformed filters) is
        computed once and kept. Weights changed afterwards are not seen until `fold` is called
        again; `train`, `eval`, `load_state_dict` and `to` end or renew it by themselves.
        """
        self.eval()
        for module in self.modules():
            module.kept = {}
        return self

    def _forget_kept(self) -> None:
        for module in self.modules():
            module.kept = None if module.kept is None else {}

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set whether the parameters of the tree are trained; returns the module."""
        for parameter in self.parameters():
            parameter.requires_grad = bool(requires_grad)
        return self

    def zero_grad(self) -> None:
        """Forget every parameter's gradient."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def to(self, device: str | None = None, dtype: DTypeLike | None = None) -> Self:
        """Move parameters and buffers to a device ("cpu", "cuda:0"), a dtype, or both, in place.

        Gradients are forgotten. Call it before an optimiser is made: its state stays where the
        parameters were.
        """

        def moved(array: np.ndarray) -> np.ndarray:
            if dtype is not None:
                array = array.astype(dtype, copy=False)
            return array if device is None else to_device(array, device)

        self._forget_kept()
        for parameter in self.parameters():
            parameter.zero_grad()
            parameter.data = moved(parameter.data)
        for module in self.modules():
            for name in module._buffers:
                setattr(module, name, moved(getattr(module, name)))
        return self

    # State

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters, then all buffers, by name, on the CPU."""
        arrays = {name: parameter.data for name, parameter in self.named_parameters()}
        arrays.update(self.named_buffers())
        return {name: np.array(to_device(array, "cpu")) for name, array in arrays.items()}

    def load_state_dict(
        self, state: Mapping[str, np.ndarray], strict: bool = True
    ) -> LoadReport:
        """Copy `state` into the parameters and buffers; nothing is changed if anything is refused.

        A wrong shape, or a dtype that cannot become the model's, is a ValueError naming the array,
        and so, when `strict`, is a name missing from `state` or unknown to the model.
        """
        targets: dict[str, Parameter | np.ndarray] = dict(self.named_parameters())
        targets.update(self.named_buffers())
        report = LoadReport(
            missing=tuple(name for name in targets if name not in state),
            unexpected=tuple(name for name in state if name not in targets),
        )
        if strict:
            refuse_names(type(self).__name__, report.missing, report.unexpected)
        refuse_arrays(type(self).__name__, state, targets)
        for name, target in targets.items():
            if name in state:
                array = target.data if isinstance(target, Parameter) else target
                array[...] = array_module(array).asarray(state[name])
                if isinstance(target, Parameter):
                    target.data = array  # tells the engine that saved copies are stale
        self._forget_kept()
        return report

    # Looks

    def describe(self) -> str:
        """The options that the module's line of `repr` shows between its parentheses."""
        return ""

    def __repr__(self) -> str:
        lines = [
            f"  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.children()
        ]
        head = f"{type(self).__name__}({self.describe()}"
        return "\n".join([head, *lines, ")"]) if lines else head + ")"


class ModuleList(Module):
    """Modules in a row, named "0", "1", …; for use in a `forward` written by hand."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> Self:
        """Add a module at the end; anything else is a TypeError."""
        if not isinstance(module, Module):
            raise TypeError(
                f"{type(self).__name__}: expected a Module, got {type(module).__name__}"
            )
        setattr(self, str(len(self)), module)
        return self

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return (module for _, module in self.children())

    def __getitem__(self, index: int) -> Module:
        return list(self)[index]


class Sequential(ModuleList):
    """Modules applied one after the other: `Sequential(Linear(2, 8), ReLU(), Linear(8, 1))`."""

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Tensor) -> Tensor:
        """The last module's output; x itself when there are none."""
        for module in self:
            x = module(x)
        return x
