"""Model replicas on a Ray cluster, for files of questions (`files`) and for a server (`pool`).

Nothing here is imported unless it is asked for (`--ray`), and Ray is an extra: `pip install 'foveate[ray]'`.
"""
