"""Notebooks written by hand, for the tests of dev."""
import json


def cell(kind, source, cell_id, outputs=(), tags=()):
    out = {"cell_type": kind, "id": cell_id, "metadata": {"tags": list(tags)} if tags else {}, "source": source}
    return out | ({"outputs": list(outputs), "execution_count": None} if kind == "code" else {})


def write(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    path.write_text(json.dumps({"cells": list(cells), "metadata": meta, "nbformat": 4, "nbformat_minor": 5}, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return path


def hours_cells():
    return [cell("markdown", "# Session hours\n\n> When London is open.", "aa000001"), cell("code", "#| default_exp market.hours", "aa000002"),
        cell("code", '#| export\ndef is_open(hour: int) -> bool:\n    "London, in UTC."\n    return 7 <= hour < 16', "aa000003"),
        cell("code", "assert is_open(9)", "aa000004")]


def drill_cells():
    return [cell("markdown", "# Feed drill\n\n> What happens when a feed stops.", "bb000001"), cell("code", "minutes = 5  # how long", "bb000002", tags=["parameters"])]
