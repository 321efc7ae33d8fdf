"""Redirection by netfilter: the rules and their settings, original destinations, marks, local addresses.

Imports nothing of the project. Decisions are in `rules`, `render` and `plan`; the kernel is asked in
`commands`, `destination` and `addresses`. This file stays empty, so that a worker that needs one module pays
for one.
"""
