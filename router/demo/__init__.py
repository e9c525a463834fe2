"""The main job, end to end on real input: interactive and bulk requests together, every answer checked."""
