"""A headless browser for tests that must see a page as a reader does."""

from __future__ import annotations

import contextlib
import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str:
    """The path of a Chromium; without one the test is skipped, with the command that helps."""
    for name in _NAMES:
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no Chromium here; `apt-get install -y chromium` provides it")


def read_page(address: str, *, profile: Path) -> str:
    """The page's document after its scripts have run, as HTML."""
    done = subprocess.run(
        [
            find_browser(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=8000",
            "--window-size=1600,1000",
            "--dump-dom",
            address,
        ],
        capture_output=True,
        check=True,
        timeout=60,
    )
    return done.stdout.decode()


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The files of a folder on loopback; yields the address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing of each request."""

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def try_in_frames(page: bytes, script: str, *, widths: list[int], folder: Path) -> list[Any]:
    """Open a page in frames of some widths and run a script on each.

    Args:
      script: the body of an async function of `doc` and `win`, the frame's; what it returns
        comes back, by JSON.
    """
    (folder / "page.html").write_bytes(page)
    frames = "".join(
        f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>'
        for width in widths
    )
    wrapper = f"""<!doctype html><meta charset="utf-8"><pre id="found"></pre>{frames}<script>
    window.addEventListener("load", async () => {{
      const found = [];
      for (const frame of document.querySelectorAll("iframe")) {{
        const doc = frame.contentDocument;
        const win = frame.contentWindow;
        try {{ found.push(await (async () => {{ {script} }})()); }}
        catch (error) {{ found.push(String(error)); }}
      }}
      document.getElementById("found").textContent = JSON.stringify(found);
    }});
    </script>"""
    (folder / "wrapper.html").write_text(wrapper, encoding="utf-8")
    with serve(folder) as address:
        shown = read_page(f"{address}/wrapper.html", profile=folder / "profile")
    found = re.search(r'<pre id="found">(.*?)</pre>', shown, re.DOTALL)
    assert found is not None
    assert found[1], "the wrapper's script did not end"
    loaded: list[Any] = json.loads(html.unescape(found[1]))
    return loaded
