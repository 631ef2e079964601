"""The documentation's site: built strictly, and looked at with a real browser."""

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urljoin

import pytest

from tests.docs.markdown import ROOT

pytestmark = pytest.mark.e2e

pytest.importorskip("sphinx", reason="no site without Sphinx: pip install -e '.[docs]'")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the site."""
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(ROOT / "docs"), str(directory)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    return directory


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Serve the site, and return its address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser without it: pip install -e '.[docs]'")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium on this machine: the site was not looked at")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=quiet)
        yield chromium
        chromium.close()


def test_no_link_on_the_site_is_broken(address: str, browser: Any) -> None:
    page = browser.new_page()
    todo, seen, wanted, anchors = [address], set(), set(), {}
    while todo:
        url = todo.pop()
        if url in seen:
            continue
        seen.add(url)
        answer = page.goto(url, wait_until="domcontentloaded")
        assert answer.status == 200, url
        anchors[url] = set(page.eval_on_selector_all("[id]", "all => all.map(one => one.id)"))
        for link in page.eval_on_selector_all("a[href]", "all => all.map(one => one.getAttribute('href'))"):
            target, anchor = urldefrag(urljoin(url, link))
            if target.startswith(address) and target.endswith((".html", "/")):
                todo.append(target)
                wanted.add((url, target, anchor))

    missing = [(url, target, anchor) for url, target, anchor in wanted if anchor and anchor not in anchors[target]]
    assert not missing
    assert len(seen) > 15


def test_a_search_finds_a_hook(address: str, browser: Any) -> None:
    page = browser.new_page()
    page.goto(address)
    page.fill("input[name=q]", "hookimpl")
    page.press("input[name=q]", "Enter")
    page.wait_for_selector("ul.search li a", timeout=30_000)
    page.wait_for_selector("#search-results p.search-summary", timeout=30_000)

    titles = page.eval_on_selector_all("ul.search li a", "all => all.map(one => one.textContent)")
    assert any("Hooks" in title for title in titles)


def test_pages_are_readable_on_a_phone(address: str, browser: Any, site: Path) -> None:
    phone = browser.new_context(viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True)
    page = phone.new_page()
    for path in sorted(site.rglob("*.html")):
        page.goto(address + path.relative_to(site).as_posix(), wait_until="domcontentloaded")
        # Wide code and tables scroll by themselves; the page does not.
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path.name
        assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('article')).fontSize)") >= 14
