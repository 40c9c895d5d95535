"""A pytest plugin for a GPU: show failures at once, and stop at the first broken context.

After an illegal address or a failed launch every call of CUDA fails, so that later tests say
nothing. A process that is killed has shown what failed before. gpu_check.py runs pytest with it.
"""

from __future__ import annotations

import pytest
import torch


def why_broken() -> str:
    """What every call of CUDA now fails with, or nothing."""
    if not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


class Watch:
    def __init__(self, session: pytest.Session) -> None:
        self.session = session
        self.terminal = session.config.pluginmanager.get_plugin("terminalreporter")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.failed:
            return
        self.terminal.write_line(
            f"\nFAILURE {report.nodeid} ({report.when})\n{report.longreprtext}"
        )
        if not self.session.shouldstop and (why := why_broken()):
            self.session.shouldstop = f"CUDA is broken after {report.nodeid}: {why}"

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self.session.config.option.tbstyle = "no"  # all is shown already


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(Watch(session))
