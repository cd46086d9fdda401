"""Construction of a rule from a config: registered classes, checked arguments, and checked sizes before allocation."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_lopt.errors import RuleFileError, cause, show

if TYPE_CHECKING:
    from lightning_lopt.rules.base import UpdateRule

MAX_INTEGER = 10**7
MAX_LIST_DEPTH = 4
MAX_TORCH_CALLS = 20_000
MAX_BYTES = 256 * 2**20
"""Largest size of the tensors of a rule; the largest published rules (VeLO) take a few MiB."""


class TensorSpec(NamedTuple):
    """Type and shape of a tensor; they are known before the tensor is allocated."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def check_arguments(rule_class: type[UpdateRule], arguments: Any, label: str) -> dict[str, Any]:
    """Return ``arguments``, after a check of names and values as keyword arguments of ``rule_class``.

    A value must be a JSON value of the type of the argument's default: a boolean, an integer, a number, a text, or a
    list of these.

    Raises:
        RuleFileError: if a name is unknown or missing, or a value has another type.
    """
    rule = f"rule {rule_class.rule_name!r}"
    if not isinstance(arguments, dict):
        raise RuleFileError(f"{label} must hold an object under 'config', but holds {show(arguments)}; correct it.")
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(rule_class).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    for name, value in arguments.items():
        if name not in parameters:
            raise RuleFileError(
                f"{label} gives {rule} the unknown argument {show(name)}; it takes {', '.join(parameters) or 'none'}."
            )
        if not _is_plain(value, MAX_LIST_DEPTH):
            raise RuleFileError(
                f"{label} gives {rule} {name}={show(value)}; values are finite numbers up to {MAX_INTEGER} if integer, "
                "texts, true, false, null, or lists of these."
            )
        default = parameters[name].default
        if default is not parameters[name].empty and not _is_like(value, default):
            raise RuleFileError(f"{label} gives {rule} {name}={show(value)}; expected a value like {show(default)}.")
    missing = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    missing = [name for name in missing if name not in arguments]
    if missing:
        raise RuleFileError(f"{label} does not give {rule} the argument {missing[0]!r}; add it.")
    return arguments


def _is_plain(value: Any, depth: int) -> bool:
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    if type(value) is int:
        return abs(value) <= MAX_INTEGER
    return value is None or type(value) in (bool, float, str)  # parse_json_object accepts only finite floats


def _is_like(value: Any, default: Any) -> bool:
    if default is None:
        return True
    if isinstance(default, list | tuple):
        kinds = [item for item in default if item is not None]
        return isinstance(value, list) and (not kinds or all(_is_like(item, kinds[0]) for item in value))
    if type(default) is float:
        return type(value) in (int, float)
    return type(value) is type(default)


class _CallBudget(TorchFunctionMode):
    """Stops a constructor that makes too many torch calls, for instance in a loop whose length comes from the file."""

    calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        if self.calls > MAX_TORCH_CALLS:
            raise RuntimeError(f"building it takes more than {MAX_TORCH_CALLS} torch calls")
        return func(*args, **(kwargs or {}))


@contextmanager
def _plain_torch(device: str) -> Iterator[None]:
    """A context without effects of the caller's default device, default type, random state and inference mode."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.device(device), _CallBudget():
            yield
    finally:
        torch.set_default_dtype(dtype)


def build_rule(
    rule_class: type[UpdateRule],
    arguments: Mapping[str, Any],
    specs: Mapping[str, TensorSpec],
    label: str,
    weights: str,
) -> UpdateRule:
    """A rule whose tensors have exactly the names, shapes and types of ``specs``; the values are still arbitrary.

    The rule is built on the ``meta`` device first, because a tensor of any size takes no memory there.

    Args:
        rule_class: a class of the registry.
        arguments: keyword arguments of the class, already checked.
        specs: types and shapes of the tensors in the file.
        label: name of the file with ``arguments`` in messages.
        weights: name of the file with ``specs`` in messages.

    Raises:
        RuleFileError: if the constructor refuses the arguments or changes their values, or the tensors differ.
    """
    # A rule that was saved in float64 is built in float32 and then converted.
    needed_types = _float_types(specs.values())

    def build(device: str) -> UpdateRule:
        with _plain_torch(device):
            rule = rule_class(**arguments)
            if len(needed_types) == 1 and _float_types(rule.state_dict().values()) != needed_types:
                rule = rule.to(dtype=next(iter(needed_types)))
        return rule

    with _blame(label, rule_class):
        plan = build("meta")
        tensors = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in plan.state_dict().items()}
        size = sum(tensor.numel() * tensor.element_size() for tensor in [*plan.parameters(), *plan.buffers()])
        read_as = json.loads(json.dumps(plan.config))
    for name, value in arguments.items():
        if read_as.get(name) != value:
            raise RuleFileError(
                f"{label} gives rule {rule_class.rule_name!r} {name}={show(value)}, which it reads as "
                f"{show(read_as.get(name))}; correct it."
            )
    _compare(tensors, specs, weights)
    if size > MAX_BYTES:
        raise RuleFileError(
            f"{label} asks for a rule of {size} bytes, more than the {MAX_BYTES} that are allowed; correct it."
        )
    with _blame(label, rule_class):
        return build("cpu")


@contextmanager
def _blame(label: str, rule_class: type[UpdateRule]) -> Iterator[None]:
    """Turn any exception in the block into a :class:`RuleFileError` that names the file of the arguments."""
    try:
        yield
    except Exception as error:
        raise RuleFileError(
            f"{label} has arguments that rule {rule_class.rule_name!r} cannot be built from ({cause(error)}); "
            "correct them."
        ) from error


def _float_types(tensors: Iterable[Tensor | TensorSpec]) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors if tensor.dtype.is_floating_point}


def _compare(rule_specs: Mapping[str, TensorSpec], file_specs: Mapping[str, TensorSpec], weights: str) -> None:
    advice = "take config.json and the weights from the same rule"
    missing, extra = sorted(rule_specs.keys() - file_specs.keys()), sorted(file_specs.keys() - rule_specs.keys())
    if missing:
        raise RuleFileError(
            f"{weights} lacks {len(missing)} of the rule's tensors, first {show(missing[0])}; {advice}."
        )
    if extra:
        raise RuleFileError(
            f"{weights} has {len(extra)} tensors that the rule lacks, first {show(extra[0])}; {advice}."
        )
    for name, spec in rule_specs.items():
        if file_specs[name] != spec:
            raise RuleFileError(
                f"{weights} has tensor {show(name)} as {file_specs[name].dtype} {list(file_specs[name].shape)} where "
                f"the rule has {spec.dtype} {list(spec.shape)}; {advice}."
            )
