"""The documentation as a site, in a real browser: start page, search, a phone."""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import struct
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from tests.packaging.roots import TOP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Browse = Callable[..., str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the site, built and served."""
    path = tmp_path_factory.mktemp("site")
    subprocess.run([TOP / "mountscripts" / "site", path], check=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def browse(site: str, tmp_path: Path) -> Browse:
    """Opens a page in chromium; returns the document once its scripts have run."""
    chromium = shutil.which("chromium") or pytest.skip(
        "no chromium: apt-get install chromium"
    )

    def browse(page: str, *options: str) -> str:
        done = subprocess.run(
            [
                *(chromium, "--headless", "--no-sandbox", "--disable-gpu"),
                *(f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000"),
                *(*options, f"{site}/{page}"),
            ],
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        )
        return done.stdout

    return browse


def test_the_start_page_leads_everywhere(browse: Browse) -> None:
    document = browse("index.html", "--dump-dom")
    for page in ("tutorial", "control-protocol", "reference/client", "glossary"):
        assert f'href="{page}.html"' in document


def test_search_finds_a_command_of_the_protocol(browse: Browse) -> None:
    document = browse("search.html?q=register-notifier", "--dump-dom")
    results = document.partition('class="search"')[2]
    assert "control-protocol.html" in results


def test_a_phone_shows_a_page_without_scrolling_sideways(
    browse: Browse, tmp_path: Path
) -> None:
    """At a phone's width the theme's sidebar is a drawer, which a button opens."""
    frame = tmp_path / "frame.png"
    browse("tutorial.html", "--window-size=390,844", f"--screenshot={frame}")
    width, height = struct.unpack(">II", frame.read_bytes()[16:24])
    assert (width, height) == (390, 844)
    document = browse("tutorial.html", "--window-size=390,844", "--dump-dom")
    assert re.search(r'for="__navigation"', document)
