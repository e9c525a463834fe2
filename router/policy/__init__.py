"""The routing policy: what a policy file says, checked and explained. Pure, except that it reads that file.

Start with `document`, the whole file; `sections` has its parts and `conditions` what a route may ask about.
"""

from router.policy.conditions.when import When as When
from router.policy.document import DEFAULT_ROUTE as DEFAULT_ROUTE
from router.policy.document import Policy as Policy
from router.policy.reading import PolicyError as PolicyError
from router.policy.reading import Reading as Reading
from router.policy.reading import load as load
from router.policy.reading import parse as parse
from router.policy.reading import read as read
from router.policy.sections import BatchSection as BatchSection
from router.policy.sections import ModelSection as ModelSection
from router.policy.sections import OnlineSection as OnlineSection
from router.policy.sections import Route as Route
