"""Take the pictures of these pages from a real UI: `python docs/screenshots.py http://127.0.0.1:4200 .daily-train`.

Needs `daily-train up`, a finished run of `by-hand` in that store, Chromium, and the extra `dev`.
"""

import shutil
import sys
from pathlib import Path

import httpx
from playwright.sync_api import Page, sync_playwright

from deployments.access import auth_string, basic_credentials, login_ticket

IMAGES = Path(__file__).parent / "images"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
SECONDS_TO_DRAW = 15


def picture(page: Page, address: str, name: str, sign: str) -> None:
    """One picture of what the window shows some time after a `sign` (a selector) of its content has arrived."""
    page.goto(address, timeout=120_000, wait_until="commit")
    page.locator(sign).first.wait_for(timeout=120_000)
    page.wait_for_timeout(1000 * SECONDS_TO_DRAW)  # the page of a run never falls silent
    page.screenshot(path=IMAGES / f"{name}.png")
    print(f"{name}.png: {(IMAGES / f'{name}.png').stat().st_size / 1000:.0f} kB")


def main(ui: str, store: str) -> None:
    string = auth_string()
    api = httpx.Client(
        base_url=f"{ui}/api", timeout=60, headers={"Authorization": f"Basic {basic_credentials(string)}"}
    )
    by_hand = api.get("/deployments/name/daily-train/by-hand").json()["id"]
    chosen = {"deployment_id": {"any_": [by_hand]}, "state": {"type": {"any_": ["COMPLETED"]}}}
    run = api.post("/flow_runs/filter", json={"flow_runs": chosen, "sort": "END_TIME_DESC"}).json()[0]["id"]
    found = api.post("/artifacts/filter", json={"flow_runs": {"id": {"any_": [run]}}}).json()
    artifacts = {artifact["key"]: artifact["id"] for artifact in found}
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET).new_page(
            viewport={"width": 1280, "height": 900}
        )
        page.goto(f"{ui}/enter#{login_ticket(string)}")
        page.wait_for_url(lambda url: "/enter" not in url, wait_until="commit")
        pages = f"{ui}/v2"  # the version that opens by default
        picture(page, f"{pages}/deployments/deployment/{by_hand}/run", "form", "form fieldset")
        picture(page, f"{pages}/runs/flow-run/{run}", "run", "main [role=tab]")
        picture(page, f"{pages}/artifacts/artifact/{artifacts['report']}", "report", "main table")
        picture(page, f"{ui}/live/{run}", "live", "#loss path")
        picture(page, (Path(store).absolute() / "leaderboard.html").as_uri(), "leaderboard", "table")


if __name__ == "__main__":
    main(*sys.argv[1:])
