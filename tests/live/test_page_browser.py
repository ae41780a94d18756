"""The page in a real Chromium, with a camera that plays a file."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright")
pytest.importorskip("starlette")
pytest.importorskip("cv2")

from playwright.sync_api import expect, sync_playwright

from fer_lab.data.crop import largest_face
from fer_lab.data.images import grey
from tests.live.page_server import CLASSES, NET, astronaut, brightness, encoded, serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

expect.set_options(timeout=20_000)  # of a machine that has much else to do
FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--mute-audio")
PHONE = {"width": 360, "height": 740}


class Watched:
    """The net of the tests, which counts how often it is asked."""

    calls = 0

    def tell(self, squares: np.ndarray) -> np.ndarray:
        self.calls += 1
        return brightness(squares)


def frame_of_the_film() -> np.ndarray:
    return np.asarray(Image.fromarray(astronaut()[10:280, 100:460]).resize((640, 480)))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """640x480, the face left of the middle."""
    path = tmp_path_factory.mktemp("film") / "face.mjpeg"
    path.write_bytes(encoded(frame_of_the_film(), "JPEG", quality=90) * 5)
    return path


@pytest.fixture(scope="module")
def watched():
    return Watched()


@pytest.fixture(scope="module")
def server(watched):
    with serving(NET._replace(tell=watched.tell), smooth=0.5) as address:
        yield address


@pytest.fixture(scope="module")
def browser(film):
    with sync_playwright() as playwright:
        arguments = [*FAKE_CAMERA, f"--use-file-for-fake-video-capture={film}"]
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


@pytest.fixture
def page(browser, server):
    """A fresh tab; in the end, all that it asked for came from the server, and nothing went wrong in it."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    tab = context.new_page()
    asked, faults = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("console", lambda message: message.type == "error" and faults.append(message.text))
    tab.goto(f"http://127.0.0.1:{server.port}/")
    expect(tab.locator("#bars li")).to_have_count(3)
    yield tab
    context.close()
    assert {url.split("/")[2] for url in asked if not url.startswith("data:")} == {f"127.0.0.1:{server.port}"}
    assert [one for one in faults if "Failed to load resource" not in one] == []


