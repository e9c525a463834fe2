"""The gRPC door: the Open Inference Protocol and gRPC's health check, behind Ray Serve's gRPC server.

Read ``methods.py`` first. ``open_inference.proto`` describes the messages; generate your own client from it.
"""
