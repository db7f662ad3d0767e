"""What the Prefect server does by itself: tell people how runs end, and end runs that have died.

The address that messages go to is kept in a block of the server, encrypted; it is in no parameter, log or manifest.
"""

import logging
from datetime import timedelta
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import UUID

from apprise import Apprise
from prefect import get_client
from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture, SendNotification
from prefect.blocks.notifications import SlackWebhook
from prefect.client.schemas.objects import StateType
from pydantic import SecretStr

from model.errors import DailyTrainError
from tasks.runtime.events import FINISHED, REGRESSED
from tasks.runtime.liveness import DID_NOT_ANSWER

logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its complaints hold parts of the address

BLOCK = "daily-train-notify"
SECONDS_BETWEEN_HEARTBEATS = 30
ENDED = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Crashed")}
STARTED, HEARTBEAT = "prefect.flow-run.Running", "prefect.flow-run.heartbeat"
OUR_RUN: dict[str, Any] = {
    "match": {"prefect.resource.id": "prefect.flow-run.*"},
    "match_related": {"prefect.resource.id": "prefect.tag.daily-train", "prefect.resource.role": "tag"},
}
"""A run of one of our deployments, all of which carry the tag `daily-train`."""
ANNOUNCED = ("{{ event.payload.subject }}", "{{ event.payload.body }}\n{{ flow_run | ui_url }}")

MESSAGES: dict[str, tuple[dict[str, Any], str, str]] = {
    "failed": (
        {"expect": {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}, **OUR_RUN},
        "{{ flow_run.name }}: {{ flow_run.state.name | lower }}",
        "{{ flow_run.state.message }}\n\nThe same run again goes on from its last checkpoint.\n{{ flow_run | ui_url }}",
    ),
    "finished": ({"expect": {FINISHED}}, *ANNOUNCED),
    "regressed": ({"expect": {REGRESSED}}, *ANNOUNCED),
}
"""What is told: the events, the subject and the body, as templates that the server fills."""


class NotifyError(DailyTrainError):
    """Messages cannot be sent; the message says why and never holds the address."""


def apprise_url(address: str) -> str:
    """The address as Apprise spells it: Discord's and Slack's own webhooks, `mailto://` and its other kinds as they
    are; any other http(s) address gets a JSON object with `title` and `message`. Raises NotifyError."""
    if not urlsplit(address).scheme:
        raise NotifyError("the address for messages has no scheme; expected such as https://… or mailto://…")
    if not Apprise().add(address):
        address = address.replace("https://", "jsons://", 1).replace("http://", "json://", 1)
    if not Apprise().add(address):
        raise NotifyError(f"no service is known for addresses like {urlsplit(address).scheme}://…")
    return address


def notify(address: str) -> None:
    """Keep the address on the server that Prefect's clients in this process use, send a first message to it, and set
    up the automations that will."""
    service = Apprise()
    service.add(apprise_url(address))
    if not service.notify(title="The Daily Train", body="Runs that fail, finish or regress are told here."):
        raise NotifyError("the first message was not accepted; is the address right and reachable from here?")
    # the block's name says Slack, but it takes any Apprise address
    block = SlackWebhook(url=SecretStr(apprise_url(address)))
    document = cast(UUID, block.save(BLOCK, overwrite=True))  # declared for asynchronous callers as well
    for name, (which, subject, body) in MESSAGES.items():
        action = SendNotification(block_document_id=document, subject=f"The Daily Train: {subject}", body=body)
        trigger = EventTrigger(**which, posture=Posture.Reactive, threshold=1, for_each={"prefect.resource.id"})
        _save(f"daily-train: tell of {name} runs", "Sends a message for each.", trigger, action)


def watch_for_dead_runs() -> None:
    """A run that is gone without a word is shown as crashed, so that it neither looks alive nor holds its place."""
    silent = timedelta(seconds=3 * SECONDS_BETWEEN_HEARTBEATS)
    for name, after, expect, within in (
        ("lost in mid-run", {STARTED, HEARTBEAT}, {HEARTBEAT, *ENDED}, silent),
        ("lost before its start", {"prefect.flow-run.Pending"}, {STARTED, *ENDED}, 10 * silent),
    ):
        message = f"{DID_NOT_ANSWER} for {within.total_seconds():.0f} s: its process is gone. Run it again to go on."
        trigger = EventTrigger(
            after=after,
            expect=expect,
            **OUR_RUN,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        )
        action = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message, force=False)
        _save(f"daily-train: {name}", "Shows a run that has died as crashed.", trigger, action)


def _save(name: str, description: str, trigger: EventTrigger, action: ChangeFlowRunState | SendNotification) -> None:
    automation = AutomationCore(name=name, description=description, enabled=True, trigger=trigger, actions=[action])
    with get_client(sync_client=True) as client:
        if there := client.read_automations_by_name(name):
            client.update_automation(there[0].id, automation)
        else:
            client.create_automation(automation)
