"""Tests and benchmarks. Their servers are on this machine, which is not asked through a proxy."""

from router.serving.ray_start import ask_this_machine_directly

ask_this_machine_directly()
