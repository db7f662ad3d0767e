"""Who reaches the server of `daily-train up`: in real Chromium, also a page that knows the authentication string."""

import re
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from playwright.sync_api import Browser, Page, Playwright, StorageState, expect

from deployments.access import AUTH_FILE, basic_credentials, login_ticket
from tests.operations.live import CHROMIUM, QUIET, Up

chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: `apt-get install chromium`")
ATTACKS = """async ([url, basic, string, deployment]) => {
  const headers = {"Authorization": `Basic ${basic}`, "Content-Type": "application/json"};
  const pause = `${url}/api/deployments/${deployment}/pause_deployment`;
  const asked = async (address, options) => {
    try { const answer = await fetch(address, options); return answer.status; } catch { return "refused"; }
  };
  const socket = path => new Promise(told => {
    const opened = new WebSocket(url.replace("http", "ws") + path, ["prefect"]);
    opened.onopen = () => opened.send(JSON.stringify({type: "auth", token: string}));
    opened.onmessage = message => told(message.data);
    opened.onclose = () => told("refused");
  });
  return {
    "read": await asked(`${url}/api/block_documents/filter`, {method: "POST", headers, body: "{}"}),
    "empty POST": await asked(pause, {method: "POST", headers}),
    "no-cors POST": await asked(pause, {method: "POST", mode: "no-cors"}),
    "log in": await asked(`${url}/enter`, {method: "POST", body: string}),
    "events": await socket("/api/events/out"),
    "logs": await socket("/api/logs/out"),
  };
}"""
"""What a hostile page tries, with the string in its hand, so that only the checks of address and page hold it back."""


