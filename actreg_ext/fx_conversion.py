"""Conversion of torch.fx graphs, in which an activation may be the call of a function.

See conversion.py. A call becomes a call of a new ActReg module; the module keeps what it replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import fx, nn

from .known import DROPOUTS, FUNCTIONS, METHODS, Described
from .nn import ActReg

# A call that a module replaced: (op, target, arguments after the input, keyword arguments).
Call = tuple[str, Any, tuple[Any, ...], dict[str, Any]]


def graphs_of(model: nn.Module) -> Iterator[tuple[str, fx.GraphModule]]:
    """Yield the graph modules in a model, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, fx.GraphModule):
            yield name, module


class GraphPlan:
    """The replacements in one graph."""

    def __init__(self, name: str, module: fx.GraphModule) -> None:
        self.name = name
        self.module = module
        self.changes: list[tuple[list[fx.Node], str, ActReg]] = []

    def make(
        self, options: dict[str, Any], p: float | None, dropout: bool
    ) -> Iterator[tuple[str, str, ActReg]]:
        """Decide what is replaced; yield (name, what it was, what it is)."""
        merged: set[fx.Node] = set()
        for node in self.module.graph.nodes:
            if node in merged:
                continue
            found = _activation(node)
            nodes = [node]
            if found is not None:
                behind = _only_user(node)
                probability = 0.0
                if behind is not None and _drops(behind) is not None:
                    nodes.append(behind)
                    merged.add(behind)
                    probability = _drops(behind) or 0.0
                probability = probability if p is None else p
                layer = ActReg(found[0], p=probability, keep="input", **options, **found[1])
            elif dropout and (_drops(node) or 0.0) > 0:
                layer = ActReg("identity", p=_drops(node) or 0.0)
            else:
                continue
            layer._original = tuple((_call(n),) for n in nodes)
            layer.training = self.module.training
            key = f"act_reg_{len(self.changes)}"
            self.changes.append((nodes, key, layer))
            full = f"{self.name}.{key}" if self.name else key
            yield full, " and ".join(f"call of {_named(n)}" for n in nodes), layer

    def apply(self) -> None:
        """Change the graph."""
        graph = self.module.graph
        for nodes, key, layer in self.changes:
            self.module.add_submodule(key, layer)
            with graph.inserting_after(nodes[-1]):
                new = graph.call_module(key, (nodes[0].args[0],))
            new.meta = dict(nodes[-1].meta)
            nodes[-1].replace_all_uses_with(new)
            for node in reversed(nodes):
                graph.erase_node(node)
        if self.changes:
            self.module.recompile()


def revert(model: nn.Module) -> list[str]:
    """Put the calls back; return the names of the modules that replaced them."""
    names = []
    for prefix, module in graphs_of(model):
        changed = False
        for node in list(module.graph.nodes):
            layer = module._modules.get(node.target) if node.op == "call_module" else None
            calls = _calls(layer)
            if not calls:
                continue
            value = node.args[0]
            with module.graph.inserting_before(node):
                for op, target, args, kwargs in calls:
                    value = module.graph.create_node(op, target, (value, *args), kwargs)
            node.replace_all_uses_with(value)
            module.graph.erase_node(node)
            module.delete_submodule(node.target)
            names.append(f"{prefix}.{node.target}" if prefix else node.target)
            changed = True
        if changed:
            module.recompile()
    return names


def revert_all(model: nn.Module) -> list[Callable[[], None]]:
    """Put the calls back; return functions that undo that."""
    undo: list[Callable[[], None]] = []
    for _, module in graphs_of(model):
        layers = {key: m for key, m in module._modules.items() if _calls(m)}
        if layers:
            graph = fx.Graph()
            graph.output(graph.graph_copy(module.graph, {}))

            def restore(
                module: fx.GraphModule = module,
                layers: dict[str, Any] = layers,
                graph: fx.Graph = graph,
            ) -> None:
                module._modules.update(layers)
                module.graph = graph

            undo.append(restore)
    revert(model)
    return undo


def _calls(layer: Any) -> list[Call]:
    kept = layer.__dict__.get("_original", ()) if isinstance(layer, ActReg) else ()
    return [k[0] for k in kept if isinstance(k, tuple)]


def _call(node: fx.Node) -> Call:
    return node.op, node.target, tuple(node.args[1:]), dict(node.kwargs)


def _named(node: fx.Node) -> str:
    return str(
        node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    )


def _activation(node: fx.Node) -> Described | None:
    """Return the description of a call of an activation function that is not in place."""
    if node.op == "call_function":
        describe = FUNCTIONS.get(node.target)
    elif node.op == "call_method":
        describe = METHODS.get(str(node.target))
    else:
        return None
    arguments = (*node.args[1:], *node.kwargs.values())
    if describe is None or not node.args or any(isinstance(a, fx.Node) for a in arguments):
        return None
    if node.kwargs.get("inplace") or True in node.args[1:]:
        return None
    try:
        found = describe(*node.args[1:], **node.kwargs)
        ActReg(found[0], **found[1])
    except (TypeError, ValueError):
        return None
    return found


def _drops(node: fx.Node) -> float | None:
    """Return the p of a call of a dropout function in training; None for any other node."""
    if node.op == "call_module":
        return None
    if node.op != "call_function" or node.target not in DROPOUTS or not node.args:
        return None
    given = dict(zip(("p", "training", "inplace"), node.args[1:], strict=False)) | node.kwargs
    p = given.get("p", 0.5)
    if given.get("inplace") or not given.get("training", True) or not isinstance(p, float):
        return None
    return p


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].args[:1] == (node,) else None
