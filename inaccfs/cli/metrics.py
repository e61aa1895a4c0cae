"""inaccfs metrics: a mount's numbers for Prometheus."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from inaccfs.cli import output
from inaccfs.errors import InaccfsError
from inaccfs.streams import create, printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import CollectorRegistry

    from inaccfs.control.messages import NotifierInfo, Stats
    from inaccfs.status import Status


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "metrics",
        help="print a mount's numbers for Prometheus",
        description="Print the numbers of query-stats and inaccfs status in the "
        "format of Prometheus, or write them atomically to a file for "
        "node_exporter's textfile collector.",
        epilog="exit status: 0; 1 if the mount does not answer or FILE cannot be "
        "written",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument(
        "-o",
        dest="file",
        metavar="FILE.prom",
        help="write the numbers to FILE.prom instead",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask, and print or write."""
    # Imported here because it takes a while.
    import prometheus_client

    from inaccfs import client

    with client.connect(args.mountpoint) as shim:
        registry = _registry(
            shim.query_status(), shim.query_stats(), shim.query_notifiers()
        )
    if args.file is None:
        text = prometheus_client.generate_latest(registry).decode()
        output.say(text.rstrip("\n"))
        return 0
    try:
        # A symbolic link stays one. A device such as /dev/stdout, or a pipe, is written
        # to: replacing it by a file would affect everybody.
        path = os.path.realpath(args.file)
        if os.path.exists(path) and not os.path.isfile(path):
            with open(create(path), "wb") as file:
                file.write(prometheus_client.generate_latest(registry))
        else:
            prometheus_client.write_to_textfile(path, registry)
    except OSError as exc:
        raise InaccfsError(f"cannot write {args.file}: {exc.strerror}") from exc
    return 0


def _registry(
    status: Status, stats: Stats, notifiers: list[NotifierInfo]
) -> CollectorRegistry:
    from prometheus_client.registry import Collector, CollectorRegistry

    class Mount(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from _metrics(status, stats, notifiers)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Mount())
    return registry


def _metrics(
    status: Status, stats: Stats, notifiers: list[NotifierInfo]
) -> Iterator[Metric]:
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        InfoMetricFamily,
    )

    from inaccfs.control.messages import Stats
    from inaccfs.control.reference import comments
    from inaccfs.shim.counters import Counters

    labels = ["mountpoint"]
    # Escaped here, where the library doubles the backslashes: a label that has what
    # `output` makes of control characters cannot be parsed.
    values = [printable(status.mountpoint)]
    info = InfoMetricFamily("inaccfs_mount", "What the mount is.", labels=labels)
    names = ("version", "semantics", "backing", "mmap", "pfn_source", "pinning")
    info.add_metric(values, {name: printable(getattr(status, name)) for name in names})
    yield info
    # These count since the mount was made; the others are present values.
    counters = {field.name for field in fields(Counters)}
    for name, meaning in comments(Stats).items():
        kind = CounterMetricFamily if name in counters else GaugeMetricFamily
        metric = kind(f"inaccfs_{name}", meaning, labels=labels)
        metric.add_metric(values, getattr(stats, name))
        yield metric
    waiting = sum(notifier.waiting is not None for notifier in notifiers)
    for name, meaning, value in (
        ("notifiers_waiting", "Notifiers that have not answered an event.", waiting),
        ("files", "Regular files that have a name, or are open.", status.files),
        ("size_bytes", "What the backing can hold; 0: no limit.", status.size),
        (
            "allocated_bytes",
            "Memory that is allocated to files.",
            status.allocated_pages * status.page_size,
        ),
    ):
        gauge = GaugeMetricFamily(f"inaccfs_{name}", meaning, labels=labels)
        gauge.add_metric(values, value)
        yield gauge
