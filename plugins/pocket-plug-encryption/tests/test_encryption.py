"""The encryption layer: with the key, values come back unchanged; a record that was tampered with is always an error."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from base64 import b64decode
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pocket_plug_encryption import Encrypted, Encryption, key_id, new_key

from pocket_plug import (
    ConfigError,
    CorruptRecordError,
    Entry,
    Graph,
    Key,
    Memory,
    PocketError,
    Put,
    Runs,
    Store,
    StoreError,
    SyncStore,
    UnknownTypeError,
    UnreadableRecordError,
    UnregisteredTypeError,
    ValueTypeError,
    Worker,
    node,
)
from pocket_plug.codec import Codec
from pocket_plug.layers import Persistence
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.store import parts
from pocket_plug.testing.layer_contract import LayerContract

README = Path(__file__).parents[1] / "README.md"
KEY, FORMER = new_key(), new_key()
VALUE = {"card": "4711-secret", "numbers": [1, 2.5, {3}]}


class TestContract(LayerContract):
    """The layer passes the backend contract over any backend."""

    def recipe(self) -> Encryption:
        return Encryption(keys=(KEY, FORMER))


def pair(*keys: str) -> tuple[SyncStore, Memory]:
    """A store with these keys, and the backend below the layer."""
    backend = Memory()
    return SyncStore(backend, layers=[Encryption(keys=keys or KEY)]), backend


def stored(backend: Memory, key: str) -> Encrypted:
    """What the backend has stored."""
    entry = asyncio.run(backend.read(key))
    assert entry is not None
    assert isinstance(entry.value, Encrypted)
    return entry.value


def put(backend: Memory, key: str, value: object) -> None:
    """Write to the backend without the layer, as an attacker without a key can."""
    asyncio.run(backend.write([Put(key, value)]))


# ---------------------------------------------------------------- what is stored
def test_a_value_is_encrypted_and_comes_back() -> None:
    """The backend has no byte of the value; name, deadline and version are readable."""
    store, backend = pair()
    store.set("guest", VALUE, ttl=60)
    found = stored(backend, "guest")
    assert b"secret" not in found.data
    assert found.key_id == key_id(b64decode(KEY))
    assert store.get("guest") == VALUE
    assert store.get_many(["guest", "absent"]) == {"guest": VALUE}
    assert list(store.keys()) == ["guest"]
    inner = asyncio.run(backend.read("guest"))
    outer = asyncio.run(store.stack.read("guest"))
    assert inner is not None
    assert outer is not None
    assert (inner.version, inner.expires_at) == (outer.version, outer.expires_at)
    assert store.ttl("guest") is not None


def test_each_write_has_a_nonce_of_its_own() -> None:
    """The same value, written twice, gives two different records."""
    store, backend = pair()
    seen = set()
    for _ in range(200):
        store.set("a", 1)
        seen.add((stored(backend, "a").nonce, stored(backend, "a").data))
    assert len({nonce for nonce, _ in seen}) == len({data for _, data in seen}) == 200


def test_a_file_has_no_value_in_it(tmp_path: Path) -> None:
    """Neither do the records of durable runs: inputs, outputs, items."""
    url = f"sqlite:///{tmp_path}/state.db"

    async def main() -> None:
        async with Store(url, layers=[Encryption(keys=KEY)]) as store:
            await store.set("guest", VALUE)
            assert (
                await Graph(greet, store=store, name="orders").run("secret-input", run_id="r1") == "secret-input, hello"
            )
            assert (
                await Graph(greet, store=store, name="orders").run("secret-input", run_id="r1") == "secret-input, hello"
            )
            assert (await Runs(store).get("r1")).state == "finished"
            await store.set("probe", "found")

    asyncio.run(main())
    for file in tmp_path.iterdir():
        assert b"secret" not in file.read_bytes()
        assert b"hello" not in file.read_bytes()


@node
async def greet(name: str) -> str:
    return f"{name}, hello"


def test_without_the_layer_a_run_says_what_is_missing(tmp_path: Path) -> None:
    """The run is reported neither as damaged nor as one that could start again."""
    url = f"sqlite:///{tmp_path}/state.db"

    async def main() -> None:
        async with Store(url, layers=[Encryption(keys=KEY)]) as store:
            await Graph(greet, store=store, name="orders").run("in", run_id="r1")
        async with Store(url) as store:
            with pytest.raises(
                CorruptRecordError, match=r"not a record of a durable run, but Encrypted.*give the store that layer"
            ):
                await Runs(store).get("r1")
            with pytest.raises(CorruptRecordError, match="give the store that layer"):
                await Graph(greet, store=store, name="orders").run("in", run_id="r1")

    asyncio.run(main())


def test_the_command_line_shows_runs_with_the_layer_and_says_so_without(tmp_path: Path, monkeypatch: Any) -> None:
    """`pocket-plug runs` works with the key from the environment, and never shows the key."""
    url = f"sqlite:///{tmp_path}/state.db"
    monkeypatch.setenv("STATE_KEY", KEY)

    async def main() -> None:
        async with Store(url, layers=[Encryption(keys=KEY)]) as store:
            await Graph(greet, store=store, name="orders").run("in", run_id="r1")

    asyncio.run(main())

    def said(layers: str, *arguments: str) -> str:
        (tmp_path / "pocket.toml").write_text(f'[store]\nurl = "sqlite:///state.db"\nlayers = [{layers}]\n')
        command = [str(Path(sys.executable).with_name("pocket-plug")), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    layer = '{ use = "encryption", keys = "${STATE_KEY}" }'
    assert "finished" in said(layer, "runs", "show", "r1")
    assert "${STATE_KEY}" in said(layer, "stack")
    assert "Encrypted" in said("", "runs", "show", "r1")
    monkeypatch.setenv("POCKET_PLUG_DISABLE", "encryption")
    assert "pocket_plug_encryption.Encrypted', which is not registered here" in said("", "runs", "show", "r1")
    monkeypatch.delenv("POCKET_PLUG_DISABLE")
    wrong = layer.replace("STATE_KEY", "HOME")
    for text in (
        said(layer, "stack"),
        said(layer, "runs", "show", "r1"),
        said(wrong, "stack"),
        said("", "store", "ls"),
    ):
        assert KEY not in text


def test_an_entry_with_a_lost_key_blocks_no_other(tmp_path: Path) -> None:
    """It is listed as unreadable beside the others, with the reason, and can be deleted: a lost key doesn't block a store."""
    url = f"sqlite:///{tmp_path}/state.db?durability=process"
    for key, name in ((KEY, "mine"), (FORMER, "theirs")):
        with SyncStore(url, layers=[Encryption(keys=key)]) as store:
            store.set(name, VALUE)
            Graph(greet, store=store, name="orders").run_sync("in", run_id=name)
    with SyncStore(url, layers=[Encryption(keys=KEY)]) as store:
        runs = Runs(store).sync
        assert {run.run_id: run.state for run in runs.list().runs} == {"mine": "finished", "theirs": "unreadable"}
        with pytest.raises(UnreadableRecordError, match="which isn't among `keys`"):
            runs.get("theirs")
        assert runs.remove("theirs")
        assert [run.run_id for run in runs.list().runs] == ["mine"]
        assert store.delete("theirs")
        assert dict(store.items()) == {"mine": VALUE}