RUN = "0af51c6e-1111-4222-8333-000000000002"


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """Another page on this machine: another port of loopback, another origin."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<!DOCTYPE html><title>elsewhere</title>")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_without_the_string_everything_but_the_health_check_answers_401(up: Up):
    plain = httpx.Client(base_url=up.url, timeout=60)
    block = plain.post("/api/block_documents/filter", json={"include_secrets": True})
    assert block.status_code == 401 and "hook" not in block.text
    assert up.api.post("/block_documents/filter", json={"include_secrets": True}).json()[0]["data"]["url"]
    for path in (
        "/",
        "/v2/",
        "/deployments",
        "/ui-settings",
        "/docs",
        "/openapi.json",
        "/api/docs",
        "/api/openapi.json",
        "/api/admin/version",
        "/api/admin/settings",
        "//api/admin/version",
        "/live",
        "/live/data",
        f"/live/{RUN}",
        f"/live/{RUN}/data",
        f"/pages/{RUN}/report",
    ):
        assert plain.get(path).status_code == 401, path
        assert plain.get(path, headers={"Authorization": "Basic eDp5"}).status_code == 401, path
    for path in (f"/pages/{RUN}/report", f"/pages/{RUN}/metrics?training={'a' * 12}"):
        for way in ("PUT", "POST"):
            assert plain.request(way, path, content="{}").status_code == 401, path
    assert plain.post("/enter", content="daily-train:").status_code == 401
    assert plain.post("/enter", content=login_ticket("another string")).status_code == 401
    assert plain.get("/api/health").status_code == 200
    home = up.folder / "home"
    for file in (home, *home.glob("prefect.db*"), home / AUTH_FILE):
        assert not stat.S_IMODE(file.stat().st_mode) & 0o077, file
    for process in up.processes("daily-train|deployments|prefect"):
        with open(f"/proc/{process}/cmdline") as command:
            assert up.auth_string not in command.read()


def test_other_addresses_and_pages_are_refused_even_with_the_string(up: Up):
    def status(**headers: str) -> int:
        return httpx.get(f"{up.url}/api/admin/version", headers={**up.headers, **headers}, timeout=60).status_code

    port = up.url.rpartition(":")[2]
    assert status() == status(Origin=up.url) == 200
    assert status(Host=f"localhost:{port}", Origin=f"http://localhost:{port}") == 200
    for host in ("evil.test", f"evil.test:{port}", "127.0.0.1:1", "127.0.0.1", "0.0.0.0", f"127.0.0.1.test:{port}"):
        assert status(Host=host) == 403, host
    for origin in ("null", "http://evil.test", "http://127.0.0.1:1", f"http://localhost:{port}", f"{up.url}.evil.test"):
        assert status(Origin=origin) == 403, origin
    assert status(**{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}) == 403
    answer = httpx.get(f"{up.url}/", headers=up.headers, follow_redirects=True, timeout=60)
    assert "access-control-allow-origin" not in answer.headers
    assert "connect-src 'self'" in answer.headers["content-security-policy"]


def test_pages_of_runs_are_sent_with_the_string_alone_and_within_bounds(up: Up, logged_in: StorageState):
    report, metrics = f"{up.url}/pages/{RUN}/report", f"{up.url}/pages/{RUN}/metrics?training={'a' * 12}"
    cookies = {cookie["name"]: cookie["value"] for cookie in logged_in["cookies"]}
    browser, run = httpx.Client(cookies=cookies, timeout=60), httpx.Client(headers=up.headers, timeout=60)
    assert browser.get(f"{up.url}/live/data").status_code == 200
    for address in (report, metrics):
        for headers in ({}, {"Origin": up.url, "Authorization": "Basic eDp5"}):
            assert browser.put(address, content="{}", headers=headers).status_code == 401
        for headers in ({"Origin": "http://evil.test"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "evil.test"}):
            assert run.put(address, content="{}", headers=headers).status_code == 403
    assert browser.get(report).status_code == 404, "nothing was kept"
    for headers in ({"Origin": "http://evil.test"}, {"Sec-Fetch-Site": "same-site"}, {"Host": "evil.test"}):
        assert browser.get(f"{up.url}/live/{RUN}/data", headers=headers).status_code == 403

    assert run.put(report, content=b"x" * 20_000_001).status_code == 413
    assert run.post(metrics, content=b"x" * 1_000_001).status_code == 413
    assert run.post(metrics, content='{"event": "step", "step": "<b>"}').status_code == 400
    assert run.post(metrics.replace("a" * 12, "../up"), content="{}").status_code == 400
    for name in ("%2e%2e", f"{RUN}%2f%2e%2e", f"%2e%2e%2f{RUN}", RUN.upper(), f"{RUN}%0a", "x" * 36):
        for address in (f"{up.url}/pages/{name}/report", f"{up.url}/live/{name}/data"):
            assert run.put(address, content="").status_code in (404, 405), address
            assert run.get(address).status_code == 404, address
    assert run.delete(report).status_code == 405
    home = up.folder / "home"
    assert not list(home.rglob("report.html")) or RUN not in str(list(home.rglob("report.html")))
    for folder in home.glob("daily-train-pages/**"):
        assert not stat.S_IMODE(folder.stat().st_mode) & 0o077, folder


def status_of(page: Page, url: str) -> int:
    """The status that a browser gets for an address."""
    answer = page.goto(url)
    assert answer is not None, "the address is another one"
    return answer.status


@chromium
def test_a_person_logs_in_once_and_the_pages_ask_nobody_else(up: Up, browser: Browser, logged_in: StorageState):
    used = re.findall(r"/enter#(\S+)", up.log)[0]
    assert httpx.post(f"{up.url}/enter", content=used, timeout=60).text == "This address was used already."

    context = browser.new_context()
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    assert status_of(page, f"{up.url}/v2/deployments") == 401
    page.locator("#word").fill("daily-train:wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#said")).to_contain_text("not the string")
    page.locator("#word").fill(up.auth_string)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("link", name="by-hand")).to_be_visible()
    context.clear_cookies()  # as after the browser was closed: it does not ask a second time
    page.goto(f"{up.url}/v2/work-pools")
    expect(page.get_by_text("daily-train").first).to_be_visible()
    context.close()
    assert len(asked) > 20 and not [url for url in asked if not url.startswith((f"{up.url}/", "blob:", "data:"))]


@chromium
def test_pages_from_elsewhere_change_and_learn_nothing(
    up: Up, browser: Browser, logged_in: StorageState, elsewhere: str, playwright: Playwright
):
    deployment = up.deployment("by-hand")
    given = [up.url, basic_credentials(up.auth_string), up.auth_string, deployment["id"]]
    page = browser.new_context(storage_state=logged_in).new_page()
    page.goto(elsewhere)
    refused = page.evaluate(ATTACKS, given)
    assert refused.pop("no-cors POST") == 0  # the page cannot see the answer
    assert set(refused.values()) == {"refused"}, refused
    for embedded in (f"<iframe src='{up.url}/v2/'></iframe>", f"<script src='{up.url}/api/health'></script>"):
        with page.expect_response(f"{up.url}/**") as answer:
            page.set_content(embedded)
        assert answer.value.status == 403
    page.set_content(
        f"<form method=post enctype=text/plain action='{given[0]}/api/deployments/{deployment['id']}"
        "/pause_deployment'><input name=a></form><script>document.forms[0].submit()</script>"
    )
    page.wait_for_url(f"{up.url}/**")
    assert "may not use this server" in page.content()
    page.context.close()

    rebinding = playwright.chromium.launch(
        executable_path=CHROMIUM, args=[*QUIET, "--host-resolver-rules=MAP evil.test 127.0.0.1"]
    )
    page = rebinding.new_page()
    evil = up.url.replace("127.0.0.1", "evil.test")
    assert status_of(page, f"{evil}/enter") == 403
    assert page.evaluate(ATTACKS, [evil, *given[1:]]) == {
        "read": 403,
        "empty POST": 403,
        "no-cors POST": 403,
        "log in": 403,
        "events": "refused",
        "logs": "refused",
    }
    rebinding.close()
    assert not deployment["paused"] and not up.deployment("by-hand")["paused"]
