"""The hook framework: plug-ins, their origins, and the manager that calls them.

It knows pluggy. It knows nothing about language models, HTTP or shells: `llm.host` adds those.
"""
