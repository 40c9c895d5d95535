"""A pytest plugin for a GPU: show failures at once, and stop at the first broken context.

After an illegal address or a failed launch every call of CUDA fails, so that later tests say
nothing. A process that is killed has shown what failed before. gpu_check.py runs pytest with it.
"""

from __future__ import annotations

import pytest
import torch


class Watch:
    def __init__(self, session: pytest.Session) -> None:
        self.session = session
        self.terminal = session.config.pluginmanager.get_plugin("terminalreporter")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.failed:
            return
        what = f"{report.nodeid} ({report.when})"
        self.terminal.write_line(f"\nFAILURE {what}\n{report.longreprtext}")
        try:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
        except RuntimeError as error:  # every later call of CUDA fails with this error
            why = f"CUDA is broken after {report.nodeid}: {str(error).splitlines()[0]}"
            self.session.shouldstop = self.session.shouldstop or why

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self.session.config.option.tbstyle = "no"  # all is shown already


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(Watch(session))
