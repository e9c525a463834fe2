"""What every condition of a route can do: hold, explain itself, and name the requests that it tells apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import ConfigDict, RootModel

from router.policy.terms.route_facts import RouteFacts

T = TypeVar("T")

#: In place of a value: any value will do.
ANY = "*"


@dataclass(frozen=True, slots=True)
class Known:
    """What a policy says of the requests that may come, for the probes of its conditions."""

    models: Collection[str]
    tenants: Collection[str]
    max_rows: int


@dataclass(frozen=True)
class SampleRequest:
    """One request that stands for all that a policy cannot tell apart from it.

    ``facts`` are fields of `RouteFacts`, ``text`` names the kind of request to a person. ``budget_ms`` is
    the end of the budgets that it stands for; 0 for other quantities.
    """

    facts: Mapping[str, Any]
    text: str
    budget_ms: float = 0.0

    @cached_property
    def request(self) -> RouteFacts:
        return RouteFacts(**{"model": "", "rows": 1, "budget_ms": 0.0, **self.facts})


#: For each quantity, such as ``rows`` or ``header x-tier``, the samples that stand for all its values.
Samples = Iterator[tuple[str, Sequence[SampleRequest]]]


class RouteCondition(RootModel[T], ABC, Generic[T]):
    """What stands after one key of ``when``; ``root`` is the value as it is kept.

    The first sentence of a subclass's docstring describes the key in the schema and in the reference.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    #: The field of `RouteFacts` that a caller fills only where a route asks about it.
    NEEDS: ClassVar[str | None] = None
    #: The section of the policy that the condition's values must be names of.
    NAMES: ClassVar[Literal["models", "tenants"] | None] = None
    #: As a person writes the value, for the reference.
    EXAMPLE: ClassVar[str]

    @abstractmethod
    def holds(self, facts: RouteFacts) -> bool:
        """Whether a request fulfils the condition. Called on every request: keep it fast."""

    @abstractmethod
    def mismatches(self, facts: RouteFacts) -> Iterator[str]:
        """Why it does not hold, as ``budget is 2s, not <= 250ms``; nothing where it holds."""

    @abstractmethod
    def by_quantity(self) -> Iterator[tuple[str, Self]]:
        """The condition in parts that are about one quantity each."""

    @classmethod
    @abstractmethod
    def samples(cls, conditions: Sequence[Self], known: Known) -> Samples:
        """A request for every value at which any of a policy's ``conditions`` changes, and one between each
        two. Quantities that no condition is about may be left out."""


def alternatives(values: Iterable[Any]) -> str:
    """The values that would do, as the policy file has them."""
    return " or ".join(map(as_written, values))


def as_written(value: Any) -> str:
    """A value as the policy file has it."""
    return str(value).lower() if isinstance(value, bool) else repr(value)
