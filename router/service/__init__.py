"""The router without a transport: who may ask, what the policy decides, and how a request is run or queued.

Read ``service.py`` first: `Service.infer` turns a request into an answer, a queued job or a refusal.
"""