def test_a_worker_and_a_check_without_the_right_key_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log of the worker says once what to do. The check doesn't pass, also without the layer."""
    url = f"sqlite:///{tmp_path}/state.db?durability=process"
    graph = Graph(greet, name="orders")
    with SyncStore(url, layers=[Encryption(keys=KEY)]) as store:
        for run_id in ("secret-1", "secret-2"):
            graph.submit_sync("in", run_id=run_id, store=store)

    async def main(keys: list[str]) -> None:
        async with Store(url, layers=[Encryption(keys=key) for key in keys]) as store:
            assert [check.verdict for check in await graph.check_runs(store=store)] == ["refused", "refused"]
            with suppress(UnreadableRecordError):
                await Worker([graph], store=store).run(once=True)

    asyncio.run(main([FORMER]))
    (logged,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"a record is encrypted with the key {key_id(b64decode(KEY))}, which isn't among `keys`" in logged
    assert "add it after the current key" in logged
    asyncio.run(main([]))


def test_an_existing_store_is_encrypted_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its data: values, lists, and durable runs, which an export without `--all` leaves out."""
    monkeypatch.setenv("STATE_KEY", KEY)
    with SyncStore(f"sqlite:///{tmp_path}/former.db") as former:
        former.set("guest", VALUE)
        former.append("log", "secret")
        Graph(greet, store=former, name="orders").run_sync("secret-input", run_id="r1")
    layer = '{ use = "encryption", keys = "${STATE_KEY}" }'
    (tmp_path / "pocket.toml").write_text(f'[store]\nurl = "sqlite:///state.db"\nlayers = [{layer}]\n')
    commands = re.findall(r"^\$ pocket-plug (store .*)$", README.read_text("utf-8"), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        arguments, _, file = command.partition(" > ")
        program = [str(Path(sys.executable).with_name("pocket-plug")), *arguments.split()]
        done = subprocess.run(program, cwd=tmp_path, check=True, capture_output=True)
        if file:
            (tmp_path / file).write_bytes(done.stdout)
    with SyncStore(f"sqlite:///{tmp_path}/state.db", layers=[Encryption(keys=KEY)]) as store:
        assert store.get("guest") == VALUE
        assert store.tail("log", 5) == ["secret"]
        assert Runs(store).sync.get("r1").state == "finished"
    assert not [file for file in tmp_path.glob("state.db*") if b"secret" in file.read_bytes()]


# ---------------------------------------------------------------- tampering
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.binary(max_size=20),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@settings(deadline=None, max_examples=150)
@given(value=_VALUES, data=st.data())
def test_a_flipped_bit_is_found(value: Any, data: st.DataObject) -> None:
    """In the nonce, the ciphertext or the tag: an error, never another value and never a miss."""
    store, backend = pair()
    store.set("k", value)
    assert store.get("k") == value
    found = stored(backend, "k")
    bit = data.draw(st.integers(0, len(found.nonce + found.data) * 8 - 1))
    whole = _flipped(found.nonce + found.data, bit)
    put(backend, "k", replace(found, nonce=whole[:12], data=whole[12:]))
    for read in (lambda: store.get("k"), lambda: store.get_many(["k"]), lambda: store.get("k", "nothing")):
        with pytest.raises(CorruptRecordError, match="'k' can't be decrypted"):
            read()


def test_every_flipped_bit_of_a_record_is_found() -> None:
    """Every bit of one record, those of the key's id too."""
    store, backend = pair(KEY, FORMER)
    store.set("k", VALUE)
    found = stored(backend, "k")
    for bit in range(len(found.nonce) * 8):
        put(backend, "k", replace(found, nonce=_flipped(found.nonce, bit)))
        with pytest.raises(CorruptRecordError):
            store.get("k")
    for bit in range(len(found.data) * 8):
        put(backend, "k", replace(found, data=_flipped(found.data, bit)))
        with pytest.raises(CorruptRecordError):
            store.get("k")
    for bit in range(len(found.key_id) * 8):
        put(backend, "k", replace(found, key_id=_flipped(found.key_id.encode(), bit).decode("latin-1")))
        with pytest.raises(StoreError, match="which isn't among `keys`"):
            store.get("k")


@pytest.mark.parametrize("size", range(60))
def test_a_record_that_was_cut_off_is_found(size: int) -> None:
    """At any length, also with no data left."""
    store, backend = pair()
    store.set("k", "x" * 40)
    found = stored(backend, "k")
    assert len(found.data) >= 60
    put(backend, "k", replace(found, data=found.data[:size]))
    with pytest.raises(CorruptRecordError):
        store.get("k")
    if size < 12:
        put(backend, "k", replace(found, nonce=found.nonce[:size]))
        with pytest.raises(CorruptRecordError):
            store.get("k")


@pytest.mark.parametrize(
    "changed", [{"nonce": 5}, {"nonce": "x" * 12}, {"data": "x" * 40}, {"data": None}, {"key_id": [1]}]
)
def test_a_record_with_other_types_in_it_is_found(changed: Any) -> None:
    """A made-up record raises the same error as a damaged one, and can be deleted."""
    store, backend = pair()
    store.set("k", VALUE)
    put(backend, "k", replace(stored(backend, "k"), **changed))
    with pytest.raises(CorruptRecordError, match="'k' can't be decrypted"):
        store.get("k")
    assert store.delete("k")


def test_a_record_that_was_moved_to_another_key_is_found() -> None:
    """Also to a key whose name differs in the last letter only, or in its prefix."""
    store, backend = pair()
    store.set("user:1:admin", True)
    for other in ("user:2:admin", "user:1:admi", "user:1:admin\x00", "x"):
        put(backend, other, stored(backend, "user:1:admin"))
        with pytest.raises(CorruptRecordError, match="copied from another name"):
            store.get(other)


def test_a_record_of_another_key_is_not_taken_by_its_id() -> None:
    """A record that claims the id of a known key, but was encrypted with another key, is detected."""
    store, backend = pair(KEY)
    other, others = pair(FORMER)
    other.set("k", VALUE)
    put(backend, "k", replace(stored(others, "k"), key_id=key_id(b64decode(KEY))))
    with pytest.raises(CorruptRecordError):
        store.get("k")


def test_an_unencrypted_value_is_refused() -> None:
    """Otherwise, anyone who can write to the store could replace any value."""
    store, backend = pair()
    put(backend, "k", "plain-secret")
    with pytest.raises(StoreError, match="'k' is not encrypted") as caught:
        store.get("k")
    assert "plain-secret" not in str(caught.value)


# ---------------------------------------------------------------- keys
def test_a_former_key_reads_and_the_current_one_writes() -> None:
    """If a key is missing, the error names its id and the ids of the keys that are given."""
    backend = Memory()
    SyncStore(backend, layers=[Encryption(keys=FORMER)]).set("k", VALUE)
    former = stored(backend, "k").key_id
    with pytest.raises(StoreError, match=rf"'k' is encrypted with the key {former}, which isn't among.*add it after"):
        SyncStore(backend, layers=[Encryption(keys=KEY)]).get("k")
    both = SyncStore(backend, layers=[Encryption(keys=(KEY, FORMER))])
    assert both.get("k") == VALUE
    assert stored(backend, "k").key_id == former
    both.set("k", VALUE)
    assert stored(backend, "k").key_id != former
    assert SyncStore(backend, layers=[Encryption(keys=KEY)]).get("k") == VALUE


def test_with_migrate_a_read_takes_the_current_key() -> None:
    """With the same deadline; afterwards the former key can be removed. Records of runs are not rewritten."""
    backend = Memory()
    old = SyncStore(backend, layers=[Encryption(keys=FORMER)])
    old.set("mortal", 1, ttl=60)
    old.set_many({"a": 2, "b": 3})
    asyncio.run(old.stack.write([Put("pocket:run:r", {"format": 1})]))
    expires = asyncio.run(backend.read("mortal"))
    store = SyncStore(backend, layers=["migrate", Encryption(keys=(KEY, FORMER))])
    assert store.get("mortal") == 1
    assert store.get_many(["a", "b"]) == {"a": 2, "b": 3}
    asyncio.run(store.stack.read("pocket:run:r"))
    [layer] = [part for part in parts(store.stack) if isinstance(part, Encryption)]
    current, former = layer.key_ids
    assert asyncio.run(layer.used()) == {current: 3, former: 1}
    renewed = asyncio.run(backend.read("mortal"))
    assert expires is not None
    assert renewed is not None
    assert renewed.expires_at == expires.expires_at
    before = asyncio.run(backend.version())
    store.get("a")
    assert asyncio.run(backend.version()) == before  # once
    assert SyncStore(backend, layers=[Encryption(keys=KEY)]).get("mortal") == 1


def test_with_migrate_a_list_takes_the_current_key() -> None:
    """Its head, and the items that are read: they are users' data, although pocket_plug names them."""
    backend = Memory()
    old = SyncStore(backend, layers=[Encryption(keys=FORMER)])
    for n in range(3):
        old.append("chat", n)
    store = SyncStore(backend, layers=["migrate", Encryption(keys=(KEY, FORMER))])
    assert list(store.each_item("chat")) == [0, 1, 2]
    assert store.append("chat", 3) == 4
    assert SyncStore(backend, layers=[Encryption(keys=KEY)]).tail("chat", 9) == [0, 1, 2, 3]


def test_keys_come_from_a_function() -> None:
    """It is called once for each stack."""
    calls = []

    def keys() -> list[str]:
        calls.append(1)
        return [KEY, FORMER]

    store = SyncStore(layers=[Encryption(keys=keys)])
    store.set("k", 1)
    assert store.get("k") == 1
    assert calls == [1]
    assert "Encryption(keys='***')" in repr(store)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("hunter2!", r"keys\[0\] is not base64"),
        ("aHVudGVyMg==", r"keys\[0\] is base64 of 7 bytes; a key is base64 of 32 bytes; make one"),
        ((KEY, "hunter2!"), r"keys\[1\] is not base64"),
        ((), "`keys` is empty"),
        (lambda: [5], r"keys\[0\] is not base64"),
        (lambda: None, r"keys\[0\] is not base64"),
        (5, "'keys' must be"),
    ],
)
def test_an_invalid_key_is_refused_and_not_shown(keys: Any, message: str) -> None:
    """The error comes when the stack is built, and says how to create a key."""
    with pytest.raises(ConfigError, match=message) as caught:
        SyncStore(layers=[Encryption(keys=keys)])
    for shown in (str(caught.value), repr(caught.value.__cause__), repr(caught.value.__context__)):
        assert "hunter2" not in shown
        assert "aHVud" not in shown
        assert KEY not in shown


