"""How the project is run: command line (`cli/`), Prefect server and who may use it, container and cluster files.

May import everything of ours; nothing but tests and benchmarks imports it.
"""
