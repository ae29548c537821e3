"""What looks like a secret; the examples are put together here, and are none."""

from pathlib import Path

import pytest

import densevit
from densevit.utils.leaks import reasons, secret_name, secrets_in, secrets_in_diff

SECRETS = {
    "-----BEGIN " + "OPENSSH PRIVATE KEY-----": "a private key",
    "-----BEGIN " + "PRIVATE KEY-----": "a private key",
    "id=AKIA" + 16 * "Q": "an AWS key",
    "ghp_" + 36 * "a": "a GitHub token",
    "github_pat_" + 40 * "a": "a GitHub token",
    "hf_" + 34 * "a": "a Hugging Face token",
    "sk-" + "proj-" + 30 * "a": "an API key",
    "xoxb-" + 12 * "1": "a Slack token",
    "glpat-" + 20 * "a": "a GitLab token",
}


@pytest.mark.parametrize(("text", "kind"), SECRETS.items())
def test_tokens_and_keys_are_known_by_their_form(text, kind):
    assert secrets_in(f"key: '{text}'\n") == [kind]
    assert secrets_in(text[:12].replace("BEGIN", "BEGUN")) == []


def test_files_of_secrets_are_known_by_their_name():
    names = [".env", ".env.local", "server.PEM", "id_rsa", "id_ed25519.pub", ".netrc", "a.key"]
    assert all(map(secret_name, names))
    assert not any(map(secret_name, ["key.py", "environment.py", "token.csv", "secret_name.py"]))
    assert reasons("a/b/.env", "") == ["a/b/.env (a secret, by its name)"]


def test_a_diff_is_read_by_file():
    token = "hf_" + 34 * "a"
    diff = f"diff --git a/x.py b/x.py\n+1\ndiff --git a/y/z.py b/y/z.py\n+{token}\n"
    assert secrets_in_diff(diff) == ["y/z.py (a Hugging Face token)"]
    assert secrets_in_diff("") == []


def test_our_own_files_raise_no_alarm():
    package = Path(densevit.__file__).parent
    assert not [r for file in package.rglob("*.py") for r in reasons(str(file), file.read_text())]