def test_no_error_shows_a_value_or_a_key() -> None:
    """Neither do the errors' causes, nor the repr of the layer."""
    store, backend = pair()
    store.set("k", "secret-value")
    put(backend, "k", replace(stored(backend, "k"), data=b"x" * 40))
    with pytest.raises(PocketError) as caught:
        store.get("k")
    layer = parts(store.stack)[1]
    for shown in (str(caught.value), repr(caught.value.__context__), repr(store), repr(layer)):
        assert "secret-value" not in shown
        assert KEY not in shown
    assert caught.value.__suppress_context__


# ---------------------------------------------------------------- with other layers
def test_compressed_before_it_is_encrypted() -> None:
    """In that order the data gets smaller; a set of names results in that order."""
    backend = Memory()
    store = SyncStore(backend, layers=["compress", Encryption(keys=KEY)])
    store.set("page", "state " * 10_000)
    assert len(stored(backend, "page").data) < 5_000
    assert store.get("page") == "state " * 10_000
    by_name: set[Any] = {"compress", Encryption(keys=KEY), "migrate", "metrics"}
    assert repr(Store(layers=by_name)) == "Store(Metrics() > Migrate() > Compress() > Encryption(keys='***') > memory)"


def test_all_that_a_store_does(tmp_path: Path) -> None:
    """Transactions and updates, with a cache in front of a file: nothing in the file is unencrypted."""
    url = f"sqlite:///{tmp_path}/state.db"
    layers = [Encryption(keys=KEY), {"use": "persistence", "to": url}]
    pocket = Pocket()
    with SyncStore(layers=[each if isinstance(each, Encryption) else pocket.layer(each) for each in layers]) as store:
        store.set("k", VALUE)
        assert store.update("k", lambda value: {**value, "more": 1}) == {**VALUE, "more": 1}
        with store.transaction() as tx:
            tx.set("k", {**tx.get("k"), "more": 2})
    with SyncStore(url, layers=[Encryption(keys=KEY)]) as store:
        assert store.get("k") == {**VALUE, "more": 2}


