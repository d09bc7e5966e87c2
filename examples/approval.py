"""A person approves a draft, perhaps days later and in another process: the run is suspended until somebody answers.

`approval.py FILE submit TEXT` starts the run, `approval.py FILE answer yes` answers. Without arguments it shows both.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pocket_plug import Action, Answered, Ask, Graph, Key, Next, RunSuspendedError, SyncStore, SyncWriter, node


@dataclass(frozen=True)
class Draft:
    text: str
    words: int


SENT = Key("sent", list[str])
TEXT = "All is well, and the cat says hello"
DROPPED = Action[Draft]("dropped")


@node
def count(text: str) -> Draft:
    print("  counting words for hours")
    return Draft(text, len(text.split()))


approve = Ask[Draft, bool](bool, question=lambda draft: f"send {draft.text!r} ({draft.words} words)?", name="approve")


@node.post
def decide(store: SyncWriter, answered: Answered[Draft, bool]) -> Draft | Next[Draft]:
    return answered.input if answered.answer else DROPPED(answered.input)


@node.post
def send(store: SyncWriter, draft: Draft) -> str:
    # committed with the checkpoint, so exactly once
    sent = store.update(SENT, lambda sent: [*sent, draft.text], default=[])
    return f"sent, as number {len(sent)}"


@node
def drop(draft: Draft) -> str:
    return f"dropped {draft.words} words"


def workflow(store: SyncStore | None = None) -> Graph[str, str]:
    return Graph(count >> approve >> decide >> send, decide.on(DROPPED) >> drop, store=store, name="approval")


graph = workflow()  # for `pocket-plug run` and `pocket-plug runs`, which give it their store


def submit(store: SyncStore, text: str) -> None:
    try:
        print(" ", workflow(store).run_sync(text, run_id="mail"))  # after a crash, the same call resumes the run
    except RunSuspendedError as suspended:
        print(f"  waiting: {suspended.question}")


def answer(store: SyncStore, word: str) -> None:
    print(" ", workflow(store).resume_sync("mail", answer=word == "yes"))


def demonstrate() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, word in (("agreed", "yes"), ("refused", "no")):
            print(name)
            for command in [["submit", TEXT], ["submit", TEXT], ["answer", word], ["answer", word]]:
                print(f" {command[0]}", flush=True)
                script = [sys.executable, __file__, str(Path(folder, f"{name}.db"))]
                subprocess.run([*script, *command], check=True)  # noqa: S603 - nothing but this file


if __name__ == "__main__":
    if sys.argv[1:]:
        file, command, argument = sys.argv[1:]
        with SyncStore(f"sqlite:///{file}") as store:
            {"submit": submit, "answer": answer}[command](store, argument)
    else:
        demonstrate()
