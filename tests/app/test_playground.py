"""The playground in a real Chromium, against a real service: what a person does, and what they then see."""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, FilePayload, Page, Playwright, expect, sync_playwright

from app.pages import FILES
from tests.app.test_keys import line
from tests.models import png
from tests.service import ROOT, ServiceProcess, assert_problem, serve

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

CLOCK = ROOT / "docs" / "images" / "clock.jpg"
KEY = "a-key-for-the-tests"
NOISE = png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
MAKE_TRANSFER = """([name, content]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([Uint8Array.from(atob(content), (one) => one.charCodeAt(0))], name, { type: "image/jpeg" }));
    return transfer;
}"""


@pytest.fixture(scope="module")
def photos() -> Iterator[ServiceProcess]:
    """The bundled model of photographs."""
    with serve(drain_seconds=0) as process:
        yield process


@pytest.fixture(scope="module")
def digits() -> Iterator[ServiceProcess]:
    """The bundled model of handwritten digits."""
    with serve(model=ROOT / "models" / "digits.onnx", drain_seconds=0) as process:
        yield process


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
    yield browser
    browser.close()


@contextmanager
def opened(browser: Browser, url: str, *, width: int = 1000, refused: bool = False, **options: Any) -> Iterator[Page]:
    """The page, loaded. It asks nobody but the service, and complains of nothing, but of what the service `refused`."""
    with browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce", **options) as context:
        page = context.new_page()
        page.set_default_timeout(20_000)
        complaints, asked = list[str](), list[str]()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        yield page
        if refused:
            complaints = [one for one in complaints if not one.startswith("Failed to load resource")]
        assert complaints == []
        assert [one for one in asked if not one.startswith((url, "data:", f"blob:{url}"))] == []


