"""The tests' browser sees what a page does: its requests, its errors, its answers to keys, mouse, touch and print."""

import pytest

PAGE = """<!doctype html><meta name="viewport" content="width=device-width"><title>x &amp; y</title>
<style>p { color: rgb(1, 2, 3) } @media print { p { color: rgb(4, 5, 6) } } p:hover { color: rgb(7, 8, 9) }</style>
<p>words</p><input id="a"><button id="b" onclick="this.dataset.told = 'yes'">b</button>"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "page with space.html").write_text(PAGE)
    return tmp_path / "page with space.html"


def test_scripts_keys_mouse_and_media(browser, path):
    colour = "return getComputedStyle(document.querySelector('p')).color"
    with browser.open(path, width=500) as page:
        assert page.run("return [document.title, innerWidth, await 3]") == ["x & y", 500, 3]
        assert page.run("return undefined") is None
        page.press("Tab")
        page.press("q")
        assert page.run("return document.querySelector('#a').value") == "q"
        page.press("Tab")
        page.press("Enter")
        assert page.run("return document.activeElement.dataset.told") == "yes"
        assert page.run(colour) == "rgb(1, 2, 3)"
        page.hover("p")
        assert page.run(colour) == "rgb(7, 8, 9)"
        page.hover("#b")
        page.media("print")
        assert page.run(colour) == "rgb(4, 5, 6)"
        assert page.pdf().startswith(b"%PDF")
        assert page.errors == page.requests == []
        with pytest.raises(RuntimeError, match="broken"):
            page.run("throw new Error('broken')")
        with pytest.raises(RuntimeError, match="nothing on the page matches #c"):
            page.click("#c")


def test_touch(browser, path):
    with browser.open(path, width=390, height=844, is_phone=True) as page:
        assert page.run("return [innerWidth, matchMedia('(hover: none)').matches]") == [390, True]
        page.tap("#b")
        assert page.run("return document.querySelector('#b').dataset.told") == "yes"


def test_requests_and_errors_of_a_page_are_recorded(browser, tmp_path):
    (tmp_path / "bad.html").write_text(
        "<img src='http://127.0.0.1:9/x.png'>"
        "<script>console.error('one', 2); setTimeout(() => { nonsense() }, 0)</script>"
    )
    with browser.open(tmp_path / "bad.html") as page:
        page.run("await new Promise(done => setTimeout(done, 50))")
        assert page.requests == ["http://127.0.0.1:9/x.png"]
        assert "one 2" in page.errors
        assert any("nonsense is not defined" in error for error in page.errors)
    with (
        browser.open(tmp_path / "bad.html", width=300) as page,
        pytest.raises(RuntimeError, match="ERR_FILE_NOT_FOUND"),
    ):
        page.go(tmp_path / "none.html")