def test_persistence_outside_of_encryption_is_refused(tmp_path: Path) -> None:
    """Its file would contain unencrypted values, silently; the same with a layer in between."""
    for inside in ([Encryption(keys=KEY)], ["metrics", Encryption(keys=KEY)]):
        with pytest.raises(ConfigError, match="only the cache would be encrypted"):
            Store(layers=[Persistence(to=f"sqlite:///{tmp_path}/state.db"), *inside])


def test_many_threads_and_tasks() -> None:
    """Concurrent use is safe: each caller gets its own value back."""

    async def main() -> None:
        store = Store(layers=[Encryption(keys=KEY)])

        def in_thread(number: int) -> None:
            for n in range(20):
                store.sync.set(f"t{number}", [number] * n)
                assert store.sync.get(f"t{number}") == [number] * n

        await asyncio.gather(*(asyncio.to_thread(in_thread, number) for number in range(8)))

    asyncio.run(main())


def test_an_unregistered_type_is_refused_at_set() -> None:
    """The error names the key."""

    class Session: ...

    store, _ = pair()
    with pytest.raises(UnregisteredTypeError, match="key 'k': "):
        store.set("k", Session())


@dataclass
class Page:
    text: str


def test_a_type_that_is_not_registered_here_is_named_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the key, as a backend's error does for an unencrypted value, so that it can be found in a whole store."""
    store, _ = pair()
    elsewhere = Codec()
    elsewhere.register(Page, tag="elsewhere.Page")
    with monkeypatch.context() as patch:
        patch.setattr("pocket_plug.codec.codec.default_codec", elsewhere)
        store.set("k", Page("x"))
    with pytest.raises(UnknownTypeError, match=r"key 'k': .* type 'elsewhere\.Page'"):
        store.get("k")


