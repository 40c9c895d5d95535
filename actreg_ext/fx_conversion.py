"""Graphs of torch.fx, in which an activation may be the call of a function.

See conversion.py. A node that calls a function becomes a node that calls a new module. The nodes,
their names and their order stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from .known import DROPOUTS, FUNCTIONS, METHODS, Described
from .places import Site, original

_SEVERAL = "the module has several graphs"
Place = tuple[int, str]  # of a site: id(parent), key


class Input:
    """Stands for the input in the arguments of a call."""


@dataclass
class Call:
    """A call of a function or method in a graph, without the input."""

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __str__(self) -> str:
        """Return the name of the function."""
        name = self.target if isinstance(self.target, str) else self.target.__name__
        return f"call of {name.removeprefix('_')}"

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments without the input."""
        args = tuple(a for a in self.args if a is not Input)
        return args, {k: v for k, v in self.kwargs.items() if v is not Input}

    @property
    def inplace(self) -> bool:
        """Whether the call overwrites the input."""
        name = str(self.target if isinstance(self.target, str) else self.target.__name__)
        return name.endswith("_") or self.kwargs.get("inplace") is True

    def described(self) -> Described | None:
        """Return the name and the parameters of the activation that is called, or None."""
        table: dict[Any, Any] = METHODS if self.op == "call_method" else FUNCTIONS
        args, kwargs = self.arguments()
        try:
            return table[self.target](*args, **kwargs)  # type: ignore[no-any-return]
        except (KeyError, TypeError):
            return None

    def drops(self) -> tuple[float, bool] | None:
        """Return p and the inplace flag of a call of a dropout; None if it does not drop."""
        if self.op != "call_function" or self.target not in DROPOUTS:
            return None
        args, given = self.arguments()
        given |= dict(zip(("p", "training", "inplace"), args, strict=False))
        p, inplace = given.get("p", 0.5), given.get("inplace", False)
        if given.get("training", True) is not True or not isinstance(p, float | int):
            return None
        return (float(p), inplace) if isinstance(inplace, bool) else None


@dataclass
class CallSite(Site):
    """A node of a graph that calls a function, or the module which has replaced that function."""

    node: fx.Node = field(kw_only=True)

    @property
    def subject(self) -> Any:
        """The function, or the name of the method."""
        return self.held.target

    def put(self, new: Any) -> None:
        """Let the node call a module, or a function."""
        node, parent = self.node, self.parent
        assert isinstance(parent, fx.GraphModule)
        if isinstance(new, Call):
            (value,) = node.args

            def filled(argument: Any) -> Any:
                return value if argument is Input else argument

            node.op, node.target = new.op, new.target
            node.args = tuple(map(filled, new.args))
            node.kwargs = {k: filled(v) for k, v in new.kwargs.items()}
            parent.delete_submodule(self.key)
        else:
            (value,) = node.all_input_nodes
            parent.add_submodule(self.key, new)
            node.op, node.target = "call_module", self.key
            node.args, node.kwargs = (value,), {}

    def scopes(self) -> Iterator[str]:
        """Yield also the names of the modules from whose forward the call was traced."""
        yield from super().scopes()
        for name in self.names:
            prefix = name.removesuffix(self.key)
            for path, _ in self._stack():
                yield f"{prefix}{path}"

    def kinds(self, types: dict[str, type]) -> Iterator[type]:
        """Yield also the classes of the modules from whose forward the call was traced."""
        yield from super().kinds(types)
        yield from (kind for _, kind in self._stack() if isinstance(kind, type))

    def _stack(self) -> list[tuple[str, Any]]:
        return list((self.node.meta.get("nn_module_stack") or {}).values())


def calls(parent: fx.GraphModule, prefixes: list[str]) -> Iterator[CallSite]:
    """Yield the nodes of a graph that call an activation or a dropout, or did before `convert`."""
    fixed = _SEVERAL if _has_several_graphs(parent) else ""
    taken: set[str] = set()
    for node in parent.graph.nodes:
        present: Any = None
        key = str(node.target)
        if node.op == "call_module":
            module = _submodule(parent, node)
            present = module if isinstance(original(module), Call) else None
        elif node.op in ("call_function", "call_method"):
            present = _call(node)
            key = node.name
            while hasattr(parent, key) or key in taken:
                key += "_act"
        if present is not None:
            taken.add(key)
            names = [f"{prefix}.{key}" if prefix else key for prefix in prefixes]
            yield CallSite(parent, key, names, present, fixed, node=node)


def _has_several_graphs(parent: fx.GraphModule) -> bool:
    """Whether the module changes its graph, as torchvision's feature extractors do in eval mode."""
    return sum(isinstance(value, fx.Graph) for value in vars(parent).values()) > 1


def _call(node: fx.Node) -> Call | None:
    """Return the call of an activation or a dropout whose other arguments are constants."""
    inputs = [*node.args, *node.kwargs.values()]
    if len(node.all_input_nodes) != 1 or sum(isinstance(a, fx.Node) for a in inputs) != 1:
        return None
    value = node.all_input_nodes[0]
    args = tuple(Input if a is value else a for a in node.args)
    kwargs = {k: Input if a is value else a for k, a in node.kwargs.items()}
    if args[:1] != (Input,) and kwargs.get("input") is not Input:
        return None
    call = Call(node.op, node.target, args, kwargs)
    return call if call.described() or call.drops() else None


def _submodule(parent: fx.GraphModule, node: fx.Node) -> nn.Module:
    return parent.get_submodule(str(node.target))


def followers(parent: fx.GraphModule, found: list[CallSite]) -> dict[Place, tuple[Place, bool]]:
    """Return the places in a graph whose output goes to exactly one other place.

    Returns:
        {place: (the other place, whether nothing else reads the input of the first place)}.
    """
    if _has_several_graphs(parent):
        return {}  # in another graph the output may go elsewhere
    places: dict[fx.Node, Place] = {site.node: (id(parent), site.key) for site in found}
    for node in parent.graph.nodes:
        if node.op == "call_module" and node not in places:
            holder, _, key = str(node.target).rpartition(".")
            places[node] = id(parent.get_submodule(holder)), key
    count = Counter(places.values())
    return {
        place: (places[user], _is_new(parent, node.all_input_nodes))
        for node, place in places.items()
        for user in list(node.users)[:1]
        if len(node.users) == 1 and user in places and user.all_input_nodes == [node]
        if count[place] == 1 and count[places[user]] == 1
    }


def _is_new(parent: fx.GraphModule, inputs: list[fx.Node]) -> bool:
    """Whether the input comes from a layer with parameters, and goes nowhere else."""
    return all(
        node.op == "call_module"
        and len(node.users) == 1
        and any(True for _ in parent.get_submodule(str(node.target)).parameters())
        for node in inputs
    )


def recompile(sites: list[Site]) -> None:
    """Generate the code of the graphs that were changed."""
    for module in {site.parent: None for site in sites if isinstance(site, CallSite)}:
        assert isinstance(module, fx.GraphModule)
        module.recompile()
