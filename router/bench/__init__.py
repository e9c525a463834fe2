"""A trace replayed, open loop, against a live deployment: the measured twin of `router.simulate`."""
