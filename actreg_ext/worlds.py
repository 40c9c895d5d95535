"""Where a forward runs: inside a transform or a tracer, or repeated by activation checkpointing.

No maths here.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

ESCAPED = (
    "collect_penalty: an ActReg ran inside a transform that has ended: a function transformed by "
    "torch.func (vmap, grad, ...), FakeTensorMode or make_fx. The penalty has no meaning outside "
    "of the transform, so it was dropped. Call collect_penalty inside that function."
)
_functorch = torch._C._functorch
_MARK, _ENDED = torch.zeros((), device="cpu"), -2
# Both are 0 or None in plain eager mode.
stack = _functorch.peek_interpreter_stack
modes = torch._C._len_torch_dispatch_stack


class World:
    """The transform or tracer in which a forward ran: tensors of one mean nothing outside of it."""

    _KEYS = ("PROXY", "FUNCTIONAL", "FAKE")

    def __init__(self) -> None:
        level = _functorch.maybe_current_level()
        # A tensor of the innermost transform; its level is _ENDED once the transform has ended.
        self.mark = None if level is None else _functorch._wrap_for_grad(_MARK, level)
        self.modes = self._current_modes()

    @classmethod
    def current(cls) -> World | None:
        """Return the world of the caller; None in plain eager mode."""
        if stack() is None and modes() == 0:
            return None
        world = cls()
        is_plain = world.mark is None and all(mode is None for mode in world.modes)
        return None if is_plain else world

    @classmethod
    def _current_modes(cls) -> list[Any]:
        keys = torch._C._TorchDispatchModeKey
        return [torch._C._get_dispatch_mode(getattr(keys, key)) for key in cls._KEYS]

    def is_running(self) -> bool:
        """Whether the caller is inside of this world."""
        if self.mark is not None and _functorch.maybe_get_level(self.mark) == _ENDED:
            return False
        pairs = zip(self.modes, self._current_modes(), strict=True)
        return all(mine is None or mine is current for mine, current in pairs)

    def level(self) -> int | None:
        """Return the level of the innermost transform of torch.func; None without one."""
        return None if self.mark is None else _functorch.maybe_get_level(self.mark)


def is_repeated_by_checkpoint() -> bool:
    """Whether torch.utils.checkpoint(use_reentrant=False) repeats the current forward.

    It repeats forwards from the hook that unpacks a saved tensor. The other way to run a forward
    inside a backward is a backward written in Python, as of use_reentrant=True.
    """
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "unpack_hook" and code.co_filename == torch.utils.checkpoint.__file__:
            return True
        if code.co_name == "backward" and issubclass(
            getattr(frame.f_locals.get("ctx"), "__class__", object), torch._C._FunctionBase
        ):
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return False
