"""What the trace costs, without a listener and with one.

usage: python -m tests.bench.trace [--rounds N] [--calls N]

Calls `InaccessibleFile.begin` in this process, for a page that is allocated already:
without its trace, which is cut out of its source here; without listeners; and with
one listener. The three take turns. In µs, the median over the rounds; "ratio" is that
of the second to the first in the same round, with its quartiles. The handler of
FALLOCATE looks at the list of listeners once more: that look is timed by itself.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import os
import statistics
import textwrap
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from inaccfs.semantics import V8
from inaccfs.shim import file as module
from inaccfs.shim.file import InaccessibleFile
from inaccfs.shim.superblock import Superblock
from tests.bench import harness
from tests.bench.harness import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, PAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.shim.order import Done


class _Untraced(ast.NodeTransformer):
    """Cuts out what is there for the trace only."""

    def visit_If(self, node: ast.If) -> ast.stmt | None:
        """`if trace.listeners: ...`."""
        if isinstance(node.test, ast.Attribute) and node.test.attr == "listeners":
            return None
        self.generic_visit(node)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.stmt | None:
        """`trace = self._trace`."""
        cut = isinstance(node.value, ast.Attribute) and node.value.attr == "_trace"
        return None if cut else node


def untraced(method: Callable[..., object]) -> Callable[..., object]:
    """A method of `InaccessibleFile` as it would be if nothing were traced."""
    tree = _Untraced().visit(ast.parse(textwrap.dedent(inspect.getsource(method))))
    # But for the docstring.
    assert "trace" not in "".join(map(ast.unparse, tree.body[0].body[1:]))
    flags = __future__.annotations.compiler_flag
    code = compile(ast.fix_missing_locations(tree), "untraced", "exec", flags)
    found: dict[str, Any] = {}
    exec(code, vars(module), found)
    made: Callable[..., object] = found[method.__name__]
    return made


def main() -> None:
    """Print the table."""
    parser = harness.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--calls", type=int, default=1000, help="per round")
    args = parser.parse_args()
    harness.begin()
    fd = os.memfd_create("trace")
    os.ftruncate(fd, PAGE)
    superblock = Superblock(V8(), PAGE)
    file = InaccessibleFile(fd, superblock)
    trace = superblock.trace
    calls: int = args.calls

    def timed(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - began) / calls * 1e6

    def look() -> None:
        if trace.listeners:
            raise AssertionError

    print(f"{'':22}{'without':>9}{'off':>8}{'ratio':>21}{'on':>8}")
    without = untraced(InaccessibleFile.begin)
    for name, mode in (
        ("fallocate, mode 0", 0),
        ("fallocate, KEEP_SIZE", FALLOC_FL_KEEP_SIZE),
        ("punch", FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE),
    ):
        arguments = (file, mode, 0, PAGE, hold)
        plain = partial(without, *arguments)
        call = partial(InaccessibleFile.begin, *arguments)
        cut, off, on = [], [], []
        for number in range(args.rounds):
            # Neither is always the first.
            if number % 2:
                cut.append(timed(plain))
                off.append(timed(call))
            else:
                off.append(timed(call))
                cut.append(timed(plain))
            with trace.listening(heard):
                on.append(timed(call))
        ratios = [one / other for one, other in zip(off, cut, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{name:22}{statistics.median(cut):9.2f}{statistics.median(off):8.2f}"
            f"{middle:8.3f} [{low:.3f}, {high:.3f}]{statistics.median(on):7.2f}"
        )
    looks = [timed(look) - timed(nothing) for _ in range(args.rounds)]
    print(f"a look: {statistics.median(looks):.3f} µs")
    os.close(fd)


def hold() -> Done:
    """Nobody holds this call up."""
    raise AssertionError


def heard(happened: object) -> None:
    """Hear of it."""


def nothing() -> None:
    """What it costs to call a function."""


if __name__ == "__main__":
    main()
