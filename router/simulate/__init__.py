"""Discrete-event replay of a policy in virtual time, over the very modules that production runs."""
