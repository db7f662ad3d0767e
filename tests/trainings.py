"""Trainings in processes of their own, forked from one that has imported torch, which takes each two seconds else."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch._dynamo  # noqa: F401 (as the first optimizer of a process would)
from torch.distributed import TCPStore

from model.train import main

SECONDS = 300
"""The longest that a training may take to end, on a loaded machine."""
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload([__name__])


def _train(
    config: str, output: Connection, errors: str, environment: dict[str, str], prepare: Callable[[], None] | None
) -> None:
    os.setpgrp()
    os.environ.update(environment)
    sys.stderr = open(errors, "a")  # noqa: SIM115
    os.dup2(output.fileno(), 1)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if prepare is not None:
        prepare()
    sys.exit(main([config]))


class Training:
    """`python -m model.train CONFIG`, as soon as it could be without the imports."""

    def __init__(
        self, config: Path, environment: dict[str, str] | None = None, prepare: Callable[[], None] | None = None
    ) -> None:
        self._errors = config.with_suffix(f".errors{(environment or {}).get('RANK', '')}")
        self._output, output = _FORKED.Pipe(duplex=False)
        arguments = (str(config), output, str(self._errors), environment or {}, prepare)
        self.process = _FORKED.Process(target=_train, args=arguments)
        self.process.start()
        output.close()
        self.lines = open(self._output.fileno(), closefd=False)  # noqa: SIM115

    def end(self) -> int:
        """Read to its end; the exit code, that of SIGKILL when it does not end by itself."""
        limit = threading.Timer(SECONDS, self.process.kill)
        limit.start()
        self.lines.read()
        self.lines.close()
        self._output.close()
        self.process.join()
        limit.cancel()
        assert self.process.exitcode is not None
        return self.process.exitcode

    @property
    def pid(self) -> int:
        assert self.process.pid is not None, "it was started"
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.end()

    @property
    def errors(self) -> str:
        return self._errors.read_text()


def train_together(config: Path, processes: int) -> list[Training]:
    """The ended processes of one training, started as torchrun does; what one of them fails for, all fail for."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    trainings = [
        Training(config, environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(processes)
    ]
    for training in trainings:
        training.end()
    return trainings