def choose(page: Page, name: str, content: bytes) -> None:
    """Chooses a file as a person does with the button."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files(FilePayload(name=name, mimeType="", buffer=content))


def see(page: Page, top: str) -> None:
    """Waits until the page names its answer, with the heat map over the image."""
    expect(page.locator("#top")).to_have_text(top)
    expect(page.locator("#heat")).to_be_visible()
    expect(page.locator("body")).not_to_have_class(re.compile("busy"))


@needs_chromium
def test_a_person_chooses_a_photo_and_sees_what_it_is_and_how_sure_that_is(browser: Browser, photos: ServiceProcess) -> None:
    answer = httpx.post(f"{photos.url}/predict", content=CLOCK.read_bytes(), trust_env=False).json()
    with opened(browser, photos.url) as page:
        choose(page, "clock.jpg", CLOCK.read_bytes())
        see(page, "analog clock")
        expect(page.locator("#verdict")).to_have_text(f"{100 * answer['predictions'][0]['probability']:.1f} % sure")
        assert page.locator("#bars .name").all_text_contents() == [one["label"] for one in answer["predictions"]]
        expect(page.locator("#times")).to_contain_text(
            re.compile(r"decode .* ms.*waiting .* ms.*infer .* ms.*explain .* ms.*in all")
        )
        expect(page.locator("#spoken")).to_contain_text("analog clock")
        photo, heat = (page.locator(name).bounding_box() for name in ("#photo", "#heat"))
        assert photo == pytest.approx(heat, abs=1)


@needs_chromium
@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_photo_can_be_dropped_and_pasted(browser: Browser, photos: ServiceProcess, event: str) -> None:
    with opened(browser, photos.url) as page:
        transfer = page.evaluate_handle(MAKE_TRANSFER, ["clock.jpg", base64.b64encode(CLOCK.read_bytes()).decode()])
        if event == "drop":
            page.dispatch_event("#stage", "dragover", {"dataTransfer": transfer})
            expect(page.locator("body")).to_have_class("dragging")
            page.dispatch_event("#stage", "drop", {"dataTransfer": transfer})
        else:
            code = "(data) => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }))"
            page.evaluate(code, transfer)
        see(page, "analog clock")


@needs_chromium
def test_a_photo_can_be_taken(browser: Browser, photos: ServiceProcess) -> None:
    with opened(browser, photos.url) as page:
        page.get_by_role("button", name="Take a photo").click()
        page.get_by_role("button", name="Take it now").click()
        expect(page.locator("#bars button")).to_have_count(5)
        expect(page.locator("#save")).to_have_text("photo.jpg")
        expect(page.locator("#camera")).to_be_hidden()


@needs_chromium
def test_a_digit_can_be_drawn_with_the_mouse_and_with_the_keyboard(browser: Browser, digits: ServiceProcess) -> None:
    with opened(browser, digits.url) as page:
        page.get_by_role("button", name="Draw").click()
        pad = page.locator("#pad").bounding_box()
        assert pad is not None
        for number, (right, down) in enumerate([(0.3, 0.25), (0.7, 0.25), (0.45, 0.8)]):
            page.mouse.move(pad["x"] + right * pad["width"], pad["y"] + down * pad["height"], steps=8)
            if not number:
                page.mouse.down()
        page.mouse.up()
        see(page, "7")
        page.get_by_role("button", name="Clear").click()
        expect(page.locator("#heat")).to_be_hidden()
        for key in [*["ArrowUp"] * 7, " ", *["ArrowDown"] * 14, " "]:
            page.keyboard.press(key)
        see(page, "1")


@needs_chromium
def test_a_model_of_photographs_offers_no_drawing(browser: Browser, photos: ServiceProcess) -> None:
    with opened(browser, photos.url) as page:
        expect(page.locator("#model-line")).to_have_text("imagenet, version 1: 1,000 classes")
        expect(page.locator("#draw")).to_be_hidden()


@needs_chromium
def test_a_person_is_told_when_it_is_none_of_the_classes(browser: Browser, photos: ServiceProcess) -> None:
    answer = httpx.post(f"{photos.url}/predict", content=NOISE, trust_env=False).json()
    assert answer["accepted"] is False
    with opened(browser, photos.url) as page:
        choose(page, "noise.png", NOISE)
        see(page, "None of these")
        expect(page.locator("#verdict")).to_have_text("Not sure enough")
        expect(page.locator("#verdict-text")).to_contain_text(answer["predictions"][0]["label"])


@needs_chromium
def test_the_heat_map_fades_and_shows_any_class_that_is_asked_for(browser: Browser, photos: ServiceProcess) -> None:
    with opened(browser, photos.url) as page:
        choose(page, "clock.jpg", CLOCK.read_bytes())
        see(page, "analog clock")
        page.locator("#opacity").fill("0")
        expect(page.locator("#heat")).to_have_css("opacity", "0")
        page.locator("#opacity").press("ArrowRight")
        expect(page.locator("#opacity-value")).to_have_text("1 %")
        before = page.locator("#heat").get_attribute("src")
        page.get_by_role("button", name="wall clock").press("Enter")
        expect(page.locator("#heat-text")).to_contain_text("wall clock")
        expect(page.locator("#bars [aria-pressed=true]")).to_contain_text("wall clock")
        expect(page.locator("#bars [aria-pressed=true]")).to_be_focused()
        expect(page.locator("#curl")).to_contain_text("class_index=892")
        assert page.locator("#heat").get_attribute("src") != before


@needs_chromium
def test_the_code_that_is_shown_gives_the_answer_that_is_shown(
    browser: Browser, photos: ServiceProcess, tmp_path: Path
) -> None:
    with opened(browser, photos.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        choose(page, "it's a clock.jpg", CLOCK.read_bytes())
        see(page, "analog clock")
        with page.expect_download() as download:
            page.locator("#save").click()
        download.value.save_as(tmp_path / "it's a clock.jpg")
        codes = []
        for number in (0, 1):
            page.get_by_role("button", name="Copy").nth(number).click()
            expect(page.get_by_role("button", name="Copied")).to_be_visible()
            codes.append(page.evaluate("navigator.clipboard.readText()"))
            expect(page.get_by_role("button", name="Copied")).to_be_hidden()
    curl, python = codes
    environment = {"PATH": "/usr/bin:/bin", "NO_PROXY": "*"}
    run: dict[str, Any] = {
        "cwd": tmp_path,
        "env": environment,
        "capture_output": True,
        "text": True,
        "check": True,
        "timeout": 60,
    }
    if shutil.which("curl"):
        answer = json.loads(subprocess.run(curl, shell=True, **run).stdout)
        assert answer["predictions"][0]["label"] == answer["explanation"]["label"] == "analog clock"
    assert "analog clock" in subprocess.run([sys.executable, "-c", python], **run).stdout


@needs_chromium
def test_the_facts_of_the_model_are_those_of_its_file(browser: Browser, digits: ServiceProcess) -> None:
    with opened(browser, digits.url) as page:
        facts = page.locator("#fact-list")
        expect(facts).to_contain_text("99.65 % of 10,000 images")
        expect(facts).to_contain_text("28 × 28 pixels, grey")
        page.locator("#labels-summary").click()
        page.get_by_label("Find a label").fill("8")
        expect(page.locator("#labels")).to_have_text("8")


@needs_chromium
def test_an_error_is_told_as_a_sentence_and_the_next_image_is_answered(browser: Browser, photos: ServiceProcess) -> None:
    with opened(browser, photos.url, refused=True) as page:
        choose(page, "letter.jpg", b"Dear Sir or Madam")
        expect(page.locator("#problem-title")).to_have_text("Unsupported image type")
        expect(page.locator("#problem-detail")).to_have_text(re.compile(r"^The bytes are not an image .* send JPEG, PNG.*\.$"))
        expect(page.locator("#unseen")).to_be_visible()
        choose(page, "clock.jpg", CLOCK.read_bytes())
        see(page, "analog clock")
        expect(page.locator("#problem")).to_be_hidden()
        page.route("**/predict?*", lambda route: route.abort())
        choose(page, "clock.jpg", CLOCK.read_bytes())
        expect(page.locator("#problem-title")).to_have_text("The service cannot be reached")
        page.unroute("**/predict?*")
        page.get_by_role("button", name="Try again").click()
        see(page, "analog clock")


@needs_chromium
def test_a_service_with_keys_asks_for_one(browser: Browser, colours: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(line("page", KEY), encoding="utf-8")
    with serve(model=colours, api_keys_file=keys, drain_seconds=0) as service:  # noqa: SIM117
        with opened(browser, service.url, refused=True) as page:
            expect(page.locator("#problem-title")).to_have_text("This service asks for a key")
            page.get_by_label("API key").fill(KEY)
            page.get_by_role("button", name="Use it").click()
            expect(page.locator("#model-line")).to_contain_text("colours")
            choose(page, "red.png", png((255, 0, 0)))
            see(page, "red")
            expect(page.locator("#curl")).to_contain_text("X-API-Key")
            expect(page.locator("#curl")).not_to_contain_text(KEY)


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (360, "light"), (1600, "dark"), (1600, "light")])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_window(
    browser: Browser, photos: ServiceProcess, width: int, scheme: str
) -> None:
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    with opened(browser, photos.url, width=width, color_scheme=scheme) as page:
        for name, content in {"": b"", "clock.jpg": CLOCK.read_bytes(), "noise.png": NOISE}.items():
            if name:
                choose(page, name, content)
                see(page, "analog clock" if name == "clock.jpg" else "None of these")
            found = page.evaluate(f"async () => {{ {axe}; return (await axe.run()).violations; }}")
            assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width


@needs_chromium
def test_the_keyboard_alone_leads_to_an_answer(browser: Browser, photos: ServiceProcess) -> None:
    with opened(browser, photos.url) as page:
        # Choosers are caught from here on: asked for only below, the key could be quicker than the asking.
        page.on("filechooser", lambda _: None)
        reached = []
        for _ in range(4):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.textContent"))
        assert reached == ["API", "Health", "Choose a file", "Take a photo"]
        page.keyboard.press("Shift+Tab")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(CLOCK)
        see(page, "analog clock")


def test_the_page_is_small_and_lets_a_browser_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    answers = [client.get(path) for path in FILES]
    assert sum(len(answer.content) for answer in answers) < 60_000
    for answer in answers:
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in re.sub(
            r"http://www\.w3\.org/2000/svg", "", answer.text.replace("httpx", "").replace("https and", "")
        )
    assert "style=" not in answers[0].text  # which the policy forbids


def test_the_playground_can_be_switched_off(colours: Path) -> None:
    with serve(model=colours, playground="false", drain_seconds=0) as service, service.client() as client:
        for path in FILES:
            assert_problem(client.get(path), 404, "not_found")
