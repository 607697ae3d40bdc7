"""Links that leave `docs/` lead somewhere on the site, or are no links there."""

from __future__ import annotations

import pytest

from tools.docs.site_hook import ROOT, ROOT_PAGES, rewrite

REPOSITORY = "https://example.org/keyturn"


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("../../CHANGELOG.md#unreleased", "../changelog.md#unreleased"),
        ("../../README.md", "../index.md"),
        ("../../SECURITY.md", "../security.md"),
        ("../concepts.md#leases", "../concepts.md#leases"),
        ("publish-python.md", "publish-python.md"),
        ("#below", "#below"),
        ("https://c2sp.org/chunked-encryption", "https://c2sp.org/chunked-encryption"),
        ("../../Makefile", f"{REPOSITORY}/blob/main/Makefile"),
        ("../../no-such-file.py", "../../no-such-file.py"),
    ],
)
def test_a_link_of_a_page_leads_to_the_same_place_on_the_site(link: str, expected: str) -> None:
    text = f"See [what [it] is]({link}), and more."
    rewritten = rewrite(text, "docs/howto/read.md", "howto/read.md", REPOSITORY)
    assert rewritten == f"See [what [it] is]({expected}), and more."


def test_a_link_of_a_root_document_leads_into_the_site() -> None:
    text = "[Read](docs/howto/read.md), [report](SECURITY.md)\n\n[up]: docs/howto/upgrade.md\n"
    rewritten = rewrite(text, "CHANGELOG.md", "changelog.md", None)
    assert rewritten == "[Read](howto/read.md), [report](security.md)\n\n[up]: howto/upgrade.md\n"


def test_a_link_to_code_is_plain_text_where_no_repository_is_named() -> None:
    text = "[the `Makefile`](../Makefile), ![a picture](../Makefile)"
    assert rewrite(text, "docs/a.md", "a.md", None) == "the `Makefile`, ![a picture](../Makefile)"


def test_code_is_left_as_it_is() -> None:
    text = "before\n```md\n[x](../Makefile)\n```\n[x](../Makefile)"
    assert rewrite(text, "docs/a.md", "a.md", None) == "before\n```md\n[x](../Makefile)\n```\nx"


def test_rewriting_twice_changes_nothing_more() -> None:
    once = rewrite(
        (ROOT / "CONTRIBUTING.md").read_text(), "CONTRIBUTING.md", "contributing.md", None
    )
    assert rewrite(once, "docs/contributing.md", "contributing.md", None) == once


@pytest.mark.parametrize("name", ROOT_PAGES)
def test_the_documents_that_become_pages_are_there(name: str) -> None:
    assert (ROOT / name).is_file()