def test_a_users_own_marker_comes_back() -> None:
    """If a user stores an Encrypted object, it is read back like any other value."""
    store, _ = pair()
    mine = Encrypted("id", b"nonce", b"data")
    store.set("k", mine)
    assert store.get("k") == mine
    assert asyncio.run(store.stack.read("k")) == Entry(mine, 1)


def test_a_store_without_the_layer_names_it() -> None:
    """And doesn't advise to delete the list that it can't read."""
    store, backend = pair()
    store.set("n", 1)
    store.append("log", 1)
    bare = SyncStore(backend)
    need = re.escape("the layer `encryption` has stored this in place of a value: open the store with that layer") + "$"
    with pytest.raises(ValueTypeError, match="'n' is declared as int, the value is Encrypted; " + need):
        bare.get(Key("n", int))
    with pytest.raises(ValueTypeError, match="'n': this store is typed int, the value is Encrypted; " + need):
        bare.typed(int).get("n")
    for use in (lambda: bare.tail("log", 1), lambda: bare.append("log", 2)):
        with pytest.raises(ValueTypeError, match="'log' holds an object of type Encrypted; " + need):
            use()
    assert store.tail("log", 2) == [1]


# ---------------------------------------------------------------- as a plugin
def test_found_by_its_entry_point(monkeypatch: Any, tmp_path: Path) -> None:
    """The installed plugin is found; its keys come from the environment, and only the variable's name is shown."""
    record = Pocket(required=["encryption"]).plugin("encryption")
    assert (record.distribution, record.hooks) == ("pocket-plug-encryption", ("pocket_layers",))
    monkeypatch.setenv("STATE_KEY", KEY)
    (tmp_path / "pocket.toml").write_text(
        '[store]\nlayers = [{ use = "encryption", keys = ["${STATE_KEY}", "${STATE_KEY}"] }]\n'
    )
    with Pocket(tmp_path / "pocket.toml") as pocket:
        pocket.store.sync.set("k", 1)
        assert pocket.store.sync.get("k") == 1
        assert KEY not in repr(pocket.store)


def test_readme() -> None:
    """What the README shows works."""
    snippets = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert len(snippets) == 3
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet, names)  # noqa: S102
