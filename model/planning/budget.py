"""What a budget in hours or dollars buys on this machine: `python -m model.planning.budget CONFIG.json`.

CONFIG.json is a model.training.run.TrainerConfig. One line of JSON is printed: `steps`, `tokens`, `seconds_per_step`,
`fixed_seconds`, `seconds` of the whole training, and `device`. Its run_dir is not written to.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from model.errors import print_error
from model.parsing import ConfigError
from model.training.out_of_memory import memory_limit_error
from model.training.run import read_config
from model.training.trainer import Trainer


def main(argv: list[str]) -> int:
    """Command line; returns the exit code."""
    try:
        config = read_config(Path(argv[0]))
        with tempfile.TemporaryDirectory(prefix="budget-") as folder:
            trainer = Trainer(replace(config, run_dir=folder))
        if (timing := trainer.timing) is None:
            raise ConfigError(f"a budget in {config.train.budget_unit} is not timed: expected gpu_hours or usd")
    except Exception as error:
        return print_error(memory_limit_error(error) or error)
    else:
        steps = trainer.steps
        if trainer.processes.first:
            print(
                json.dumps(
                    {
                        "event": "budget",
                        "steps": steps,
                        "tokens": steps * config.train.tokens_per_step,
                        "seconds_per_step": timing.step,
                        "fixed_seconds": timing.fixed,
                        "seconds": timing.seconds(steps),
                        "device": trainer.device_name,
                    }
                ),
                flush=True,
            )
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
