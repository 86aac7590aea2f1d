"""The documents name files that exist, and their links lead somewhere."""

import importlib
import re
import subprocess

import pytest

from conftest import ROOT

DOCUMENTS = subprocess.run(
    ["git", "ls-files", "*.md", "NOTICE", "CITATION.cff"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split()
FILE = re.compile(r"(?<![\w/.*<>-])[\w./*-]+\.(?:py|sh|md|cc|h|cff|toml|txt)\b(?![*])")
IMPORT = re.compile(r"from ([\w.]+) import (\w+)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Files of other projects, and the one that must not exist.
ELSEWHERE = {
    "CONTRIBUTING.md": {"utils.py"},
    "docs/coming_from.md": {"main.py", "render.py", "test.py", "display_result.py", "args.txt"},
    "test_tipc/docs/benchmark_train.md": {"BENCHMARK_ROOT/scripts/analysis.py"},
}


def text_of(document):
    return (ROOT / document).read_text(encoding="utf-8")


def files_named(document):
    """The paths that a document mentions, without the addresses of the web."""
    return set(FILE.findall(re.sub(r"https?://\S+", "", text_of(document)))) - ELSEWHERE.get(document, set())


def places(document):
    """Where a path in a document may start: at the root, in a folder that holds the document, or in the example's."""
    folders = [(ROOT / document).parent, *(ROOT / document).parent.parents][: document.count("/") + 1]
    return [*folders, ROOT / "test_tipc" / "configs" / "N2N"] if document.startswith("test_tipc/") else folders


def anchors(path):
    """The headings of a document as GitHub writes them into links."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_files_that_a_document_names_exist(document):
    missing = [path for path in files_named(document) if not any(any(place.glob(path)) for place in places(document))]
    assert not missing


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name.endswith(".md")])
def test_the_links_of_a_document_lead_somewhere(document):
    for link in LINK.findall(text_of(document)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_what_a_document_imports_exists():
    imports = {found for document in DOCUMENTS for found in IMPORT.findall(text_of(document))}
    assert {("denoising", "Denoiser"), ("denoising.imaging.noise", "parse_noise"), ("lite", "Model")} <= imports
    for module, name in imports:
        assert hasattr(importlib.import_module(module), name), f"from {module} import {name}"


def test_the_search_finds_files_and_links():
    assert {"train.py", "test_tipc/README.md", "scripts/8_lite.sh"} <= files_named("README.md")
    assert sum(len(LINK.findall(text_of(name))) for name in DOCUMENTS) > 100
    assert anchors(ROOT / "docs" / "training.md") >= {"training", "where-the-noise-is-known"}
    assert FILE.findall("`engine/onednn.h`, (methods.py), [x](docs/a.md#b)") == [
        "engine/onednn.h", "methods.py", "docs/a.md",
    ]  # fmt: skip


def commands(document):
    """The commands of a document, each with all of its lines."""
    lines = re.sub(r"\\\n", "", text_of(document)).splitlines()
    return [re.sub(r"\s+", " ", line).strip() for line in lines if line.startswith("    ")]


# The cards in docs/models tell how weights came about, on which CPU and in which precision.
@pytest.mark.parametrize("document", [name for name in DOCUMENTS if re.fullmatch(r"README.md|docs/\w+\.md", name)])
def test_a_command_in_bf16_says_what_it_needs(document):
    """Most CPUs have no AVX512_BF16, and refuse it."""
    assert not [line for line in commands(document) if "precision bf16" in line and "AVX512_BF16" not in line]
