"""What an address means, and what may be shown of it."""

import logging

import pytest

from crate_graph.cli import main
from crate_graph.config.load import dump_recipe, load_recipe
from crate_graph.data.remote.address import identity, join, shown
from crate_graph.data.remote.file import RemoteFile
from crate_graph.errors import UserError
from crate_graph.redaction import redact


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://me:pass@host/a?b=c", "https://***@host/a?***"),
        ("https://token@host:8080/a", "https://***@host:8080/a"),
        ("https://me:pa/s@s@host/a", "https://***@host/a"),
        ("https://host:8080/a@v1/b", "https://host:8080/a@v1/b"),
        ("hf://datasets/me/flowers@main/x", "hf://datasets/me/flowers@main/x"),
        ("data.root=https://host/a?sig=x&y", "data.root=https://host/a?***"),
        ("'https://host/a?sig' is wrong", "'https://host/a?***' is wrong"),
        (
            "Max retries exceeded with url: /a/b.tar?sig=abc (caused)",
            "Max retries exceeded with url: /a/b.tar?*** (caused)",
        ),
        ("data.root=pipe:curl -H 'Token: x' https://h/{}", "data.root=pipe:***"),
        ("pipe:*** train-000000.tar: it ended", "pipe:*** train-000000.tar: it ended"),
        ("nothing? to hide @ all", "nothing? to hide @ all"),
        ("[Errno 32] Broken pipe: 'logs/x'; make room", "[Errno 32] Broken pipe: 'logs/x'; make room"),
    ],
)
def test_what_is_left_of_a_text(text, clean):
    assert redact(text) == clean == redact(clean)


@pytest.mark.parametrize(
    ("root", "address", "seen"),
    [
        ("https://u:p@host/a/?sig=1", "https://u:p@host/a/x%20y.tar?sig=1", "https://***@host/a/x%20y.tar?***"),
        ("http://host", "http://host/x%20y.tar", "http://host/x%20y.tar"),
        ("s3://bucket/pre", "s3://bucket/pre/x y.tar", "s3://bucket/pre/x y.tar"),
    ],
)
def test_a_file_below_a_root(root, address, seen):
    assert join(root, "x y.tar") == address and shown(root, "x y.tar") == seen
    assert repr(RemoteFile(root) / "x y.tar") == seen


def test_who_asks_does_not_make_another_file():
    signed = [f"https://{who}host/a.tar?v=2&X-Amz-Signature={s}&Expires={s}" for who, s in (("a:b@", 1), ("", 2))]
    assert len(set(map(identity, signed))) == 1
    assert identity("https://host/a.tar?v=1") != identity("https://host/a.tar?v=2") != identity("https://host/b/a.tar")


def test_a_saved_recipe_holds_no_credentials_and_says_so_when_used():
    addresses = ["data.root=https://me:secret@host/a?sig=secret", "model.init_from=https://me:secret@host/b"]
    saved = dump_recipe(load_recipe("quickstart", addresses))
    assert "secret" not in saved and "https://***@host/a?***" in saved
    with pytest.raises(UserError, match=r"https://\*\*\*@host/a\?\*\*\*: credentials were left out.*data\.root"):
        RemoteFile("https://***@host/a?***")
    command = dump_recipe(load_recipe("quickstart", ["data.dataset=pipe:curl -u me:secret https://host/{}"]))
    assert "secret" not in command and "pipe:***" in command


def test_a_setting_that_is_wrong_is_shown_without_credentials():
    with pytest.raises(UserError) as error:
        load_recipe("quickstart", ["data.slots=https://me:secret@host/a"])
    assert "data.slots" in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "bilinear", "--data", "https://me:secret@host/a", "data.dataset=pipe:curl -u me:secret host"],
        ["shards", "verify", "fashion_mnist", "https://me:secret@host/a?sig=secret"],
    ],
)
def test_a_command_that_is_wrong_is_shown_without_credentials(words, capsys):
    try:
        code = main(words)
    except SystemExit as end:  # of argparse
        code = end.code
    said = capsys.readouterr().err
    assert code == 2 and "***" in said and "secret" not in said


def test_the_log_of_a_rank_shows_none(tmp_path):
    from crate_graph.train.run_folder import RunFolder

    folder = RunFolder(tmp_path)
    folder.logs.mkdir()
    handler = folder.log_to_file(0)
    try:
        try:
            raise ValueError("GET https://me:secret@host/a?sig=secret")
        except ValueError:
            logging.getLogger("crate_graph.test").exception("asked pipe:curl -H secret")
    finally:
        logging.getLogger("crate_graph").removeHandler(handler)
        handler.close()
    log = (folder.logs / "rank-0.log").read_text()
    assert (
        "secret" not in log.replace('raise ValueError("GET https://me:secret@host/a?sig=secret")', "") and "***" in log
    )
