"""JavaScript modules within a page: a page opened from disk cannot import any, and the service's page need not."""

import re
from pathlib import Path

VIEWER = Path(__file__).parent / "viewer"
IMPORT = re.compile(r'^import \{[^}]*\} from "(\.[^"]*)";\n', re.MULTILINE)


def joined(path):
    """The text of a module, after that of the modules it imports, as one module that imports nothing.

    The modules share one scope then, so that no name may stand at the top of two of them.
    """
    texts = {}

    def visit(module):
        if module in texts:
            return
        text = module.read_text(encoding="utf-8")
        texts[module] = None  # imported already, should it be by one of its own imports
        for source in IMPORT.findall(text):
            visit((module.parent / source).resolve())
        del texts[module]  # so that it comes after them
        texts[module] = re.sub(r"^export (?=class|function|const|async)", "", IMPORT.sub("", text), flags=re.MULTILINE)

    visit(Path(path).resolve())
    return "\n".join(texts.values())
