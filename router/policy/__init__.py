"""The routing policy: what the file says (`sections`), read with its errors' places (`reading`), checked and
explained (`check`, `explain`), described to editors (`schema`)."""

from router.policy.conditions import BudgetRange as BudgetRange
from router.policy.conditions import When as When
from router.policy.reading import PolicyError as PolicyError
from router.policy.reading import Reading as Reading
from router.policy.reading import load as load
from router.policy.reading import parse as parse
from router.policy.reading import read as read
from router.policy.sections import DEFAULT_ROUTE as DEFAULT_ROUTE
from router.policy.sections import BatchSection as BatchSection
from router.policy.sections import ModelSection as ModelSection
from router.policy.sections import OnlineSection as OnlineSection
from router.policy.sections import Policy as Policy
from router.policy.sections import Route as Route
