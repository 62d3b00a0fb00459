"""The site: it builds without a warning, nothing in it is missing, and it reads well in a browser, small or large."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import pytest
import torch

from gmml_aug import GroupMask

ROOT = Path(__file__).parent.parent
pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings")
pytest.importorskip("skimage")
pytest.importorskip("torchvision")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync"
WIDER = """
const wide = document.documentElement.clientWidth, out = [];
if (document.documentElement.scrollWidth > wide) {
  for (const each of document.querySelectorAll(".md-content *, .md-header *"))
    if (each.getBoundingClientRect().right > wide + 1) out.push(each.tagName + " " + each.textContent.slice(0, 40));
  out.push("the page");
}
return out;
"""
BROKEN = "return [...document.images].filter((each) => !(each.complete && each.naturalWidth)).map((each) => each.src)"
SETTLED = """
const done = arguments[0];
for (const image of document.images) image.loading = "eager";
Promise.all([...document.images].map((image) => image.decode().catch(() => null))).then(() => done(true));
"""
MOVE = """
for (const [name, value] of Object.entries(arguments[0])) {
  const input = document.querySelector(`#board [name=${name}]`);
  if (input.type === "checkbox") input.checked = value; else input.value = value;
}
document.querySelector("#board form").dispatchEvent(new Event("input"));
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site in this process, which has imported the large libraries already."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GMML_AUG_BACKENDS", "functions")  # there is no need to wait for Numba
        build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


class Links(HTMLParser):
    """The links of a page, and the anchors in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value is not None:
                self.targets.add(value)


def pages_of(site: Path) -> dict[str, Path]:
    """Return the pages by their addresses."""
    found = sorted(site.rglob("index.html"))
    return {f"/{page.parent.relative_to(site).as_posix()}/".replace("/./", "/"): page for page in found}


def test_no_link_is_dead_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    links = {address: Links(page) for address, page in pages_of(site).items()}
    assert len(links) > 25
    for address, page in links.items():
        for target in page.targets:
            if target.startswith(("http:", "https:", "mailto:", "data:")):
                continue
            path, anchor = urldefrag(urljoin(address, target))
            if path in links:
                assert not anchor or unquote(anchor) in links[path].anchors, f"{address}: {target}"
            else:
                assert (site / unquote(path).lstrip("/")).is_file(), f"{address}: {target}"
    for file in site.rglob("*.html"):
        for line in file.read_text(encoding="utf-8").split("<"):
            outside = 'src="http' in line or (line.startswith("link") and 'href="http' in line)
            assert not outside or 'rel="canonical"' in line, f"{file}: {line}"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("Chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")  # no network
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def screen(browser: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def test_every_page_at_two_widths(browser: Any, site: Path, server: str) -> None:
    for address in pages_of(site):
        screen(browser, 1280)
        browser.get(server + address)
        browser.execute_async_script(SETTLED)
        for width in (1280, 390):
            screen(browser, width)
            assert browser.execute_script(WIDER) == [], f"{address} at {width}"
        assert browser.execute_script(BROKEN) == [], address
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
        assert all(each.startswith(server) for each in loaded), (address, loaded)
        assert browser.get_log("browser") == [], address


@pytest.mark.parametrize(
    "moved",
    [
        {},
        {"grid": 20, "low": 0.2, "high": 0.2, "seed": 5, "index": 7},
        {"smallest": 1, "largest": 1, "inside": True, "seed": 99},
        {"grid": 8, "smallest": 2, "largest": 6, "inside": True, "low": 0.9, "high": 1, "index": 42},
        {"grid": 32, "low": 0, "high": 1, "invert": True, "seed": 1},
    ],
)
def test_the_playground_draws_the_masks_of_python(browser: Any, server: str, moved: dict[str, Any]) -> None:
    screen(browser, 1280)
    browser.get(f"{server}/playground/")
    browser.execute_script(MOVE, moved)
    shown = browser.execute_script("return document.getElementById('board').dataset.mask")
    asked = {"grid": 14, "low": 0.4, "high": 0.7, "smallest": 1, "largest": 4, "seed": 0, "index": 0, **moved}
    corrupt = GroupMask(
        16,
        (asked["low"], asked["high"]),
        group_size=(asked["smallest"], asked["largest"]),
        placement="inside" if asked.get("inside") else "uniform",
        invert=asked.get("invert", False),
        seed=asked["seed"],
    )
    shape = (1, 3, 16 * asked["grid"], 16 * asked["grid"])
    mask = corrupt.sample(shape, index=torch.tensor([asked["index"]])).mask
    assert shown == "".join(str(int(hidden)) for hidden in mask.flatten())
    # The call that is shown gives the same mask.
    code = browser.execute_script("return document.querySelector('#figures ~ div code').textContent")
    names: dict[str, Any] = {"print": lambda *words: None}
    exec(code, names)
    assert torch.equal(names["plan"].mask, mask)
    assert browser.get_log("browser") == []
