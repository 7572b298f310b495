"""A stranger can follow the tutorial word for word: every command is typed and what comes out is compared."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", ["tutorial.md", "how-to/operators.md"])
def test_a_page_can_be_followed_word_for_word(page):
    done = subprocess.run([sys.executable, str(ROOT / "tools/run_tutorial.py"), "--name", f"page-{os.getpid()}", str(ROOT / "docs" / page)], check=False)
    assert done.returncode == 0