def show(page, pixels: np.ndarray, kind: str = "PNG", name: str = "face.png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "", "buffer": encoded(pixels, kind)})


def place_of(page, selector: str) -> list[float]:
    """Left, top, width and height as shares of the picture on the stage."""
    stage, box = page.locator("#view").bounding_box(), page.locator(selector).bounding_box()
    return [
        (box["x"] - stage["x"]) / stage["width"],
        (box["y"] - stage["y"]) / stage["height"],
        box["width"] / stage["width"],
        box["height"] / stage["height"],
    ]


def test_a_picture_is_told_as_the_server_tells_it(page, server):
    expect(page.locator("#net")).to_have_text("drawn-1 · 3 expressions · 48 × 48 grey")
    show(page, astronaut())
    (face,) = server.post("/predict", encoded(astronaut()))[1]["faces"]
    expect(page.locator("#label")).to_have_text(face["label"])
    expect(page.locator("#share")).to_have_text(f"{face['confidence']:.0%}")
    for row, share in zip(page.locator("#bars li").all(), face["probabilities"].values(), strict=True):
        expect(row.locator("b")).to_have_text(f"{share:.0%}")
    expect(page.locator("#valence")).to_have_text(f"+{face['valence']:.2f}")
    expect(page.locator("#arousal")).to_have_text(f"−{-face['arousal']:.2f}")
    box = [length / 512 for length in largest_face(grey(astronaut()))]
    assert place_of(page, ".face") == pytest.approx(box, abs=0.01)
    expect(page.locator("#spoken")).to_have_text(f"{face['label']} {face['confidence']:.0%}")


def test_a_tiff_is_shown_too_and_what_is_no_picture_is_refused(page):
    show(page, grey(astronaut()), "TIFF", "KA.AN1.39.tiff")
    expect(page.locator(".face")).to_have_count(1)
    assert page.evaluate("document.getElementById('picture').width") == 512
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    expect(page.locator("#problem")).to_have_text("Not a picture that can be read: not an image")
    expect(page.locator(".face")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()
    show(page, np.full((90, 120), 90, np.uint8))
    expect(page.locator("#hint")).to_have_text("No face found")
    expect(page.locator("#problem")).to_be_hidden()


def test_a_file_too_large_to_send_is_made_smaller(page, tmp_path):
    Image.fromarray(astronaut()).resize((2048, 2048)).save(tmp_path / "face.bmp")
    with page.expect_response("**/predict") as answered:
        page.set_input_files("#file", tmp_path / "face.bmp")
    assert answered.value.json()["width"] == 1600
    expect(page.locator(".face")).to_have_count(1)


def test_what_only_the_browser_reads_is_sent_as_it_shows_it(page):
    frames = [Image.fromarray(one) for one in (astronaut(), np.flipud(astronaut()))]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    page.set_input_files("#file", {"name": "face.gif", "mimeType": "image/gif", "buffer": file.getvalue()})
    expect(page.locator("#problem")).to_contain_text(
        "animated. What the browser makes of it was sent instead."
    )
    expect(page.locator(".face")).to_have_count(1)


DROP = """([kind, base]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(base), (c) => c.charCodeAt(0))], "face.png", {type: "image/png"}));
  document.dispatchEvent(kind === "paste" ? new ClipboardEvent("paste", {clipboardData: data})
    : new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


def test_pictures_are_dropped_and_pasted(page):
    for kind, pixels, faces in (
        ("drop", astronaut(), 1),
        ("paste", np.full((90, 90), 9, np.uint8), 0),
        ("paste", astronaut(), 1),
    ):
        page.evaluate(DROP, [kind, base64.b64encode(encoded(pixels)).decode()])
        expect(page.locator(".face")).to_have_count(faces)


def test_the_keyboard_reaches_each_face_and_the_map_follows(page, server):
    pair = np.hstack([astronaut()[:300, 80:380], astronaut()[:300, 80:380] // 2])
    show(page, pair)
    expect(page.locator(".face")).to_have_count(2)
    faces = server.post("/predict", encoded(pair))[1]["faces"]
    page.locator("#mapped").check(force=True)
    expect(page.locator("#method")).to_contain_text("Grad-CAM: what is bright speaks for")
    for face in faces:
        button = page.locator(f'.face[data-face="{face["face_id"]}"]')
        button.focus()
        with page.expect_response(re.compile(f"explain.face={face['face_id']}")):
            page.keyboard.press("Enter")
        expect(button).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#share")).to_have_text(f"{face['confidence']:.0%}")
        expect(page.locator("#map")).to_be_visible()
        left, _, width, _ = face["box"]
        wait_for(
            lambda left=left, width=width: left - width / 4 < middle_of_the_map(page) < left + width * 1.25
        )
    page.locator("#mapped").uncheck(force=True)
    expect(page.locator("#map")).to_be_hidden()


def test_a_face_that_cannot_be_explained_has_no_map_of_another(page):
    show(page, np.hstack([astronaut()[:300, 80:380], astronaut()[:300, 80:380] // 2]))
    page.locator("#mapped").check(force=True)
    expect(page.locator("#map")).to_be_visible()
    page.route("**/explain*", answering(504, "this took longer than 10 s"))
    page.locator('.face[aria-pressed="false"]').click()
    expect(page.locator("#problem")).to_have_text("This took longer than 10 s")
    expect(page.locator("#map")).to_be_hidden()
    expect(page.locator("#method")).to_be_hidden()


def answering(status: int, words: str, times: int = 1_000_000):
    """For page.route: the server's refusal, so many times."""
    left = [times]

    def answer(route) -> None:
        left[0] -= 1
        if left[0] < 0:
            return route.continue_()
        headers = {"Retry-After": "0.05"} if status == 503 else {}
        told = json.dumps({"error": words})
        return route.fulfill(status=status, headers=headers, content_type="application/json", body=told)

    return answer


def middle_of_the_map(page) -> float:
    """Mean column of what is not transparent."""
    return page.evaluate("""() => {
      const {width, height} = document.getElementById("map");
      const {data} = document.getElementById("map").getContext("2d").getImageData(0, 0, width, height);
      let [sum, count] = [0, 0];
      for (let at = 3; at < data.length; at += 4) if (data[at]) { sum += (at >> 2) % width; count += 1; }
      return sum / count;
    }""")


def wait_for(condition) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up


def test_the_camera_is_followed_one_frame_at_a_time(page, watched):
    flying, most, sessions = set(), [0], set()

    def sent(request) -> None:
        if "/predict" in request.url:
            flying.add(request)
            sessions.add(request.url.partition("session=")[2])
            most[0] = max(most[0], len(flying))

    def done(request) -> None:
        flying.discard(request)

    page.on("request", sent)
    page.on("requestfinished", done)
    page.get_by_role("button", name="Use the camera").click()
    expect(page.locator("#pace")).to_contain_text(re.compile(r"\d+ frames/s · \d+ ms"))
    expect(page.locator(".face")).to_have_count(1)
    expect(page.locator("#share")).to_contain_text("%")
    page.locator("#mapped").check(force=True)
    expect(page.locator("#map")).to_be_visible()
    page.locator("#mapped").uncheck(force=True)
    left, _, width, _ = place_of(page, ".face")
    assert 1 - (left + width / 2) == pytest.approx(face_in_the_film(), abs=0.03)  # as in a mirror
    assert most[0] == 1
    assert len(sessions) == 1
    page.get_by_role("button", name="Stop the camera").click()
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator(".face")).to_have_count(0)
    wait_for(lambda: page.evaluate("document.getElementById('camera').srcObject === null") and not flying)
    before = watched.calls
    show(page, astronaut())
    expect(page.locator(".face")).to_have_count(1)
    assert watched.calls == before + 1  # nothing more of the camera came


def face_in_the_film() -> float:
    left, _, width, _ = largest_face(grey(frame_of_the_film()))
    return (left + width / 2) / 640


@pytest.mark.parametrize("status", [503, 408])
def test_the_camera_goes_on_after_the_server_was_busy(page, status):
    page.route("**/predict*", answering(status, "not now", times=2))
    page.get_by_role("button", name="Use the camera").click()
    expect(page.locator(".face")).to_have_count(1)
    expect(page.locator("#problem")).to_be_hidden()


def test_nothing_of_before_stays_on_a_film_that_nobody_looks_at(page):
    page.get_by_role("button", name="Use the camera").click()
    expect(page.locator(".face")).to_have_count(1)
    page.route("**/predict*", lambda route: route.abort())
    expect(page.locator("#problem")).to_have_text("The server does not answer: is it still running?")
    expect(page.locator(".face")).to_have_count(0)
    expect(page.locator("#told")).to_have_class(re.compile("stale"))
    expect(page.locator("#pace")).to_have_text("")
    page.unroute("**/predict*")
    expect(page.locator(".face")).to_have_count(1)
    expect(page.locator("#told")).not_to_have_class(re.compile("stale"))
    page.route("**/predict*", answering(403, "a page of elsewhere may not use this server"))
    expect(page.locator("#problem")).to_contain_text("may not use this server")
    expect(page.get_by_role("button", name="Use the camera")).to_be_visible()  # it would be refused for ever


def test_the_keyboard_stays_at_a_face_that_is_missed_for_a_frame(page):
    faces = {3: 180, 5: 300}
    page.route("**/predict*", lambda route: route.fulfill(json=seen(faces)))
    page.get_by_role("button", name="Use the camera").click()
    page.locator('.face[data-face="5"]').focus()
    faces = {}
    expect(page.locator(".face")).to_have_count(0)
    faces = {5: 300, 3: 180}
    expect(page.locator('.face[data-face="5"]')).to_be_focused()
    faces = {3: 180, 5: 300}
    expect(page.locator(".face").first).to_have_attribute("data-face", "3")
    expect(page.locator('.face[data-face="5"]')).to_be_focused()
    page.get_by_role("button", name="Stop the camera").click()
    expect(page.locator(".face")).to_have_count(0)


def test_facts_that_could_not_be_had_are_asked_for_again(page):
    page.route("**/facts", answering(503, "too many wait"))
    page.reload()
    expect(page.locator("#problem")).to_have_text("Too many wait")
    page.unroute("**/facts")
    show(page, astronaut())
    expect(page.locator("#bars li.first")).to_contain_text("%")
    expect(page.locator("#net")).to_contain_text("drawn-1")


def test_labels_are_not_cut_off_on_a_phone(page):
    page.set_viewport_size(PHONE)
    faces: dict[int, int] = {}
    page.route("**/predict*", lambda route: route.fulfill(json=seen(faces)))
    for left in (0, 250, 300, 400, 460, 600):
        faces.clear()
        faces[left // 10] = left
        show(page, np.zeros((480, 640), np.uint8))
        expect(page.locator(".face")).to_have_attribute("data-face", str(left // 10))
        frame, label = page.locator(".frame").bounding_box(), page.locator(".face span").bounding_box()
        assert label["x"] >= frame["x"] - 2  # as much as the box's own border
        assert label["x"] + label["width"] <= frame["x"] + frame["width"] + 2


def seen(faces: dict[int, int]) -> dict:
    """What /predict tells of such faces, by their left edges."""
    told = {"label": "happiness", "confidence": 1, "probabilities": dict.fromkeys(CLASSES, 1)}
    affect = {"valence": 0, "arousal": 0}
    found = [{**told, **affect, "face_id": name, "box": [left, 90, 40, 40]} for name, left in faces.items()]
    return {"width": 640, "height": 480, "milliseconds": 1, "faces": found}


def test_it_fits_a_phone_by_day_and_by_night(page):
    page.set_viewport_size(PHONE)
    show(page, astronaut())
    expect(page.locator(".face")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    for selector in ("#view", "#film", "#bars", "#affect", "footer"):
        box = page.locator(selector).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert (brightness_of(page, "backgroundColor") > brightness_of(page, "color")) is (scheme == "light")


def brightness_of(page, name: str) -> int:
    colour = page.evaluate(f"getComputedStyle(document.body).{name}")
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


def test_words_for_those_who_hear_the_page(page):
    show(page, astronaut())
    expect(page.get_by_role("button", name=re.compile(r"^Face 1: \w+ \d+%$"))).to_have_attribute(
        "aria-pressed", "true"
    )
    expect(page.get_by_role("switch", name="Where the net looks")).to_be_attached()
    expect(page.get_by_label("Choose a picture")).to_be_attached()
    expect(page.get_by_text("not what a person feels")).to_contain_text("Art. 5(1)(f)")
    assert "feeling" not in page.inner_text("body")
