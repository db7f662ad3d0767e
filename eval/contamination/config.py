"""When a benchmark item counts as contaminated: the settings. Light, since the command line reads them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from model.parsing import Bounds, check_fields, require

if TYPE_CHECKING:
    from eval.contamination.match import Overlap

SHORTEST = 4
"""Texts of fewer words cannot be told from ordinary prose and are reported as not checkable."""
MOST_RUN, LEAST_COVERAGE = 200, 0.01  # the positive control invents items of so many words


@dataclass(frozen=True, kw_only=True)
class ContaminationConfig:
    """When an item counts as contaminated."""

    ngram: Annotated[int, Bounds(ge=5, le=32)] = 8
    """Shortest run of words in common that counts at all."""
    run: Annotated[int, Bounds(ge=5, le=MOST_RUN)] = 13
    """Words in one run from which an item is contaminated."""
    coverage: Annotated[float, Bounds(ge=LEAST_COVERAGE, le=1)] = 0.5
    """Share of an item's words, or of its question's, in runs within one document, from which it is contaminated."""
    control_items: Annotated[int, Bounds(ge=1)] = 20
    """Items of every suite and form that the positive control plants."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.ngram <= self.run, "ngram", self.ngram, f"at most run, {self.run}")

    def contaminates(self, found: "Overlap") -> bool:
        """Whether one document's overlap contaminates its item, unless it is a template."""
        return found.run >= self.run or found.coverage >= self.coverage

    def is_template(self, found: "Overlap") -> bool:
        """Whether an overlap is short wording that many items share, such as "which of the following is an example"."""
        return found.template and found.run < self.run
