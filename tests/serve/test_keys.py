"""Keys are read strictly, their secrets are kept nowhere, and each opens what the file says."""

import hashlib
from pathlib import Path

import pytest

from fedgen.errors import FedgenError, ServeError
from fedgen.serve.keys import ALL, Keys, KeysFile, Who, add_key, new_key
from fedgen.store import write_whole


def written(folder: Path, text: str) -> Path:
    path = folder / "keys.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_key_opens_what_the_file_says(tmp_path: Path) -> None:
    (alice, hers), (root, its) = new_key(), new_key()
    path = written(
        tmp_path, f'[keys.alice]\nsha256 = "{hers}"\nusers = ["alice"]\n[keys.root]\nsha256 = "{its}"\nadmin = true\n'
    )
    keys = Keys.read(path)
    assert keys.who(alice) == Who("alice", frozenset({"alice"}))
    assert keys.who(root) == Who("root", admin=True)
    for wrong in ("", hers, alice + " ", alice[:-1], "naïve", "\udcff"):
        assert keys.who(wrong) is None


def test_a_secret_is_new_each_time_and_known_by_its_hash_alone() -> None:
    made = [new_key() for _ in range(3)]
    assert len({secret for secret, _ in made}) == 3
    assert all(len(secret) > 40 and hashlib.sha256(secret.encode()).hexdigest() == kept for secret, kept in made)
    secret, kept = made[0]
    assert secret not in repr(Keys({kept: Who("alice")}))


def test_what_is_nobodys_is_everybodys_and_a_star_owns_all() -> None:
    alice, root, stranger = Who("a", frozenset({"alice"})), Who("r", frozenset({ALL})), Who("s")
    assert [who.owns("alice") for who in (alice, root, stranger)] == [True, True, False]
    assert all(who.owns("") for who in (alice, root, stranger))
    assert not Who("admin", admin=True).owns("alice")  # to manage is not to use


def test_keys_are_added_one_by_one_and_the_file_is_for_its_owners_eyes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.toml"
    odd = 'Smith, "J" [ü]'
    secrets = {
        "alice": add_key(path, "alice", users=("alice", odd)),
        odd: add_key(path, odd),
        "root": add_key(path, "root", users=(ALL,), admin=True),
    }
    assert path.stat().st_mode & 0o077 == 0
    keys, text = Keys.read(path), path.read_text("utf-8")
    assert {name: keys.who(secret) for name, secret in secrets.items()} == {
        "alice": Who("alice", frozenset({"alice", odd})),
        odd: Who(odd),
        "root": Who("root", frozenset({ALL}), admin=True),
    }
    assert not any(secret in text for secret in secrets.values())


def test_a_name_that_is_taken_gets_no_second_key(tmp_path: Path) -> None:
    path = written(tmp_path, f'# ours\n[keys.alice]\nsha256 = "{new_key()[1]}"')
    for name in ("alice", ""):
        before = path.read_text("utf-8")
        with pytest.raises(ServeError, match=f"wanted a new name, came '{name}'"):
            add_key(path, name)
        assert path.read_text("utf-8") == before
    add_key(path, "bob")
    assert path.read_text("utf-8").startswith("# ours\n[keys.alice]")
    assert sorted(who.name for who in Keys.read(path).known.values()) == ["alice", "bob"]


HASH = "a" * 64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keys = 3", r"wanted a table \[keys.NAME\] for each key"),
        ('[keys]\nalice = "secret"', r"wanted a table \[keys.NAME\] for each key"),
        (f'[keys.alice]\nsha256 = "{HASH}"\n[other]\n', r"'other' is no key; wanted tables \[keys.NAME\] alone"),
        (f'[keys.alice]\nsha256 = "{HASH}"\nscope = "all"', "alice.scope: no such key; Key has sha256, users, admin"),
        ("[keys.alice]\nadmin = true", "alice.sha256: is missing"),
        ('[keys.alice]\nsha256 = "abc"', "alice: sha256 must be 64 digits"),
        (f'[keys.alice]\nsha256 = "{HASH.upper()}"', "alice: sha256 must be 64 digits"),
        (f'[keys.alice]\nsha256 = "{HASH}"\nadmin = "yes"', "alice.admin: wanted true or false, came 'yes'"),
        (f'[keys.alice]\nsha256 = "{HASH}"\nusers = "alice"', "alice.users: wanted a list of texts"),
        (f'[keys.alice]\nsha256 = "{HASH}"\nusers = [""]', "alice: users names nobody"),
        (f'[keys.alice]\nsha256 = "{HASH}"\n[keys.bob]\nsha256 = "{HASH}"', "'alice' and 'bob' have one secret"),
        ("[keys.alice", "is not TOML"),
    ],
)
def test_a_file_that_says_anything_else_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(FedgenError, match=said) as caught:
        Keys.read(written(tmp_path, text))
    assert "keys.toml" in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FedgenError, match=r"keys '.*none.toml': cannot be read"):
        Keys.read(tmp_path / "none.toml")


def test_a_file_that_changes_is_read_anew_and_a_spoilt_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    ann = add_key(path, "ann", users=("ann",))
    keys = KeysFile(path)
    bob = add_key(path, "bob")
    found = keys.who(bob)
    assert found
    assert found.name == "bob"
    whole = path.read_text()
    path.write_text("[keys")
    assert keys.who(ann)
    assert "what was read last stays in force" in caplog.text
    write_whole(path, whole[whole.index('[keys."bob"]') :].encode())
    assert keys.who(ann) is None
    assert keys.who(bob)
