"""A graph is a node: you can use it inside another graph, in a scope of the outer graph's store.

The last action of the inner graph decides which edge of the outer graph is taken.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pocket_plug import Action, Graph, Key, Next, Store, StoreWriter, node


@dataclass(frozen=True)
class Mail:
    sender: str
    text: str


SEEN = Key("seen:{}", int)
spam = Action[Mail]("spam")


@node
async def clean(mail: Mail) -> Mail:
    return Mail(mail.sender.strip().lower(), " ".join(mail.text.split()))


@node.post
async def check(store: StoreWriter, mail: Mail) -> Mail | Next[Mail]:
    seen = await store.update(SEEN(mail.sender), lambda seen: seen + 1, default=0)
    return spam(mail) if seen > 2 or "win!" in mail.text.lower() else mail


@node
async def deliver(mail: Mail) -> str:
    return f"inbox: {mail.sender}: {mail.text}"


@node
async def drop(mail: Mail) -> str:
    return f"spam:  {mail.sender}: {mail.text}"


screening = Graph(clean >> check, name="screening", scope="screening")


async def main() -> None:
    store = Store()
    mailbox = Graph(screening >> deliver, screening.on(spam) >> drop, store=store, name="mailbox")
    for sender, text in [(" Bob@x.org", "Lunch  today?"), ("lottery@x.org", "You WIN!"), ("bob@x.org", "Or tomorrow?")]:
        print(await mailbox.run(Mail(sender, text)))
    print(await mailbox.run(Mail("BOB@x.org ", "Hello?")))
    print([name async for name in store.keys()])


if __name__ == "__main__":
    asyncio.run(main())
