"""The terms in which a policy is written: quantities and names, and the facts about a request. Pure.

Start with `values`, which turns what people write into numbers, and `route_facts`, which routes ask about.
"""
