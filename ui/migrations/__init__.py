"""Versions of the tables, for alembic; applied by `ui.store.Store` when a database is opened.

A new version is a module of `versions` written by hand: its `down_revision` names the one before.
A test compares what the versions make with `ui.schema`.
"""
