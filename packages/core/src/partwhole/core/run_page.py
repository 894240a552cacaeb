"""The page of a run: its command, what the doctor finds, what a modality shows, its curves and its configuration."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from partwhole.core.doctor import diagnose
from partwhole.core.report import Page, curves, flatten, read_metrics


def run_page(
    folder: Path | str,
    title: str,
    lead: str,
    body: Callable[[Page], Any],
    *,
    run: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Write ``folder/report.html`` and return its path.

    body puts in what the modality measured and shows; run and metrics are the content of ``run.json`` and
    ``metrics.jsonl``, read from the folder unless given.
    """
    folder = Path(folder)
    run = read_json(folder / "run.json") if run is None else run
    metrics = read_metrics(folder / "metrics.jsonl") if metrics is None else metrics
    page = Page(title).text(lead, lead=True)
    if command := run.get("command"):
        page.code(command if isinstance(command, str) else shlex.join(map(str, command)))
    for finding in diagnose(metrics):
        page.note(f"Careful: {finding.text}.")
    body(page)
    if charts := curves(metrics):
        page.section("Training curves").grid(charts, width=290)
    if settings := flatten({k: v for k, v in run.items() if k not in ("command", "identity")}):
        page.section("Configuration").table(["setting", "value"], settings)
    return page.write(folder / "report.html")


def read_json(path: Path) -> dict[str, Any]:
    """What an earlier evaluation left, {} where that is nothing, or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
