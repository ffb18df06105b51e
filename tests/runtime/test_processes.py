"""Bundles in processes that were forked or spawned from one that already used its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from tileproof.runtime import load

# The file is the children's main module too. `library` is there in those that were forked.
SCRIPT = """
    import multiprocessing, sys, threading
    import torch
    import tileproof

    LIMIT = 300  # seconds that a child may take before it counts as hanging
    _, method, count, path, case = sys.argv
    inputs, expected = torch.load(case)
    library = None

    def right(library):
        return torch.equal(library.mhc_post(*inputs), expected)

    def work(answers):
        found = [right(known) for known in (library, tileproof.load(path, "virtual")) if known]
        answers.put(all(found) and len(found))

    if __name__ == "__main__":
        library = tileproof.load(path, "virtual")
        assert right(library)
        context = multiprocessing.get_context(method)
        over = threading.Event()

        def launch():
            while not over.wait(0.001):
                assert right(library)

        thread = threading.Thread(target=launch)
        thread.start()
        try:
            answers = context.SimpleQueue()
            children = [context.Process(target=work, args=(answers,)) for _ in range(int(count))]
            for child in children:
                child.start()
            for child in children:
                child.join(LIMIT)
                if child.exitcode is None:
                    child.kill()
            print([child.exitcode for child in children])
            print([answers.get() for child in children if child.exitcode == 0])
        finally:
            over.set()
            thread.join()
        assert right(library)
"""


@pytest.mark.parametrize(("method", "count", "libraries"), [("fork", 20, 2), ("spawn", 1, 1)])
def test_children_of_a_process_that_is_launching(
    bundle, post_inputs, tmp_path, method, count, libraries
):
    """A forked child runs the library it inherits and one it loads, a spawned one what it loads."""
    inputs, case, script = post_inputs(7), tmp_path / "case.pt", tmp_path / "main.py"
    torch.save((inputs, load(bundle, backend="virtual").mhc_post(*inputs)), case)
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, script, method, count, bundle, case]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    expected = [str([0] * count), str([libraries] * count)]
    assert done.stdout.splitlines() == expected, done.stderr
