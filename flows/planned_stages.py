"""The stages of a flow in the order in which it comes by them, for whoever shows what is still to come."""

from flows.run_config import RunConfig
from tasks.config import Mode, StudyConfig

Planned = list[tuple[str, str]]
"""Name of each stage, and what to call it beside others of its name."""


def stages_of_run(run: RunConfig) -> Planned:
    """The stages of `daily_train`."""
    names = ["benchmarks", "download", "contamination"]
    if run.contamination.mode is Mode.FILTER:
        names += ["filter", "contamination"]
    names += ["tokenizer", "shard", "train", "evaluate", "report"]
    return [(name, f"{name} again" if name in names[:place] else name) for place, name in enumerate(names)]


def stages_of_study(study: StudyConfig) -> Planned:
    """The stages of `contamination_study`. Without copies both arms have the same shards."""
    names: Planned = [(name, name) for name in ("benchmarks", "download", "tokenizer")]
    if study.copies:
        names += [("plant", "plant")]
    for arm in ("planted", "clean") if study.copies else ("one", "other"):
        if study.copies or arm == "one":
            names += [("shard", f"shard {arm}" if study.copies else "shard")]
        for pair in range(study.seeds):
            which = f"{arm} {pair + 1}" if study.seeds > 1 else arm
            names += [("train", f"train {which}"), ("evaluate", f"evaluate {which}")]
    return [*names, ("study", "study")]
